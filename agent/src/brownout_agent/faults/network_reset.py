"""`network.reset`: TCP connections are reset, as by a peer that has restarted or a firewall that forgot them.

The next segment of such a connection is dropped and answered by a reset to whoever sent it, who then has ECONNRESET.
The other end hears of it when it sends something in turn: by a reset from the rules, or from the kernel of the one that
was told, which no longer knows the connection. By `connections`::

    existing   those that stood when the fault began. A new one is made and works: who reconnects recovers
    new        those that are begun while it lasts: the handshake passes, and then they are reset. Those that stood stay
    both       every one, old or new

**A connection that carries nothing stays** until it does, or until the fault ends: an idle one is reset at its next
use, as after a peer's crash. The kernel could end it from within (SOCK_DESTROY, `ss -K`), but its program would see
ECONNABORTED then, which no reset of a peer ever causes; and what the trial of a fault finds to be wrong could not be
stopped any more.

A connection is known by its two addresses and ports: one made anew between the same four, while the fault lasts, counts
as the old one once its handshake is over.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from brownout_agent.faults.contract import Effect, Host, Record
from brownout_agent.faults.network_rules import FAMILY, Treatment
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_table import NetworkFault, PacketCounts, PacketMeter, judge_all
from brownout_agent.kernel.nftables import NftablesError, read_element_counters
from brownout_agent.kernel.tcp_connections import Connection, read_open

Connections = Literal["existing", "new", "both"]
_SETS = {4: "existing4", 6: "existing6"}
_ADDRESS = {4: "ip", 6: "ip6"}


class ResetParameters(NetworkParameters):
    """Which connections are reset."""

    connections: Connections = Field(
        "existing",
        description="those that stand when the fault begins, those that are begun while it lasts, or both; each at its "
        "next segment, so that an idle one stays until it is used",
    )
    protocol: Literal["tcp"] = Field("tcp", description="nothing but TCP has resets")


def reset(connections: Connections, standing: Iterable[Connection]) -> Treatment:
    """Answer the segments of connections by resets; `standing` are those that exist."""

    def rules(direction: str) -> list[str]:
        count = f"counter name {direction}_seen counter name {direction}_dropped reject with tcp reset"
        match connections:
            case "existing":
                chosen = [f"{is_standing} {count}" for is_standing in _standing_matches(direction)]
            case "new":
                chosen = [*(f"{is_standing} accept" for is_standing in _standing_matches(direction)), count]
            case "both":
                chosen = [count]
        # A handshake passes, and so do resets: nothing may be answered to them.
        return ["tcp flags & (syn | rst) != 0 accept", *(f"meta l4proto tcp {rule}" for rule in chosen)]

    return Treatment(rules, () if connections == "both" else tuple(_standing_sets(standing)))


class NetworkReset(NetworkFault[ResetParameters]):
    """Resets the connections that are meant."""

    kind = "network.reset"
    summary = "Reset TCP connections to and from peers, ports or everyone: those that stand, new ones, or both."
    Parameters = ResetParameters

    def tried(self) -> Treatment:
        return reset("existing", ())

    def treatment(self, parameters: ResetParameters, scope: Scope) -> Treatment:
        if parameters.connections == "both":
            return reset("both", ())
        return reset(parameters.connections, filter(scope.meets, read_open()))

    def judge(self, parameters: ResetParameters, scope: Scope, counts: dict[str, PacketCounts]) -> Effect:
        return judge_all("reset", scope, counts)

    def measure(self, record: Record[ResetParameters], host: Host) -> PacketMeter[ResetParameters]:
        if record.parameters.connections == "existing":
            return _StandingMeter(self, record)
        return PacketMeter(self, record)


class _StandingMeter(PacketMeter[ResetParameters]):
    """Reads what the kernel counted for each of the connections in the table's sets."""

    def __init__(self, fault: NetworkReset, record: Record[ResetParameters]) -> None:
        super().__init__(fault, record)
        self._resets: list[int] = []
        self._counted: dict[str, PacketCounts] | None = None

    def sample(self) -> None:
        super().sample()
        if self.counts == self._counted:
            return  # a list of 20 000 takes 0.7 s to read
        self._counted = self.counts
        try:
            self._resets = [
                packets for name in _SETS.values() for packets in read_element_counters(FAMILY, self.table, name)
            ]
        except NftablesError as error:
            self.lost = f"; the connections in table {self.table} could not be read: {error}"

    def judged(self) -> Effect:
        return judge_standing(self.scope, self._resets)


def judge_standing(scope: Scope, resets: Sequence[int]) -> Effect:
    """Proved when a connection was reset. `resets` are how many segments of each that stood were answered so."""
    unit = "% of connections"
    if not resets:
        return Effect(100.0, None, unit, False, f"no connection ({scope.text}) stood when the fault began")
    hit = sum(map(bool, resets))
    why = f"the kernel reset {hit} of the {len(resets)} connections that stood ({scope.text})"
    rest = "" if hit == len(resets) else "; the rest carried nothing"
    return Effect(100.0, 100 * hit / len(resets), unit, hit > 0, why + rest)


def _standing_matches(direction: str) -> list[str]:
    """A match for each address family: the packet's connection as this host sees it, its own end first."""
    ends = ("saddr", "sport"), ("daddr", "dport")
    (own, own_port), (peer, peer_port) = ends if direction == "egress" else ends[::-1]
    return [
        f"{ip} {own} . tcp {own_port} . {ip} {peer} . tcp {peer_port} @{_SETS[version]}"
        for version, ip in _ADDRESS.items()
    ]


def _standing_sets(standing: Iterable[Connection]) -> list[str]:
    keys: dict[int, list[str]] = {version: [] for version in _SETS}
    for one in standing:
        keys[one.local.version].append(f"{one.local} . {one.local_port} . {one.remote} . {one.remote_port}")
    return [
        f"set {name} {{ type ipv{version}_addr . inet_service . ipv{version}_addr . inet_service; counter\n"
        + (f"elements = {{ {', '.join(keys[version])} }}\n" if keys[version] else "")
        + "}"
        for version, name in _SETS.items()
    ]
