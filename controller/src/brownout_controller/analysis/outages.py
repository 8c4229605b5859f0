"""Outages of one series of samples, as intervals with their uncertainty.

A sample counts at the time at which it was *sent*: what a user who came then experienced. So an outage lasts from the
sending of the first request that failed to the sending of the first one after it that was answered::

      ok    ok   FAIL  FAIL  FAIL   ok    ok
            |     |<- shortest ->|  |
            |     |<-- duration --->|
            |<------- longest ----->|

Whatever the phase of the sampling, the true outage is no shorter than `shortest` and no longer than `longest`.
"""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import groupby, pairwise

from brownout_controller.analysis.coverage import gaps, is_gap
from brownout_controller.analysis.interval import Interval
from brownout_controller.record import Series

NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Outage:
    """One contiguous stretch of failed requests, as one probe saw it from one vantage."""

    probe: str
    vantage: str
    begun_ns: int
    """First failed request sent."""
    ended_ns: int
    """First answered request after it sent; of an open outage, the last failed one."""
    open: bool
    """It had not ended when observation did."""
    shortest_ns: int
    longest_ns: float
    """Infinite for an open outage."""
    failures: int
    outcomes: tuple[tuple[str, int], ...]
    """What failed requests came back with and how often, most frequent first."""

    @property
    def duration_ms(self) -> Interval:
        """How long it lasted."""
        value = self.ended_ns - self.begun_ns
        return Interval(float(value), float(self.shortest_ns), self.longest_ns).scaled(1 / NS_PER_MS)


def find_outages(series: Series, span: tuple[int, int]) -> tuple[Outage, ...]:
    """Every outage of the series, in order. `span` is when observation had to be under way (ns)."""
    runs = [(ok, list(indexes)) for ok, indexes in groupby(range(len(series.ok)), key=lambda i: series.ok[i])]
    return tuple(_outage(series, span, indexes) for ok, indexes in runs if not ok)


def worst_outage_ms(series: Series, span: tuple[int, int]) -> Interval:
    """The longest outage. Between any two samples one may hide, so without any the upper bound is not zero."""
    outages = find_outages(series, span)
    found = [outage.duration_ms for outage in outages]
    steps = [later - earlier for earlier, later in pairwise(series.sent_ns)]
    hidden_ns = max(steps + [gap.length_ns for gap in gaps(series, span)], default=series.every_ns)
    return Interval(
        max((one.value for one in found), default=0.0),
        max((one.low for one in found), default=0.0),
        max([one.high for one in found] + [hidden_ns / NS_PER_MS]),
    )


def _outage(series: Series, span: tuple[int, int], indexes: list[int]) -> Outage:
    first, last = indexes[0], indexes[-1]
    sent = series.sent_ns
    still_open = last + 1 == len(sent)
    last_ok_before = sent[first - 1] if first > 0 else min(span[0], sent[first])
    ended_ns = sent[last] if still_open else sent[last + 1]
    return Outage(
        probe=series.probe,
        vantage=series.vantage.name,
        begun_ns=sent[first],
        ended_ns=ended_ns,
        open=still_open,
        shortest_ns=_longest_unbroken(series, indexes),
        longest_ns=math.inf if still_open else float(ended_ns - last_ok_before),
        failures=len(indexes),
        outcomes=tuple(Counter(series.outcome[i] for i in indexes).most_common()),
    )


def _longest_unbroken(series: Series, indexes: list[int]) -> int:
    """Between failures that are too far apart the service may have been well: only unbroken stretches are certain."""
    longest, begun = 0, series.sent_ns[indexes[0]]
    for earlier, later in pairwise(indexes):
        if _may_hide_an_answer(series, series.sent_ns[earlier], series.sent_ns[later]):
            begun = series.sent_ns[later]
        longest = max(longest, series.sent_ns[later] - begun)
    return longest


def _may_hide_an_answer(series: Series, earlier_ns: int, later_ns: int) -> bool:
    # Where the prober admits to missed due times, even one of them between two failures may have been a success.
    one_missing = series.missed > 0 and later_ns - earlier_ns > 1.5 * series.every_ns
    return one_missing or is_gap(series, earlier_ns, later_ns)
