"""The nftables rules of a network fault, as text for libnftables. Pure: a scope in, a ruleset out.

One table per fault, and in it::

    set groups      the control groups whose sockets are meant, where only those of one are; the holder puts them there
    set lease       both address families, each with a time-out that is extended with the fault's lease. The kernel lets
                    them expire, and an expired family passes every packet: the effect ends with no process alive
    chain ingress   input hook:  lease over, exempt, not meant -> accept;  meant -> ingress_meant
    chain egress    output hook: the same for packets that leave
    chain *_meant   spares connections and flows that are not meant (network_flows.py); counts the others and does to
                    them what the fault is about, its `Treatment`

What the kernel does for one address family only stands in tables beside it, of the same name.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256

from brownout_agent.faults.network_flows import LOTS, flow_rules, flow_sets, lots
from brownout_agent.faults.network_scope import Network, PortRange, Scope

FAMILY = "inet"
TABLE_PREFIX = "brownout-"
LEASE_MARGIN_MS = 500
"""The lease in the kernel outlasts the injector's timer by this much, so that the orderly way is the usual one."""
_GROUPS = "groups"
_PRIORITY = -300
"""raw: before connection tracking, address translation and any firewall of the host."""

# Without neighbour discovery a host is gone for all peers, not for the ones asked for; without DHCP it may lose its
# address, and be gone for longer than the fault.
_ALWAYS_EXEMPT = (
    "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect } accept",
    "udp dport { 67, 68, 546, 547 } accept",
)
_PROTOCOLS = {"tcp": "tcp", "udp": "udp", "icmp": "icmp, ipv6-icmp", "any": "tcp, udp"}


@dataclass(frozen=True, slots=True)
class Treatment:
    """What a fault does to the packets that it means."""

    rules: Callable[[str], list[str]]
    """The rules of one direction's `*_meant` chain, `ingress` or `egress`. Two counters stand in the table for them:
    `{direction}_seen`, and `{direction}_dropped` for the packets that went no further. What no rule ends goes on.
    """
    sets: tuple[str, ...] = ()
    """Sets that the rules look into and counters of their own, each as it stands in a table."""
    first: Callable[[str], list[str]] = lambda direction: []
    """Rules of one direction that stand before those that say whom the fault means."""
    beside: tuple[tuple[str, Callable[[str], list[str]]], ...] = ()
    """Tables of other families: each a family, and the rules of one direction, of a chain right behind the others."""

    @property
    def families(self) -> tuple[str, ...]:
        """Of all its tables."""
        return (FAMILY, *(family for family, _ in self.beside))


def drawn(percent: float) -> str:
    """The match that this share of the packets meets, each by its own draw, with the blank behind it."""
    wanted = lots(percent)
    return "" if wanted >= LOTS else f"numgen random mod {LOTS} < {wanted} "


def spare(percent: float) -> list[str]:
    """The rules that let all packets go but this share, each by its own draw."""
    wanted = lots(percent)
    return [] if wanted >= LOTS else [f"numgen random mod {LOTS} >= {wanted} accept"]


def drop(percent: float) -> Treatment:
    """Drop this share of the packets, without an answer."""
    return Treatment(
        lambda direction: [f"counter name {direction}_seen", f"{drawn(percent)}counter name {direction}_dropped drop"]
    )


def table_name(fault_id: str) -> str:
    """The fault's own table: `brownout-` and the first twelve hex digits of its id (of its SHA-256 if it has none)."""
    digits = fault_id.replace("-", "").lower()
    if not re.fullmatch(r"[0-9a-f]{12,}", digits):
        digits = sha256(fault_id.encode()).hexdigest()
    return TABLE_PREFIX + digits[:12]


def directions(scope: Scope) -> tuple[str, ...]:
    """The directions in which packets are counted and dropped."""
    return ("ingress", "egress") if scope.direction == "both" else (scope.direction,)


def ruleset(table: str, scope: Scope, treatment: Treatment, *, lease_ms: int, owned: bool, hooked: bool = True) -> str:
    """The tables that give packets in scope this treatment for `lease_ms`.

    With `owned` the kernel deletes them when their maker's connection closes. Without `hooked` no packet ever meets the
    rules, which is a harmless way to see whether this kernel takes them.
    """
    owner = ["flags owner"] if owned else []
    lines = [
        f"table {FAMILY} {table} {{",
        *owner,
        "set lease { type nf_proto; flags timeout",
        f"elements = {leases(lease_ms)}",
        "}",
        *([f"set {_GROUPS} {{ type cgroupsv2\n}}"] if scope.group else []),
        *flow_sets(scope),
        *treatment.sets,
    ]
    for direction in directions(scope):
        lines += [f"counter {direction}_seen {{ }}", f"counter {direction}_dropped {{ }}"]
        meant = [*flow_rules(scope, direction, table), *treatment.rules(direction)]
        lines += [f"chain {direction}_meant {{", *meant, "}"]
        hook = _hook(direction, _PRIORITY) if hooked else []
        lines += [f"chain {direction} {{", *hook, *_chain_rules(scope, direction, treatment.first(direction)), "}"]
    lines.append("}")
    for family, rules in treatment.beside:
        lines += [f"table {family} {table} {{", *owner]
        for direction in directions(scope):
            hook = _hook(direction, _PRIORITY + 1) if hooked else []
            lines += [f"chain {direction} {{", *hook, *rules(direction), "}"]
        lines.append("}")
    return "\n".join([*lines, ""])


