"""`network.reset`: TCP connections are reset, as by a peer that has restarted or a firewall that forgot them.

A connection is reset at its next segment, whichever end sends it. The program of this host is told at once, by
ECONNRESET: a segment that leaves is dropped and answered by a reset, and one that arrives is made a reset itself, so
that who waits for an answer gets that instead. The peer is told when it sends something, or sends it again (RFC 6298,
8985: some milliseconds to some hundred): by the rules, or by the kernel of this host, which has no such connection any
more. By `connections`::

    existing   those that stood when the fault began. A new one is made and works: who reconnects recovers
    new        those that are begun while it lasts: the handshake passes, and then they are reset. Those that stood stay
    both       every one, old or new

With one `direction` these are the segments that count; a connection that has none in it stays.

**A connection that carries nothing stays** until it does, or until the fault ends: an idle one is reset at its next
use, as after a peer's crash. The kernel could end it from within (SOCK_DESTROY, `ss -K`), but its program would see
ECONNABORTED then, which no reset of a peer ever causes; and what the trial of a fault finds to be wrong could not be
stopped any more.

A connection is known by its two addresses and ports: one made anew between the same four, while the fault lasts, counts
as the old one once its handshake is over.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Literal

from pydantic import Field

from brownout_agent.faults.contract import Effect, Host, Meter, Record
from brownout_agent.faults.network_flows import VERSIONS, connection_key, connection_set
from brownout_agent.faults.network_rules import FAMILY, Treatment
from brownout_agent.faults.network_scope import Connections, NetworkParameters, Scope
from brownout_agent.faults.network_table import (
    CountMeter,
    NetworkFault,
    PacketCounts,
    PacketMeter,
    judge_all,
    read_standing,
)
from brownout_agent.kernel.nftables import NftablesError, count_elements
from brownout_agent.kernel.tcp_connections import Connection


class ResetParameters(NetworkParameters):
    """Which connections are reset."""

    connections: Connections = Field(
        "existing",
        description="those that stand when the fault begins, those that are begun while it lasts, or both; each at its "
        "next segment, so that an idle one stays until it is used",
    )
    protocol: Literal["tcp"] = Field("tcp", description="nothing but TCP has resets")


def reset(connections: Connections, standing: Iterable[Connection]) -> Treatment:
    """Reset connections at their next segment; `standing` are those that exist and are meant.

    They are in a set for each address family, `untold`, from which the rules take one after the other when its program
    has been told.
    """

    def rules(direction: str) -> list[str]:
        count = f"counter name {direction}_seen counter name {direction}_dropped"
        told: list[str] = []
        for version in VERSIONS if connections != "new" else ():
            key = connection_key(direction, version)
            tell = f"delete @untold{version} {{ {key} }}"
            is_untold = f"{key} @untold{version} {count} {tell} tcp flags set rst accept"
            told.append(is_untold if direction == "ingress" else tell)
        # A handshake passes, and so do resets: nothing may be answered to them.
        passing = "tcp flags & (syn | rst) != 0 accept"
        return [passing, *told, f"meta l4proto tcp {count} reject with tcp reset"]

    if connections == "new":
        return Treatment(rules)
    keys = [*standing]
    return Treatment(rules, tuple(connection_set("untold", version, keys, is_taken_from=True) for version in VERSIONS))


class NetworkReset(NetworkFault[ResetParameters]):
    """Resets the connections that are meant."""

    kind = "network.reset"
    summary = "Reset TCP connections to and from peers, ports or everyone: those that stand, new ones, or both."
    Parameters = ResetParameters

    def tried(self) -> Treatment:
        return reset("existing", ())

    def treatment(self, parameters: ResetParameters, scope: Scope) -> Treatment:
        standing = read_standing(scope) if scope.connections == "both" else scope.standing
        return reset(scope.connections, standing)

    def measure(self, record: Record[ResetParameters], host: Host) -> Meter:
        if record.parameters.connections == "existing":
            return _StandingMeter(record)
        return CountMeter(record, partial(judge_all, "reset"))


class _StandingMeter(PacketMeter):
    """Counts the connections that are left in the table's set of those that were not told."""

    def __init__(self, record: Record[ResetParameters]) -> None:
        super().__init__(record)
        self._standing = self._untold = 0
        self._counted: dict[str, PacketCounts] | None = None

    def sample(self) -> None:
        super().sample()
        if self.counts == self._counted:
            return  # a list of 20 000 takes 0.7 s to read
        try:
            if self._counted is None:
                self._standing = sum(count_elements(FAMILY, self.table, f"standing{version}") for version in VERSIONS)
            self._untold = sum(count_elements(FAMILY, self.table, f"untold{version}") for version in VERSIONS)
        except NftablesError as error:
            self.lost = f"; the connections in table {self.table} could not be read: {error}"
            return
        self._counted = self.counts

    def judged(self) -> Effect:
        return judge_standing(self.scope, self._standing, self._standing - self._untold)


def judge_standing(scope: Scope, standing: int, reset: int) -> Effect:
    """Of so many connections that stood, so many were reset. Proved when one was. Pure."""
    unit = "% of connections"
    text = replace(scope, connections="both").text
    if not standing:
        return Effect(100.0, None, unit, False, f"no connection ({text}) stood when the fault began")
    why = f"the kernel reset {reset} of the {standing} connections that stood ({text})"
    rest = "" if reset == standing else "; the rest carried nothing"
    if rest and scope.share_percent < 100:
        rest += " or were not drawn"
    return Effect(scope.share_percent, 100 * reset / standing, unit, reset > 0, why + rest)
