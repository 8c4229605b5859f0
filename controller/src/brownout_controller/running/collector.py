"""Gathers what a run will be judged by: samples, events and what became of each fault; and makes the record of it."""

import platform
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from brownout_agent.observe import Change, Sample
from brownout_agent.observing import MOST_WAITING
from brownout_protos.v1 import fault_pb2

from brownout_controller import __version__
from brownout_controller.fleet.clocks import Exchange
from brownout_controller.language.experiment import CONTROLLER
from brownout_controller.planning.plan import Plan, PlannedObserver
from brownout_controller.record import Event, EventKind, FaultOutcome, HostResidue, RunRecord, Series, Vantage
from brownout_controller.running.machine import NO_HOST
from brownout_controller.running.messages import Instance, State
from brownout_controller.running.timeline import Timeline

CHANGES_MAX = 10_000
"""Of all watchers of a run. A backend of fifty servers that all go and come back a hundred times has as many."""
_ENDED_EARLY = frozenset({"holder_died", "lease_lost", "shutdown", "reaped", "control_lost", "halted"})
"""A fault that ended so was not what the experiment asked for, whatever was measured of it until then."""
_UNDO = {State.CLEAN: "clean", State.RESIDUE: "residue", State.REFUSED: "not_needed"}


@dataclass(slots=True)
class _Column:
    """The samples of one probe at one vantage.

    `rows` is keyed by the prober's own stamp of sending, since a lost stream says things twice and the offset that
    moves a stamp onto our line may have changed in between; a row is the time on our line, and the sample.
    """

    observer: PlannedObserver
    clock_error_ns: int = 0
    missed: int = 0
    rows: dict[int, tuple[int, Sample]] = field(default_factory=dict)


@dataclass(slots=True)
class _Draft:
    """What is known of one fault on one host so far."""

    instance: Instance
    ordered_ns: int
    active_ns: int | None = None
    undo_begun_ns: int | None = None
    ended_ns: int | None = None
    clock_error_ns: int = 0
    end_cause: str = ""
    message: str = ""
    residue: tuple[str, ...] = ()
    effect: fault_pb2.Effect | None = None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What does not change while a run goes on."""

    run_id: str
    operator: str
    plan: Plan
    timeline: Timeline


class Collector:
    """Everything that was seen in one run."""

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self._columns = {
            observer.observer_id: _Column(observer) for observer in facts.plan.observers if not observer.is_watcher
        }
        self._drafts: dict[str, _Draft] = {}
        self._changes: set[tuple[str, int, str]] = set()
        self.heard: set[str] = set()
        """Probes and watchers that have said a first word, by id."""
        self.events: list[Event] = []

    # ---- taking in -----------------------------------------------------------------------------------------------

    def has_room(self, observer: PlannedObserver, count: int = 1) -> bool:
        """Whether as many samples or changes can be true: a host that says more than was asked would fill our memory.

        A probe asks once an interval; what is late or of another clock stays below the questions that may wait.
        """
        if observer.is_watcher:
            return len(self._changes) + count <= CHANGES_MAX
        timeline = self._facts.timeline
        due = (timeline.now() - timeline.wall_ns) / (observer.every_ms * 1_000_000)
        return len(self._columns[observer.observer_id].rows) + count <= due + MOST_WAITING

    def samples(self, observer_id: str, samples: list[Sample], missed: int, clock: Exchange | None) -> None:
        """Samples of one probe, in any order, maybe twice; `clock` is the agent's, None for the controller's own."""
        column = self._columns.get(observer_id)
        if column is None or (samples and all(sample.sent_ns in column.rows for sample in samples)):
            return
        self.heard.add(observer_id)
        column.missed += missed
        column.clock_error_ns = max(column.clock_error_ns, clock.error_ns if clock else 0)
        for sample in samples:
            column.rows.setdefault(sample.sent_ns, (self._on_line(sample.sent_ns, clock), sample))

    def change(self, observer: PlannedObserver, change: Change, clock: Exchange | None) -> Event | None:
        """A watcher's change becomes an event; None for one that was told before."""
        key = (observer.observer_id, change.at_ns, change.subject)
        if key in self._changes:
            return None
        self._changes.add(key)
        self.heard.add(observer.observer_id)
        at_ns = self._on_line(change.at_ns, clock)
        return self.event(
            EventKind.WATCH_CHANGED,
            f"{observer.name}:{change.subject}",
            host=observer.vantage,
            message=change.detail,
            at_ns=at_ns,
            before_ns=change.at_ns - change.not_before_ns,
            error_ns=clock.error_ns if clock else 0,
            detail={
                "watcher": observer.name,
                "subject": change.subject,
                "before": change.before,
                "after": change.after,
            },
        )

    def event(self, kind: EventKind, subject: str, at_ns: int | None = None, **more: Any) -> Event:
        """Put a line on the timeline, now or at `at_ns`."""
        event = Event(self._facts.timeline.now() if at_ns is None else at_ns, kind, subject, **more)
        self.events.append(event)
        return event

    def ordered(self, instance: Instance) -> None:
        """An order goes out."""
        self._drafts[instance.fault_id] = _Draft(instance, self._facts.timeline.now())

    def report(self, report: fault_pb2.FaultReport, clock: Exchange) -> int:
        """A host's report on a fault that was ordered; returns when it was true."""
        draft = self._drafts[report.fault_id]
        at_ns = self._on_line(report.at_boottime_ns, clock)
        draft.clock_error_ns = max(draft.clock_error_ns, clock.error_ns)
        match report.state:
            case fault_pb2.ACTIVE:
                draft.active_ns = min(draft.active_ns or at_ns, at_ns)
            case fault_pb2.UNDOING:
                draft.undo_begun_ns = min(draft.undo_begun_ns or at_ns, at_ns)
            case fault_pb2.CLEAN | fault_pb2.RESIDUE:
                draft.ended_ns = at_ns
        if report.end_cause:
            draft.end_cause = fault_pb2.EndCause.Name(report.end_cause).lower()
        draft.message = report.message or draft.message
        draft.residue = tuple(report.residue)
        if report.HasField("effect") and (draft.effect is None or report.effect.samples >= draft.effect.samples):
            draft.effect = report.effect
        return at_ns

    def refused(self, fault_id: str, reason: str) -> None:
        """A host refused an order, for this reason."""
        self._drafts[fault_id].message = reason

    # ---- giving out ----------------------------------------------------------------------------------------------

    def latest(self, observer_id: str) -> Sample | None:
        """The newest sample of a probe."""
        rows = self._columns[observer_id].rows
        return rows[max(rows)][1] if rows else None

    def series(self) -> tuple[Series, ...]:
        """All samples so far."""
        return tuple(_series(column) for column in self._columns.values())

    def record(
        self,
        hosts: tuple[dict[str, Any], ...],
        stopped_by: str,
        stop_reason: str,
        residue: tuple[HostResidue, ...] = (),
    ) -> RunRecord:
        """The record of the run as it stands now."""
        facts, experiment = self._facts, self._facts.plan.experiment
        return RunRecord(
            run_id=facts.run_id,
            name=experiment.name,
            hypothesis=experiment.hypothesis,
            source=experiment.source,
            source_sha256=experiment.source_sha256,
            plan_digest=facts.plan.digest,
            seed=facts.plan.seed,
            started_ns=facts.timeline.wall_ns,
            ended_ns=facts.timeline.now(),
            operator=facts.operator,
            controller_host=platform.node(),
            versions={"brownout": __version__, "python": platform.python_version(), "kernel": platform.release()},
            hosts=hosts,
            expectations=tuple((name, expectation.text) for name, expectation in experiment.expectations()),
            events=tuple(sorted(self.events, key=lambda event: event.at_ns)),
            series=self.series(),
            faults=tuple(_outcome(draft) for draft in self._drafts.values()),
            stopped_by=stopped_by,
            stop_reason=stop_reason,
            residue=residue,
        )

    def _on_line(self, stamp_ns: int, clock: Exchange | None) -> int:
        timeline = self._facts.timeline
        return timeline.of_own_boottime(stamp_ns) if clock is None else timeline.of_agent(stamp_ns, clock)