def extension(table: str, lease_ms: int) -> str:
    """The commands, one transaction, that let a table work for `lease_ms` from now.

    Adding an element again would not move its time-out. Deleting one that has expired fails, and with it the whole:
    what was over stays over.
    """
    return (
        f"delete element {FAMILY} {table} lease {{ ipv4, ipv6 }}\n"
        f"add element {FAMILY} {table} lease {leases(lease_ms)}\n"
    )


def admission(table: str, group: str) -> str:
    """The command that has the rules of a table meet the sockets of this group as well, an element of its set."""
    return f"add element {FAMILY} {table} {_GROUPS} {{ {group} }}\n"


def admitted(table: str, group: str) -> str:
    """The command that fails where they do not."""
    return f"get element {FAMILY} {table} {_GROUPS} {{ {group} }}\n"


def ending(table: str) -> str:
    """The command that lets a table work no more. It fails when its time is over already."""
    return f"delete element {FAMILY} {table} lease {{ ipv4, ipv6 }}\n"


def removal(table: str, families: Iterable[str]) -> str:
    """The commands, one transaction, that remove the tables of this name. They fail when one is gone already."""
    return "".join(f"delete table {family} {table}\n" for family in families)


def leases(timeout_ms: int) -> str:
    """The elements of a set of address families that forgets both after this time."""
    return f"{{ ipv4 timeout {timeout_ms}ms, ipv6 timeout {timeout_ms}ms }}"


def _hook(direction: str, priority: int) -> list[str]:
    hook = "input" if direction == "ingress" else "output"
    return [f"type filter hook {hook} priority {priority}; policy accept"]


def _chain_rules(scope: Scope, direction: str, first: list[str]) -> list[str]:
    rules = ["meta nfproto != @lease accept", *first, *_ALWAYS_EXEMPT, *_exempt_rules(scope, direction)]
    if not _sees_loopback(scope, direction):
        rules.append(f'{_interface_key(direction)} "lo" accept')
    through = f'{_interface_key(direction)} "{scope.interface}" ' if scope.interface else ""
    # No packet without a socket meets this, whichever way it is compared.
    by = f"socket cgroupv2 level {scope.group.level} @{_GROUPS} " if scope.group else ""
    return rules + [
        f"{through}{peers}{service}{by}goto {direction}_meant"
        for peers in _peer_matches(scope.networks, direction)
        for service in _service_matches(scope)
    ]


def _sees_loopback(scope: Scope, direction: str) -> bool:
    """A loopback packet passes both hooks of this host: with both directions asked, the first one is enough. Not so by
    group, since it has its sender's socket in the one and its receiver's in the other.
    """
    if scope.group is not None:
        return scope.with_loopback
    return scope.with_loopback and direction == ("egress" if scope.direction == "both" else scope.direction)


def _interface_key(direction: str) -> str:
    return "iifname" if direction == "ingress" else "oifname"


def _exempt_rules(scope: Scope, direction: str) -> list[str]:
    side, port_side = ("saddr", "sport") if direction == "ingress" else ("daddr", "dport")
    rules = [
        f"{_ip(network)} {side} {network} " + (f"tcp {port_side} {port} accept" if port else "accept")
        for network, port in scope.exempt_peers
    ]
    if scope.exempt_ports:
        ports = ", ".join(map(str, scope.exempt_ports))
        rules += [f"tcp sport {{ {ports} }} accept", f"tcp dport {{ {ports} }} accept"]
    return rules


def _peer_matches(networks: tuple[Network, ...] | None, direction: str) -> list[str]:
    """One match for each address family that has peers; one empty match for everyone."""
    if networks is None:
        return [""]
    side = "saddr" if direction == "ingress" else "daddr"
    # Collapsed, since the elements of an interval set must not overlap.
    v4 = ipaddress.collapse_addresses(network for network in networks if isinstance(network, ipaddress.IPv4Network))
    v6 = ipaddress.collapse_addresses(network for network in networks if isinstance(network, ipaddress.IPv6Network))
    members = {"ip": ", ".join(map(str, v4)), "ip6": ", ".join(map(str, v6))}
    return [f"{family} {side} {{ {listed} }} " for family, listed in members.items() if listed]


def _service_matches(scope: Scope) -> list[str]:
    if not scope.ports:
        return ["" if scope.protocol == "any" else f"meta l4proto {{ {_PROTOCOLS[scope.protocol]} }} "]
    ports = ", ".join(f"{first}-{last}" if first != last else str(first) for first, last in _merge(scope.ports))
    return [f"meta l4proto {{ {_PROTOCOLS[scope.protocol]} }} th {side} {{ {ports} }} " for side in ("sport", "dport")]


def _ip(network: Network) -> str:
    return "ip" if network.version == 4 else "ip6"


def _merge(ranges: tuple[PortRange, ...]) -> list[PortRange]:
    merged: list[PortRange] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged
