"""The anatomy of a failover: injected, first user error, noticed, moved, steady, undone, failed back.

One anatomy speaks of one fault as one probe saw it from one vantage. Every mark carries its uncertainty and its
source; a mark that was not seen says why. No user error at all, since a load balancer hid the fault, is good news and
is said as such.
"""

from dataclasses import dataclass, replace

from brownout_controller.analysis.coverage import observed_span
from brownout_controller.analysis.identity import Move, answered_ns, find_move
from brownout_controller.analysis.interval import Interval, at_least
from brownout_controller.analysis.marks import Mark, MarkName, NotSeen, between_ms
from brownout_controller.analysis.outages import NS_PER_MS
from brownout_controller.analysis.periods import FaultPeriod, fault_periods
from brownout_controller.analysis.watched import StateChange, state_changes
from brownout_controller.analysis.wording import duration
from brownout_controller.record import RunRecord, Series, Vantage

STEADY_ANSWERS = 3
"""A service is steady again from a success on that this many answers, and no failure, follow up to the fault's end."""

NOTABLY_SLOWER = 3.0
"""A fault that failed no request may still have been felt: it is noted from so many times the slowest answer before."""

_NO_SERIES = Series("", Vantage(""), 1, (), (), (), (), ())


@dataclass(frozen=True, slots=True)
class Duration:
    """The time between two marks; None with the reason where one of them is missing."""

    name: str
    ms: Interval | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What one fault did, as one probe saw it from one vantage."""

    fault: str
    hosts: tuple[str, ...]
    probe: str
    vantage: str
    """Probe and vantage are empty in a run without probes."""
    marks: tuple[Mark | NotSeen, ...]
    """One of each name, in the names' order."""
    notes: tuple[str, ...] = ()
    """What a reader has to know before trusting it."""

    def mark(self, name: MarkName) -> Mark | NotSeen:
        """The mark of this name, seen or not."""
        return next(mark for mark in self.marks if mark.name is name)

    @property
    def durations(self) -> tuple[Duration, ...]:
        """time_to_detect, time_to_failover, recovery and failback, in this order."""
        return (
            self._duration("time_to_detect", MarkName.INJECTED, MarkName.NOTICED),
            self._duration("time_to_failover", MarkName.INJECTED, MarkName.MOVED),
            self._duration("recovery", MarkName.FIRST_USER_ERROR, MarkName.STEADY),
            self._duration("failback", MarkName.UNDONE, MarkName.FAILED_BACK),
        )

    def duration(self, name: str) -> Duration:
        """The duration of this name."""
        return next(duration for duration in self.durations if duration.name == name)

    def _duration(self, name: str, first: MarkName, then: MarkName) -> Duration:
        earlier, later = self.mark(first), self.mark(then)
        if isinstance(earlier, NotSeen):
            return Duration(name, None, earlier.reason)
        if isinstance(later, Mark):
            return Duration(name, between_ms(earlier, later))
        if later.until_ns is None:
            return Duration(name, None, later.reason)
        return Duration(name, at_least(max(0, later.until_ns - earlier.at_ns) / NS_PER_MS), later.reason)


def find_anatomies(record: RunRecord) -> tuple[Anatomy, ...]:
    """An anatomy of every fault that was in effect, for every probe and vantage, in order of injection."""
    changes = state_changes(record)
    _, end_ns = observed_span(record)
    return tuple(
        _anatomy(period, series, changes, end_ns)
        for period in fault_periods(record)
        for series in record.series or (_NO_SERIES,)
    )


def injected(period: FaultPeriod) -> Mark:
    """The mark from which detection and failover are counted."""
    source = f"agent {period.clock}: {period.kind} in effect"
    return Mark(MarkName.INJECTED, period.injected_ns, source, clock=period.clock, clock_error_ns=period.clock_error_ns)


def noticed(period: FaultPeriod, changes: tuple[StateChange, ...]) -> Mark | NotSeen:
    """The first change for the worse that a watcher saw of this fault; `changes` are all of the watchers' in question.

    Changes that name one of the fault's hosts (`shop/app-1`) win over others.
    """
    worse = _about(period, [change for change in changes if change.is_worse])
    if worse:
        return _change_mark(MarkName.NOTICED, worse[0])
    if not changes:
        return NotSeen(MarkName.NOTICED, "no watcher: add `watch` to see the system's own view of its health")
    reason = "no watched system reported a change for the worse while the fault was in effect"
    return NotSeen(MarkName.NOTICED, reason, period.undo_begun_ns)


