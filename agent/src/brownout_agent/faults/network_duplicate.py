"""`network.duplicate`: packets arrive twice, as from a switch with a loop, a bonded link or a sender that is impatient.

The kernel makes the copies (nft's `dup`), so they need no process of ours and end with the rules. A copy of a packet
that leaves takes the same device to the same peer, in front of the packet itself. A copy of one that arrives is given
to this host through `lo`, just behind it: what listens to one interface only never sees that copy. Each packet is drawn
for, in each direction: with `both` a request and its answer may both come twice.

**A copy is a packet like others**, to other faults (it may be lost, or late; of a packet that is late already, once
more) and to the host's rules, but for three things. Connection tracking leaves it alone: rules that ask for a state see
`untracked`, and address translation on this host passes it by, so that where its packet goes to another address than
the program wrote (a Kubernetes service), the copy goes to the one that was written. It belongs to no socket, so that no
rule knows its user. And it carries a mark.

**Marks.** Rules of one table tell those of another one by the upper half of a packet's mark (`meta mark`) that it is to
be copied; the packet itself has its own mark back before rules of a later priority see it. Packets whose upper half is
in use already, by others, are neither copied nor counted. Copies are not copied again: of two such faults that mean one
packet, one has it.

What counts as a packet is what passes the host's input and output hooks: a burst that the network card splits or merges
(TSO, GRO) is one, and is copied as one. Of packets that arrive those for an address of this host are meant, not
broadcasts.
"""

import random
from functools import partial
from typing import Annotated

from pydantic import Field

from brownout_agent.faults.contract import Effect, Host, Meter, Percent, Record
from brownout_agent.faults.network_rules import Treatment, drawn
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_share import judge_share
from brownout_agent.faults.network_table import NetworkFault, PacketMeter

_OURS = 0xFFFF_0000
"""The part of a mark that is ours: fourteen bits of the fault's own, and two that say what the packet is."""
_REST = 0x0000_FFFF
_TAG_BITS, _TAG_AT, _STATE_AT = 14, 18, 16
_TO_COPY, _COPY = 1, {"egress": 2, "ingress": 3}
_ADDRESS = {"ip": "ip daddr", "ip6": "ip6 daddr"}


class DuplicateParameters(NetworkParameters):
    """How many of which packets come twice."""

    percent: Annotated[
        Percent, Field(description="share of packets that come twice, in each direction; above 0 and up to 100")
    ]


def copy(percent: float, tag: int) -> Treatment:
    """Copy this share of the packets. `tag`, of fourteen bits and not 0, tells these copies from others'."""

    def mark(state: int) -> str:
        return f"{tag << _TAG_AT | state << _STATE_AT:#x}"

    def count_copies(direction: str) -> list[str]:
        return [f"meta mark & {_OURS:#x} == {mark(_COPY[direction])} counter name {direction}_copied accept"]

    def draw(direction: str) -> list[str]:
        # What arrives for somebody else (broadcasts, transparent proxies) would be sent there by the kernel.
        addressed = ["fib daddr type != local accept"] if direction == "ingress" else []
        return [
            f"meta mark & {_OURS:#x} != 0 accept",
            *addressed,
            f"counter name {direction}_seen",
            f"{drawn(percent)}meta mark set meta mark & {_REST:#x} | {mark(_TO_COPY)}",
        ]

    def copy_drawn(address: str, direction: str) -> list[str]:
        device = " device oif" if direction == "egress" else ""
        return [
            f"meta mark & {_OURS:#x} == {mark(_TO_COPY)} "
            f"meta mark set meta mark & {_REST:#x} | {mark(_COPY[direction])} "
            f"dup to {address}{device} "
            f"meta mark set meta mark & {_REST:#x}"
        ]

    return Treatment(
        draw,
        sets=tuple(f"counter {direction}_copied {{ }}" for direction in _COPY),
        first=count_copies,
        beside=tuple((family, partial(copy_drawn, address)) for family, address in _ADDRESS.items()),
    )


class NetworkDuplicate(NetworkFault[DuplicateParameters]):
    """Has the kernel copy packets."""

    kind = "network.duplicate"
    summary = "Let a percentage of the packets to and from peers, ports or everyone arrive twice."
    Parameters = DuplicateParameters
    needs = (*NetworkFault.needs, "CONFIG_NFT_FIB_INET", "CONFIG_NFT_DUP_IPV4", "CONFIG_NFT_DUP_IPV6")

    def tried(self) -> Treatment:
        return copy(50, 1)

    def treatment(self, parameters: DuplicateParameters, scope: Scope) -> Treatment:
        return copy(parameters.percent, random.randrange(1, 2**_TAG_BITS))  # noqa: S311 - no secret

    def measure(self, record: Record[DuplicateParameters], host: Host) -> Meter:
        return _CopyMeter(record)


class _CopyMeter(PacketMeter):
    """Counts copies where they pass the hook of their direction as packets of their own."""

    def __init__(self, record: Record[DuplicateParameters]) -> None:
        super().__init__(record)
        self._percent = record.parameters.percent

    def judged(self) -> Effect:
        seen = sum(count.seen for count in self.counts.values())
        copied = sum(self.counters.get(f"{direction}_copied", 0) for direction in self.counts)
        return judge_duplicate(self._percent, self.scope, seen, copied)


def judge_duplicate(percent: float, scope: Scope, seen: int, copied: int) -> Effect:
    """Proved when the share that was asked for explains how many copies were met. Pure."""
    counted = f"the kernel met copies of {copied} of {seen} packets ({scope.text})"
    return judge_share(percent, scope, seen, copied, counted)
