"""Whether the share that was asked for explains what was counted. Pure."""

import math
from statistics import NormalDist

from brownout_agent.faults.contract import Effect
from brownout_agent.faults.network_scope import Scope

_CONFIDENCE = 0.999
"""A true share is called unproved in one run of a thousand."""
_HITS_EXPECTED = 5
"""Below so many expected hits an interval would contain nearly everything and prove nothing."""


def judge_share(percent: float, scope: Scope, seen: int, hit: int, counted: str) -> Effect:
    """Of `seen` packets so many were `hit`, which `counted` says. Proved when the share that was asked explains it."""
    unit = "% of packets"
    if not seen:
        return Effect(percent, None, unit, False, f"no packet matched: nobody talked to {scope.text} during the fault")
    is_explained, why = explains(percent, hit, seen)
    return Effect(percent, 100 * hit / seen, unit, is_explained, f"{counted}; {why}")


def explains(percent: float, hits: int, trials: int) -> tuple[bool, str]:
    """Whether this share, each drawn by itself, explains so many hits, and why, in words: by the Wilson interval."""
    needed = math.ceil(_HITS_EXPECTED / (percent / 100))
    if trials < needed:
        return False, f"too few to prove {percent:g} %, which takes {needed}"
    lowest, highest = (100 * bound for bound in wilson_interval(hits, trials, _CONFIDENCE))
    is_inside = lowest <= percent <= highest
    where = f"{percent:g} % lies {'inside' if is_inside else 'outside'} the {100 * _CONFIDENCE:g} % interval"
    return is_inside, f"{where} {lowest:.3g}-{highest:.3g} %"


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