def _anatomy(period: FaultPeriod, series: Series, changes: tuple[StateChange, ...], end_ns: int) -> Anatomy:
    seen = noticed(period, changes)
    start = injected(period)
    move = find_move(series, period)
    marks = (
        start,
        _first_user_error(series, period, start.earliest_ns),
        seen,
        _moved(series, period, move, seen),
        _steady(series, period, start.earliest_ns),
        _undone(period, end_ns),
        _failed_back(series, period, move, changes),
    )
    return Anatomy(period.name, period.hosts, series.probe, series.vantage.name, marks, _notes(series, period))


def _notes(series: Series, period: FaultPeriod) -> tuple[str, ...]:
    notes = []
    before = _slowest_ms(series, period.window_begin_ns, period.injected_ns)
    during = _slowest_ms(series, period.injected_ns, period.undo_begun_ns)
    if before is not None and during is not None and during > NOTABLY_SLOWER * before:
        notes.append(
            f"answers took up to {duration(during)} while the fault was in effect, {duration(before)} before it"
        )
    if period.overlaps:
        others = ", ".join(period.overlaps)
        notes.append(f"{others} was in effect at the same time: what is seen here may be its doing")
    return tuple(notes)


def _slowest_ms(series: Series, begin_ns: int, end_ns: int) -> float | None:
    """The slowest answer to a request sent within [begin_ns, end_ns); None without any."""
    took = (
        series.took_ns[i] / NS_PER_MS
        for i, sent_ns in enumerate(series.sent_ns)
        if series.ok[i] and begin_ns <= sent_ns < end_ns
    )
    return max(took, default=None)


def _first_user_error(series: Series, period: FaultPeriod, since_ns: int) -> Mark | NotSeen:
    name = MarkName.FIRST_USER_ERROR
    failures = _failures(series, period, since_ns)
    if not series.sent_ns:
        return NotSeen(name, "no probe answers for this fault")
    if not failures:
        return NotSeen(name, "no request failed", period.window_end_ns)
    first = failures[0]
    if first > 0 and not series.ok[first - 1]:
        return NotSeen(name, "requests were failing before the fault was injected")
    return _sample_mark(name, series, first, f"{series.outcome[first]} instead of an answer")


def _steady(series: Series, period: FaultPeriod, since_ns: int) -> Mark | NotSeen:
    name = MarkName.STEADY
    failures = _failures(series, period, since_ns)
    if not series.sent_ns:
        return NotSeen(name, "no probe answers for this fault")
    if not failures:
        return NotSeen(name, "never unsteady: no request failed", period.window_end_ns)
    for boundary_ns, when in (
        (period.undo_begun_ns, "while the fault was still in effect"),
        (period.window_end_ns, "only as the fault was undone"),
    ):
        before = [i for i in failures if series.sent_ns[i] < boundary_ns]
        if not before:
            continue
        first = before[-1] + 1
        # An answer that came after the boundary may have waited for it: a paused server answers when it is resumed.
        stretch = [i for i in range(first, len(series.sent_ns)) if answered_ns(series, i) <= boundary_ns]
        if len(stretch) >= STEADY_ANSWERS:
            return _sample_mark(name, series, first, f"requests are answered again, {when}")
    return NotSeen(name, "requests were still failing when observation ended", series.sent_ns[-1])


def _failures(series: Series, period: FaultPeriod, since_ns: int) -> list[int]:
    """Indexes of failed requests that this fault may have caused: a request under way at its injection is one."""
    return [
        i
        for i, ok in enumerate(series.ok)
        if not ok and answered_ns(series, i) >= since_ns and series.sent_ns[i] < period.window_end_ns
    ]


