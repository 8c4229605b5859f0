"""Which connections and flows a network fault means of those that its scope has, as rules for nftables. Pure.

**Old and new connections** are told by the list of those that stood when the fault began, from the kernel's own table
of sockets: connection tracking comes later than these rules, is not on every host, and knows nothing of connections
that are older than it. A connection is known by its two addresses and ports.

**A share of the flows** is drawn by a hash of addresses and ports (Jenkins's, `jhash`), so that a flow is met whole or
not at all, both ways. The fault's id is its seed: each fault draws anew, and nobody has to remember who was drawn.
"""

from collections.abc import Iterable
from hashlib import sha256

from brownout_agent.faults.network_scope import Scope
from brownout_agent.kernel.tcp_connections import Connection

LOTS = 1_000_000
"""Of so many lots some are drawn: a millionth is the finest share that can be asked for."""
VERSIONS = {4: "ip", 6: "ip6"}
"""Each version of IP by its name in rules."""


def flow_sets(scope: Scope) -> list[str]:
    """The sets and counters that `flow_rules` need, each as it stands in a table."""
    sets = []
    if scope.connections != "both":
        sets += [connection_set("standing", version, scope.standing) for version in VERSIONS]
    if scope.share_percent < 100:
        sets += [f"counter {direction}_spared {{ }}" for direction in ("ingress", "egress")]
    return sets


def flow_rules(scope: Scope, direction: str, table: str) -> list[str]:
    """The rules that let packets in scope go, of one direction, that are of no connection or flow that is meant."""
    rules = []
    if scope.connections != "both":
        is_spared = "!= @" if scope.connections == "existing" else "@"
        rules += [f"{connection_key(direction, version)} {is_spared}standing{version} accept" for version in VERSIONS]
    if scope.share_percent < 100:
        rules += _share_rules(direction, lots(scope.share_percent), sha256(table.encode()).digest()[:4].hex())
    return rules


def lots(percent: float) -> int:
    """How many of LOTS are this share."""
    return max(1, round(percent / 100 * LOTS))


def connection_key(direction: str, version: int) -> str:
    """A TCP packet's connection as this host sees it, its own end first."""
    return _key(direction, VERSIONS[version], "tcp")


def connection_set(name: str, version: int, connections: Iterable[Connection], *, is_taken_from: bool = False) -> str:
    """A set of those of one version, by `connection_key`. `is_taken_from`: rules delete from it."""
    keys = [
        f"{one.local} . {one.local_port} . {one.remote} . {one.remote_port}"
        for one in connections
        if one.local.version == version
    ]
    lines = [f"set {name}{version} {{ type ipv{version}_addr . inet_service . ipv{version}_addr . inet_service"]
    if is_taken_from:  # then it wants a size, and takes the memory for it at once
        lines.append(f"flags dynamic; size {max(len(keys), 1)}")
    if keys:
        lines.append(f"elements = {{ {', '.join(keys)} }}")
    return "\n".join([*lines, "}"])


def _share_rules(direction: str, drawn: int, seed: str) -> list[str]:
    """Who has no ports is told by addresses alone."""
    spare = f"mod {LOTS} seed 0x{seed} >= {drawn} counter name {direction}_spared accept"
    rules = []
    for ip in VERSIONS.values():
        own, peer = ("saddr", "daddr") if direction == "egress" else ("daddr", "saddr")
        rules += [
            f"meta l4proto {{ tcp, udp }} jhash {_key(direction, ip, 'th')} {spare}",
            f"meta l4proto != {{ tcp, udp }} jhash {ip} {own} . {ip} {peer} {spare}",
        ]
    return rules


def _key(direction: str, ip: str, transport: str) -> str:
    ends = ("saddr", "sport"), ("daddr", "dport")
    (own, own_port), (peer, peer_port) = ends if direction == "egress" else ends[::-1]
    return f"{ip} {own} . {transport} {own_port} . {ip} {peer} . {transport} {peer_port}"
