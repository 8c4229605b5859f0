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
from functools import partial
from typing import Literal

from pydantic import Field

from brownout_agent.faults.contract import Effect, Host, Meter, Record
from brownout_agent.faults.network_rules import FAMILY, Treatment
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_table import CountMeter, NetworkFault, PacketCounts, PacketMeter, judge_all
from brownout_agent.kernel.nftables import NftablesError, count_elements
from brownout_agent.kernel.tcp_connections import Connection, read_open

Connections = Literal["existing", "new", "both"]
_IP = {4: "ip", 6: "ip6"}


class ResetParameters(NetworkParameters):
    """Which connections are reset."""

    connections: Connections = Field(
        "existing",
        description="those that stand when the fault begins, those that are begun while it lasts, or both; each at its "
        "next segment, so that an idle one stays until it is used",
    )
    protocol: Literal["tcp"] = Field("tcp", description="nothing but TCP has resets")


def reset(connections: Connections, standing: Iterable[Connection]) -> Treatment:
    """Reset connections at their next segment; `standing` are those that exist.

    Sets of them for each address family: `standing` for as long as the fault lasts, and `untold`, those whose program
    has not been told, from which the rules take one connection after the other.
    """

    def rules(direction: str) -> list[str]:
        count = f"counter name {direction}_seen counter name {direction}_dropped"
        refuse = f"{count} reject with tcp reset"
        chosen: list[str] = []
        for version in _IP:
            key = _key(direction, version)
            tell = f"delete @untold{version} {{ {key} }}"
            if connections == "new":
                chosen.append(f"{key} @standing{version} accept")
                continue
            if direction == "ingress":
                chosen.append(f"{key} @untold{version} {count} {tell} tcp flags set rst accept")
            if connections == "existing":
                chosen.append(f"{key} @standing{version} {tell} {refuse}")
            elif direction == "egress":
                chosen.append(tell)
        # A handshake passes, and so do resets: nothing may be answered to them.
        passing = "tcp flags & (syn | rst) != 0 accept"
        return [passing, *chosen, *([] if connections == "existing" else [f"meta l4proto tcp {refuse}"])]

    names = {"existing": ("standing", "untold"), "new": ("standing",), "both": ("untold",)}[connections]
    keys = [*standing]
    return Treatment(rules, tuple(_set(name, version, keys) for name in names for version in _IP))


class NetworkReset(NetworkFault[ResetParameters]):
    """Resets the connections that are meant."""

    kind = "network.reset"
    summary = "Reset TCP connections to and from peers, ports or everyone: those that stand, new ones, or both."
    Parameters = ResetParameters

    def tried(self) -> Treatment:
        return reset("existing", ())

    def treatment(self, parameters: ResetParameters, scope: Scope) -> Treatment:
        return reset(parameters.connections, filter(scope.meets, read_open()))

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
                self._standing = sum(count_elements(FAMILY, self.table, f"standing{version}") for version in _IP)
            self._untold = sum(count_elements(FAMILY, self.table, f"untold{version}") for version in _IP)
        except NftablesError as error:
            self.lost = f"; the connections in table {self.table} could not be read: {error}"
            return
        self._counted = self.counts

    def judged(self) -> Effect:
        return judge_standing(self.scope, self._standing, self._standing - self._untold)


def judge_standing(scope: Scope, standing: int, reset: int) -> Effect:
    """Of so many connections that stood, so many were reset. Proved when one was. Pure."""
    unit = "% of connections"
    if not standing:
        return Effect(100.0, None, unit, False, f"no connection ({scope.text}) stood when the fault began")
    why = f"the kernel reset {reset} of the {standing} connections that stood ({scope.text})"
    rest = "" if reset == standing else "; the rest carried nothing"
    return Effect(100.0, 100 * reset / standing, unit, reset > 0, why + rest)


def _key(direction: str, version: int) -> str:
    """A packet's connection as this host sees it, its own end first."""
    ends = ("saddr", "sport"), ("daddr", "dport")
    (own, own_port), (peer, peer_port) = ends if direction == "egress" else ends[::-1]
    return f"{_IP[version]} {own} . tcp {own_port} . {_IP[version]} {peer} . tcp {peer_port}"


def _set(name: str, version: int, connections: list[Connection]) -> str:
    keys = [
        f"{one.local} . {one.local_port} . {one.remote} . {one.remote_port}"
        for one in connections
        if one.local.version == version
    ]
    lines = [f"set {name}{version} {{ type ipv{version}_addr . inet_service . ipv{version}_addr . inet_service"]
    if name == "untold":  # what rules delete from wants a size, and takes the memory for it at once
        lines.append(f"flags dynamic; size {max(len(keys), 1)}")
    if keys:
        lines.append(f"elements = {{ {', '.join(keys)} }}")
    return "\n".join([*lines, "}"])
