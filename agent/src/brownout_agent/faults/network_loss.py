"""`network.loss`: a share of the packets vanishes, each by its own draw, as on a bad cable or a full queue.

Each direction loses `percent` of its packets: with `direction: both` a request and its answer both arrive with
probability (1 - percent/100)^2. The kernel draws (`numgen random`), so a run's seed does not repeat which packets go.
What counts as a packet is what passes the host's input and output hooks: a burst that the network card splits or
merges (TSO, GRO) is one. A packet that leaves is dropped where the kernel tells its own sender: UDP gets EPERM, and
TCP sends again without waiting for a time-out, so a flow is slowed down less than by loss on the wire. Use
`direction: ingress` on the peer for that.
"""

import math
from functools import partial
from statistics import NormalDist
from typing import Annotated

from pydantic import Field

from brownout_agent.faults.contract import Effect, Host, Meter, Percent, Record
from brownout_agent.faults.network_rules import LOTS, Treatment, drop
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_table import CountMeter, NetworkFault, PacketCounts

CONFIDENCE = 0.999
"""A true loss is called unproved in one run of a thousand."""
_LOSSES_EXPECTED = 5
"""Below so many expected losses an interval would contain nearly everything and prove nothing."""


class LossParameters(NetworkParameters):
    """How many of which packets vanish."""

    percent: Annotated[Percent, Field(description="share of packets lost, in each direction; above 0 and up to 100")]


class NetworkLoss(NetworkFault[LossParameters]):
    """Drops a share of the packets that are meant."""

    kind = "network.loss"
    summary = "Lose a percentage of the packets to and from peers, ports or everyone."
    Parameters = LossParameters

    def treatment(self, parameters: LossParameters, scope: Scope) -> Treatment:
        return drop(lots_lost(parameters.percent))

    def measure(self, record: Record[LossParameters], host: Host) -> Meter:
        return CountMeter(record, partial(judge_loss, record.parameters.percent))


def lots_lost(percent: float) -> int:
    """How many of LOTS packets are dropped."""
    return max(1, round(percent / 100 * LOTS))


def judge_loss(percent: float, scope: Scope, counts: dict[str, PacketCounts]) -> Effect:
    """Proved when the asked share lies inside the Wilson interval of what was counted, over enough packets."""
    seen = sum(count.seen for count in counts.values())
    dropped = sum(count.dropped for count in counts.values())
    unit = "% of packets"
    if not seen:
        return Effect(percent, None, unit, False, f"no packet matched: nobody talked to {scope.text} during the fault")
    achieved = 100 * dropped / seen
    needed = math.ceil(_LOSSES_EXPECTED / (percent / 100))
    counted = f"the kernel dropped {dropped} of {seen} packets ({scope.text})"
    if seen < needed:
        why = f"{counted}: only {seen} packets seen, too few to prove {percent:g} %, which takes {needed}"
        return Effect(percent, achieved, unit, False, why)
    lowest, highest = (100 * bound for bound in wilson_interval(dropped, seen, CONFIDENCE))
    inside = lowest <= percent <= highest
    why = f"{counted}; {percent:g} % lies {'inside' if inside else 'outside'} the {100 * CONFIDENCE:g} % interval"
    return Effect(percent, achieved, unit, inside, f"{why} {lowest:.3g}-{highest:.3g} %")


def wilson_interval(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share, both bounds in 0-1 (E. B. Wilson, JASA 22 (1927) 209-212)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / trials
    middle = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z * z / trials
    # At 0 and at all hits a bound is exactly 0 or 1; rounding must not push it inside.
    return (
        0.0 if hits == 0 else max(0.0, (middle - spread) / scale),
        1.0 if hits == trials else min(1.0, (middle + spread) / scale),
    )
