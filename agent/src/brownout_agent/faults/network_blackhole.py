"""`network.blackhole`: packets vanish, as if a peer, a link or a rack were gone.

Nothing answers: a TCP connect runs into its time-out, an open connection hangs. One difference to a dead link: a
packet that leaves is dropped in the output hook, where the kernel tells its own sender. A UDP `send` fails with EPERM
then, so a DNS query fails at once instead of timing out; with `direction: ingress` the query goes out and its answer
vanishes, which is silent.
"""

from functools import partial

from brownout_agent.faults.contract import Host, Meter, Record
from brownout_agent.faults.network_rules import Treatment, drop
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_table import CountMeter, NetworkFault, judge_all


class BlackholeParameters(NetworkParameters):
    """Which packets vanish."""


class NetworkBlackhole(NetworkFault[BlackholeParameters]):
    """Drops every packet that is meant."""

    kind = "network.blackhole"
    summary = "Drop all traffic to and from peers, ports or everyone, without an answer."
    Parameters = BlackholeParameters

    def treatment(self, parameters: BlackholeParameters, scope: Scope) -> Treatment:
        return drop(100)

    def measure(self, record: Record[BlackholeParameters], host: Host) -> Meter:
        return CountMeter(record, partial(judge_all, "dropped"))
