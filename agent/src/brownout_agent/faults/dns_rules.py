"""The nftables rules of a DNS fault, as text for libnftables. Pure.

One table per fault, and in it::

    set lease       as in the table of a network fault: over for good when it is not renewed, whoever is dead or stopped
    chain asked     output hook: lease over, exempt user -> accept; port 53 -> counted, queued
    chain queued    hands over to the packet queue that the holder listens to; nobody there -> on its way
    chain passed    output hook, behind it: counts the queries that are still on their way
    chain answered  input hook: counts the holder's answers as they reach who asked, by the rcode that they carry
"""

from collections.abc import Iterable

from brownout_agent.faults.network_rules import FAMILY, leases

QUEUED = "queued"
"""The chain that has no rule yet: the one that hands over to the queue."""
MARK = 0x62726F77
"""On the holder's answers, never on a packet of others: what leaves the queue untouched keeps its own mark."""
_ASKS = ("udp dport 53", "tcp dport 53 tcp flags & psh == psh")
"""Packets that carry a query; the others of TCP are queued as well, but not counted."""


def ruleset(
    table: str, exempt_uids: Iterable[int], rcode: int, *, lease_ms: int, owned: bool, hooked: bool = True
) -> str:
    """The table, for `lease_ms`. Answers are counted that have this `rcode`.

    With `owned` the kernel deletes it when its maker's connection closes. Without `hooked` no packet ever meets the
    rules, which is a harmless way to see whether this kernel takes them.
    """
    uids = ", ".join(map(str, sorted(exempt_uids)))
    # A socket that the kernel itself closes has no user any more: its packets are queued, and let pass there.
    unmeant = ["meta nfproto != @lease accept", *([f"meta skuid {{ {uids} }} accept"] if uids else [])]
    answers = [f"meta mark {MARK} udp sport 53 @th,92,4 {rcode} counter name answered"]  # the last 4 bits of its flags
    answers.append(f"meta mark {MARK} tcp sport 53 tcp flags & psh == psh counter name answered")
    chains = {
        # Priority -300 (raw): before connection tracking, so that nothing is tracked that never was sent.
        "asked": [
            *_hook("output", -300, hooked),
            *unmeant,
            *(f"{ask} counter name asked" for ask in _ASKS),
            f"udp dport 53 goto {QUEUED}",
            f"tcp dport 53 goto {QUEUED}",
        ],
        "passed": [*_hook("output", -299, hooked), *unmeant, *(f"{ask} counter name passed" for ask in _ASKS)],
        "answered": [*_hook("input", -300, hooked), *answers],
    }
    lines = [
        f"table {FAMILY} {table} {{",
        *(["flags owner"] if owned else []),
        "set lease { type nf_proto; flags timeout",
        f"elements = {leases(lease_ms)}",
        "}",
        *(f"counter {name} {{ }}" for name in chains),
        f"chain {QUEUED} {{ }}",
    ]
    for name, rules in chains.items():
        lines += [f"chain {name} {{", *rules, "}"]
    return "\n".join([*lines, "}", ""])


def _hook(hook: str, priority: int, hooked: bool) -> list[str]:
    return [f"type filter hook {hook} priority {priority}; policy accept"] if hooked else []
