"""The SSH connections of a host, which no network fault may cut: found before the fault, watched while it is on trial.

Two looks at each of them. The rules are gone through for its packets, which finds an idle one too. And the kernel says
how often its oldest unanswered segment was sent again: what the rules do not show (address translation, another table,
a fault of ours on a peer) shows there, once the connection carries something.
"""

from collections.abc import Iterable

from brownout_agent.faults.network_scope import Scope
from brownout_agent.kernel.tcp_connections import read_established

UNANSWERED_MAX = 1
"""One segment that is sent again is daily life on a network; the same one a second time within a trial is not."""


class Lifelines:
    """The SSH connections that stood before the fault."""

    def __init__(self, scope: Scope, ssh_ports: Iterable[int]) -> None:
        """Raises OSError when the kernel does not list its connections."""
        ports = frozenset(ssh_ports)
        self._scope = scope
        self._before = {
            connection: unanswered
            for connection, unanswered in read_established().items()
            if connection.local_port in ports or connection.remote_port in ports
        }

    def harm(self) -> str:
        """Which of them the fault hurts, for people; "" when it hurts none.

        Raises:
            OSError: the kernel does not list them.
        """
        for connection in self._before:
            if self._scope.meets(connection):
                return f"its rules are for packets of the SSH connection from {connection}"
        now = read_established()
        for connection, unanswered in self._before.items():
            if now.get(connection, 0) > unanswered + UNANSWERED_MAX:
                return f"the SSH connection from {connection} has had no answer since it began"
        return ""
