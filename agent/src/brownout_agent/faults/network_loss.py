"""`network.loss`: a share of the packets vanishes, each by its own draw, as on a bad cable or a full queue.

Each direction loses `percent` of its packets: with `direction: both` a request and its answer both arrive with
probability (1 - percent/100)^2. The kernel draws (`numgen random`), so a run's seed does not repeat which packets go.
What counts as a packet is what passes the host's input and output hooks: a burst that the network card splits or
merges (TSO, GRO) is one. A packet that leaves is dropped where the kernel tells its own sender: UDP gets EPERM, and
TCP sends again without waiting for a time-out, so a flow is slowed down less than by loss on the wire. Use
`direction: ingress` on the peer for that.

With `burst` losses come in rows, as on a radio link or a queue that overflows: each direction, and in it each of IPv4
and IPv6, is a chain of two states (E. N. Gilbert, Bell System Technical Journal 39 (1960) 1253-1265; `loss gemodel p r`
of netem). In the bad one every packet is lost; it is left with the probability r = 1/burst before each packet,
and entered with p, so that the share p/(p+r) that was asked is lost on the whole.
"""

import math
from functools import partial
from statistics import NormalDist
from typing import Annotated, Self

from pydantic import Field, model_validator

from brownout_agent.faults.contract import Effect, Host, Meter, Percent, Record
from brownout_agent.faults.network_rules import Treatment, drawn, drop
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_share import judge_share
from brownout_agent.faults.network_table import CountMeter, NetworkFault, PacketCounts, PacketMeter

LONGEST_BURST = 10_000
_BURSTS_NEEDED = 10
"""Below so many nearly any length and share would be explained."""
_MISS = 0.0005
"""Of share and length together a true one is called unproved in one run of a thousand."""
_MOST_A_SECOND = 65_535
"""Elements that a set may have: one for each burst, until the kernel clears away once a second."""


class LossParameters(NetworkParameters):
    """How many of which packets vanish."""

    percent: Annotated[Percent, Field(description="share of packets lost, in each direction; above 0 and up to 100")]
    burst: float | None = Field(
        None, ge=1, le=LONGEST_BURST, description="how many in a row are lost in the mean; default each by its own draw"
    )

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.burst is not None and self.percent > (most := 100 * self.burst / (self.burst + 1)):
            raise ValueError(f"bursts of {self.burst:g} lose {most:.4g} % at most, with one packet between two")
        return self


class NetworkLoss(NetworkFault[LossParameters]):
    """Drops a share of the packets that are meant."""

    kind = "network.loss"
    summary = "Lose a percentage of the packets to and from peers, ports or everyone."
    Parameters = LossParameters

    def treatment(self, parameters: LossParameters, scope: Scope) -> Treatment:
        if parameters.burst is None:
            return drop(parameters.percent)
        return drop_in_bursts(parameters.percent, parameters.burst)

    def measure(self, record: Record[LossParameters], host: Host) -> Meter:
        if record.parameters.burst is None:
            return CountMeter(record, partial(judge_loss, record.parameters.percent))
        return _BurstMeter(record, record.parameters.percent, record.parameters.burst)


def drop_in_bursts(percent: float, burst: float) -> Treatment:
    """Drop this share of the packets, so many in a row in the mean: while their family stands in the set `bad_*`."""
    leaves, enters = 100 / burst, min(100.0, percent / (100 - percent) * 100 / burst)

    def rules(direction: str) -> list[str]:
        state = f"@bad_{direction}"
        return [
            f"counter name {direction}_seen",
            f"meta nfproto {state} {drawn(leaves)}delete {state} {{ meta nfproto }} accept",
            f"meta nfproto {state} counter name {direction}_dropped drop",
            f"{drawn(enters)}counter name {direction}_bursts counter name {direction}_dropped "
            f"add {state} {{ meta nfproto }} drop",
        ]

    each = ("ingress", "egress")
    states = [f"set bad_{one} {{ type nf_proto; size {_MOST_A_SECOND}; flags dynamic\n}}" for one in each]
    return Treatment(rules, (*states, *(f"counter {one}_bursts {{ }}" for one in each)))


class _BurstMeter(PacketMeter):
    """Beside the packets, the kernel counts how often a burst began."""

    def __init__(self, record: Record[LossParameters], percent: float, burst: float) -> None:
        super().__init__(record)
        self._percent, self._burst = percent, burst

    def judged(self) -> Effect:
        bursts = sum(self.counters.get(f"{direction}_bursts", 0) for direction in self.counts)
        return judge_bursts(self._percent, self._burst, self.scope, self.counts, bursts)


def judge_loss(percent: float, scope: Scope, counts: dict[str, PacketCounts]) -> Effect:
    """Proved when the share that was asked for explains what was dropped. Pure."""
    seen = sum(count.seen for count in counts.values())
    dropped = sum(count.dropped for count in counts.values())
    return judge_share(percent, scope, seen, dropped, f"the kernel dropped {dropped} of {seen} packets ({scope.text})")


def judge_bursts(percent: float, burst: float, scope: Scope, counts: dict[str, PacketCounts], bursts: int) -> Effect:
    """Proved when share and length that were asked for explain what was dropped, in so many bursts. Pure.

    Losses of a chain go with d = 1 - p - r from one packet to the next (their correlation), so that n packets tell as
    much of the share as n (1-d)/(1+d) that are drawn by themselves. Lengths are geometric, with the deviation
    sqrt(burst (burst-1)).
    """
    unit = "% of packets"
    seen = sum(count.seen for count in counts.values())
    dropped = sum(count.dropped for count in counts.values())
    if not seen:
        return Effect(percent, None, unit, False, f"no packet matched: nobody talked to {scope.text} during the fault")
    share = 100 * dropped / seen
    text = f"the kernel dropped {dropped} of {seen} packets in {bursts} bursts ({scope.text})"
    if bursts < _BURSTS_NEEDED:
        return Effect(percent, share, unit, False, f"{text}; too few to prove anything, which takes {_BURSTS_NEEDED}")
    z = NormalDist().inv_cdf(1 - _MISS / 2)
    likeness = 1 - 1 / burst - percent / (100 - percent) / burst
    alike = (1 + likeness) / (1 - likeness)
    off_percent = z * math.sqrt(percent * (100 - percent) / seen * alike) + 100 / seen
    length, off_length = dropped / bursts, z * math.sqrt(burst * (burst - 1) / bursts) + 1 / bursts
    is_share, is_length = abs(share - percent) <= off_percent, abs(length - burst) <= off_length
    where = ["inside" if inside else "outside" for inside in (is_share, is_length)]
    text += (
        f"; {percent:g} % lies {where[0]} {share:.3g} +- {off_percent:.2g} %, and bursts of {burst:g} lie {where[1]} "
        f"{length:.3g} +- {off_length:.2g} packets"
    )
    return Effect(percent, share, unit, is_share and is_length, text)
