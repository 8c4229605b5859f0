"""What was not observed. Silence of a prober is unknown: never counted as good, and it widens every bound."""

from dataclasses import dataclass
from itertools import pairwise

from brownout_controller.record import RunRecord, Series

GAP_INTERVALS = 2.5
"""Two samples further apart than this many probe intervals have a gap between them."""
EDGE_TOLERANCE_NS = 2_000_000_000
"""Probers are not started and stopped at one instant: up to this much at either edge of a run is not called silence."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Nothing is known between `begun_ns` (the last sample before) and `ended_ns` (the first one after)."""

    begun_ns: int
    ended_ns: int

    @property
    def length_ns(self) -> int:
        """How long nothing was known."""
        return self.ended_ns - self.begun_ns


def observed_span(record: RunRecord) -> tuple[int, int]:
    """When observation had to be under way: from the first sample of any prober to the last, all faults included."""
    sent = [t for series in record.series if series.sent_ns for t in (series.sent_ns[0], series.sent_ns[-1])]
    begun = [fault.active_ns for fault in record.faults if fault.active_ns is not None]
    ended = [fault.ended_ns for fault in record.faults if fault.ended_ns is not None]
    times = sent + begun + ended
    return (min(times), max(times)) if times else (record.started_ns, record.ended_ns)


def is_gap(series: Series, earlier_ns: int, later_ns: int) -> bool:
    """Whether two samples sent at these times, one after the other, are too far apart to speak for the time between."""
    return later_ns - earlier_ns > GAP_INTERVALS * series.every_ns


def gaps(series: Series, span: tuple[int, int]) -> tuple[Gap, ...]:
    """Every stretch of `span` (begin and end, ns) in which this series is silent for too long, in order."""
    begin_ns, end_ns = span
    if not series.sent_ns:
        return (Gap(begin_ns, end_ns),) if end_ns > begin_ns else ()
    inner = tuple(Gap(earlier, later) for earlier, later in pairwise(series.sent_ns) if is_gap(series, earlier, later))
    tolerance = max(GAP_INTERVALS * series.every_ns, EDGE_TOLERANCE_NS)
    first, last = series.sent_ns[0], series.sent_ns[-1]
    before = (Gap(begin_ns, first),) if first - begin_ns > tolerance else ()
    after = (Gap(last, end_ns),) if end_ns - last > tolerance else ()
    return before + inner + after


def unknown_count(series: Series, span: tuple[int, int]) -> int:
    """How many answers are missing: due times the prober missed, or that fall into gaps, whichever is more."""
    in_gaps = sum(max(0, round(gap.length_ns / series.every_ns) - 1) for gap in gaps(series, span))
    return max(series.missed, in_gaps)
