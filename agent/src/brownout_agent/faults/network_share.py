"""Whether the share of packets that was asked for explains what was counted. Pure."""

import math
from statistics import NormalDist

from brownout_agent.faults.contract import Effect
from brownout_agent.faults.network_scope import Scope

CONFIDENCE = 0.999
"""A true share is called unproved in one run of a thousand."""
_HITS_EXPECTED = 5
"""Below so many expected hits an interval would contain nearly everything and prove nothing."""


def judge_share(percent: float, scope: Scope, seen: int, hit: int, counted: str) -> Effect:
    """Of `seen` packets so many were `hit`, which `counted` says in words. Proved when the asked share lies inside the
    Wilson interval of that, over enough packets.
    """
    unit = "% of packets"
    if not seen:
        return Effect(percent, None, unit, False, f"no packet matched: nobody talked to {scope.text} during the fault")
    achieved = 100 * hit / seen
    needed = math.ceil(_HITS_EXPECTED / (percent / 100))
    if seen < needed:
        why = f"{counted}: only {seen} packets seen, too few to prove {percent:g} %, which takes {needed}"
        return Effect(percent, achieved, unit, False, why)
    lowest, highest = (100 * bound for bound in wilson_interval(hit, seen, CONFIDENCE))
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