def _series(column: _Column) -> Series:
    rows = sorted(column.rows.values(), key=itemgetter(0))
    samples = [sample for _, sample in rows]
    observer = column.observer
    error_ns = 0 if observer.vantage == CONTROLLER else column.clock_error_ns
    return Series(
        probe=observer.name,
        vantage=Vantage(observer.vantage, error_ns),
        every_ns=int(observer.every_ms * 1_000_000),
        sent_ns=tuple(at_ns for at_ns, _ in rows),
        took_ns=tuple(sample.took_us * 1_000 for sample in samples),
        ok=tuple(sample.ok for sample in samples),
        outcome=tuple(sample.outcome for sample in samples),
        identity=tuple(sample.identity for sample in samples),
        missed=column.missed,
    )


def _outcome(draft: _Draft) -> FaultOutcome:
    instance, effect = draft.instance, draft.effect
    in_full = draft.active_ns is not None and draft.end_cause not in _ENDED_EARLY
    proved = effect is not None and effect.proved and in_full
    return FaultOutcome(
        fault_id=instance.fault_id,
        name=instance.fault.name,
        kind=instance.fault.kind,
        host=instance.host,
        parameters=instance.fault.parameters,
        ordered_ns=draft.ordered_ns,
        active_ns=draft.active_ns,
        ended_ns=draft.ended_ns,
        clock_error_ns=draft.clock_error_ns,
        end_cause="refused" if instance.state is State.REFUSED else draft.end_cause,
        undo=_UNDO.get(instance.state, "unknown"),
        residue=draft.residue,
        asked=effect.asked if effect else None,
        achieved=effect.achieved if effect and effect.measured else None,
        unit=effect.unit if effect else "",
        proved=proved,
        explanation=_explanation(draft),
        undo_begun_ns=draft.undo_begun_ns,
    )


def _explanation(draft: _Draft) -> str:
    if draft.instance.host == NO_HOST:
        return draft.message
    if draft.instance.state is State.REFUSED:
        return f"the host refused: {draft.message}"
    if draft.active_ns is None:
        return f"it never came into effect: {draft.message or 'the host said nothing more'}"
    measured = draft.effect.explanation if draft.effect else "nothing was measured"
    if draft.end_cause in _ENDED_EARLY:
        ended = draft.message or draft.end_cause.replace("_", " ")
        return f"{measured} It ended before its time: {ended}."
    return measured