def _moved(series: Series, period: FaultPeriod, move: Move, seen: Mark | NotSeen) -> Mark | NotSeen:
    name = MarkName.MOVED
    lost = ", ".join(move.lost)
    if move.moved is not None:
        who = series.identity[move.moved] or "somebody else"
        return _identity_mark(name, series, move.moved, f"{who} answers, {lost} no more")
    if move.lost:
        return NotSeen(name, f"{lost} answered no more, but nobody else took over", period.undo_begun_ns)
    if any(series.identity):
        return NotSeen(name, _why_not_moved(series, period), period.undo_begun_ns)
    if isinstance(seen, Mark):
        source = f"{seen.source} (no probe tells who answers: taken from the watcher)"
        return replace(seen, name=name, source=source)
    return NotSeen(name, "no identity configured: add `identity` to the probe to see who answers")


def _why_not_moved(series: Series, period: FaultPeriod) -> str:
    during = {
        who
        for i, who in enumerate(series.identity)
        if who and series.ok[i] and period.injected_ns <= answered_ns(series, i) < period.undo_begun_ns
    }
    if not during:
        return "nobody answered while the fault was in effect"
    return f"traffic never left: {', '.join(sorted(during))} answered while the fault was in effect"


def _undone(period: FaultPeriod, end_ns: int) -> Mark | NotSeen:
    if period.ended_ns is None:
        return NotSeen(MarkName.UNDONE, "undo was not confirmed", end_ns)
    before_ns = max(0, period.ended_ns - period.undo_begun_ns)
    source = f"agent {', '.join(period.hosts)}: undone and verified"
    return Mark(
        MarkName.UNDONE, period.ended_ns, source, before_ns, clock=period.clock, clock_error_ns=period.clock_error_ns
    )


def _failed_back(series: Series, period: FaultPeriod, move: Move, changes: tuple[StateChange, ...]) -> Mark | NotSeen:
    name = MarkName.FAILED_BACK
    if move.failed_back is not None:
        mark = _identity_mark(name, series, move.failed_back, f"{series.identity[move.failed_back]} answers again")
        # A request sent before the undo and answered after it came back with the undo, not before.
        early_ns = max(0, period.undo_begun_ns - mark.at_ns)
        if not early_ns:
            return mark
        return replace(mark, at_ns=period.undo_begun_ns, before_ns=0, after_ns=mark.after_ns - early_ns)
    if move.lost:
        reason = f"{', '.join(move.lost)} had not answered again when observation ended"
        return NotSeen(name, reason, period.window_end_ns)
    if any(series.identity):
        return NotSeen(name, "traffic had not moved, so it could not return")
    better = _about(period, [one for one in changes if one.is_better and _latest_ns(one) >= period.undo_begun_ns])
    if better:
        return _change_mark(name, better[0])
    return NotSeen(name, "neither a probe with `identity` nor a watcher saw a return")


def _about(period: FaultPeriod, changes: list[StateChange]) -> list[StateChange]:
    """Those of the time after the injection, about a host of this fault if any name one, else all."""
    since_ns, until_ns = injected(period).earliest_ns, period.window_end_ns
    after = [change for change in changes if since_ns <= _latest_ns(change) and change.at_ns <= until_ns]
    own = [change for change in after if change.subject.rpartition("/")[2] in period.hosts]
    return own or after


def _sample_mark(name: MarkName, series: Series, index: int, what: str) -> Mark:
    """A mark at a sample's sending; the moment itself lies after the sample before."""
    before_ns = series.sent_ns[index] - series.sent_ns[index - 1] if index > 0 else series.every_ns
    source = f"{series.probe} from {series.vantage.name}: {what}"
    vantage = series.vantage
    return Mark(
        name, series.sent_ns[index], source, before_ns, clock=vantage.name, clock_error_ns=vantage.clock_error_ns
    )


def _identity_mark(name: MarkName, series: Series, index: int, what: str) -> Mark:
    """As a sample's mark, but who answers may have been settled only while the request waited for its answer."""
    return replace(_sample_mark(name, series, index, what), after_ns=series.took_ns[index])


def _change_mark(name: MarkName, change: StateChange) -> Mark:
    source = f"{change.watcher}: {change.subject} {change.before} -> {change.after}"
    return Mark(name, change.at_ns, source, change.before_ns, clock=change.host, clock_error_ns=change.error_ns)


def _latest_ns(change: StateChange) -> int:
    return change.at_ns + change.error_ns
