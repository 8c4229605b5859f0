"""What each metric of an expectation about a watcher comes to, with its uncertainty and evidence."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from brownout_controller.analysis.anatomy import Anatomy, injected, noticed
from brownout_controller.analysis.interval import at_least, exactly
from brownout_controller.analysis.marks import Mark, MarkName, NotSeen, between_ms
from brownout_controller.analysis.outages import NS_PER_MS
from brownout_controller.analysis.periods import FaultPeriod, fault_periods
from brownout_controller.analysis.probe_metrics import Measurement
from brownout_controller.analysis.watched import StateChange, state_changes, watcher_failures
from brownout_controller.analysis.wording import counted, estimate
from brownout_controller.record import RunRecord


@dataclass(frozen=True, slots=True)
class WatchEvidence:
    """Everything that a metric of one watcher may read."""

    record: RunRecord
    watcher: str
    anatomies: tuple[Anatomy, ...]
    """Of the whole run."""

    @property
    def changes(self) -> tuple[StateChange, ...]:
        """Everything that this watcher saw, first looks included."""
        return tuple(change for change in state_changes(self.record) if change.watcher == self.watcher)


def measure_watcher(metric: str, evidence: WatchEvidence) -> Measurement:
    """What the metric (a watcher's, of `language.expectations.METRICS`) comes to."""
    if not evidence.changes:
        return Measurement(None, "the watcher never saw its system")
    return _METRICS[metric](evidence)


def _changes(evidence: WatchEvidence) -> Measurement:
    """Of several hosts that watch the same, the one that saw most decides."""
    seen = Counter(change.host for change in evidence.changes if not change.is_first_look)
    count = max(seen.values(), default=0)
    blind = watcher_failures(evidence.record, evidence.watcher)
    if blind or any("unreadable" in {change.before, change.after} for change in evidence.changes):
        return Measurement(at_least(count), f"{counted(count, 'change')}; the system was unreadable at times")
    return Measurement(exactly(count), counted(count, "change"))


def _time_to_detect(evidence: WatchEvidence) -> Measurement:
    """The slowest detection over all faults."""
    periods = fault_periods(evidence.record)
    if not periods:
        return Measurement(None, "no fault was in effect, so there was nothing to detect")
    measured = [_detection(evidence, period) for period in periods]
    return next((one for one in measured if one.interval is None), None) or _slowest(measured)


def _detection(evidence: WatchEvidence, period: FaultPeriod) -> Measurement:
    start, seen = injected(period), noticed(period, evidence.changes)
    if isinstance(seen, Mark):
        interval = between_ms(start, seen)
        return Measurement(interval, f"{estimate(interval, 'ms')}, {seen.source}")
    if seen.until_ns is None or watcher_failures(evidence.record, evidence.watcher):
        return Measurement(None, f"{evidence.watcher} could not be read while {period.name} was in effect")
    interval = at_least((seen.until_ns - start.at_ns) / NS_PER_MS)
    return Measurement(interval, f"not detected: {seen.reason}")


def _time_to_failover(evidence: WatchEvidence) -> Measurement:
    """The slowest over all faults and over all vantages that see who answers; without any, as the watcher has it."""
    seen = [(one, one.mark(MarkName.MOVED), one.duration("time_to_failover").ms) for one in evidence.anatomies]
    if not seen:
        return Measurement(None, "no fault was in effect, so there was nothing to fail over from")
    measured = [
        Measurement(
            interval, f"{estimate(interval, 'ms')}, {moved.source if isinstance(moved, Mark) else moved.reason}"
        )
        for _, moved, interval in seen
        if interval is not None
    ]
    if not measured:
        return Measurement(None, next(moved.reason for _, moved, _ in seen if isinstance(moved, NotSeen)))
    return _slowest(measured)


def _slowest(measured: list[Measurement]) -> Measurement:
    return max(measured, key=lambda one: (one.interval.low, one.interval.high) if one.interval else (0.0, 0.0))


_METRICS: dict[str, Callable[[WatchEvidence], Measurement]] = {
    "changes": _changes,
    "time_to_detect": _time_to_detect,
    "time_to_failover": _time_to_failover,
}
