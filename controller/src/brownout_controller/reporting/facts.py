"""What a report says, before any format: rows of short texts, made once from the record and its findings.

HTML, Markdown and the terminal show the same facts; none of them computes anything of its own.
"""

from dataclasses import dataclass

from brownout_controller.analysis.anatomy import Anatomy
from brownout_controller.analysis.coverage import gaps, observed_span, unknown_count
from brownout_controller.analysis.expectations import ExpectationResult
from brownout_controller.analysis.marks import Mark, MarkName, NotSeen
from brownout_controller.analysis.outages import worst_outage_ms
from brownout_controller.analysis.probe_metrics import ProbeEvidence, measure_probe
from brownout_controller.analysis.verdict import Findings, worst_anatomies
from brownout_controller.analysis.wording import (
    NS_PER_S,
    bounds,
    clock,
    counted,
    date_and_clock,
    duration,
    estimate,
    quantity,
    since,
)
from brownout_controller.record import (
    Event,
    EventKind,
    FaultOutcome,
    RunRecord,
    Series,
)

MARK_LABELS = {
    MarkName.INJECTED: "injected",
    MarkName.FIRST_USER_ERROR: "first user error",
    MarkName.NOTICED: "noticed",
    MarkName.MOVED: "traffic moved",
    MarkName.STEADY: "steady again",
    MarkName.UNDONE: "undone",
    MarkName.FAILED_BACK: "failed back",
}
DURATION_LABELS = {
    "time_to_detect": "time to detect",
    "time_to_failover": "time to failover",
    "recovery": "recovery",
    "failback": "failback",
}


@dataclass(frozen=True, slots=True)
class NumberedMark:
    """A mark of the picture and of the tables beside it, under one number."""

    number: int
    anatomy: Anatomy
    mark: Mark
    label: str
    """What the picture writes beside the number; it names the fault where there are several."""


@dataclass(frozen=True, slots=True)
class TimelineRow:
    """One line of what happened."""

    time: str
    since: str
    what: str
    seen_by: str
    number: int | None = None
    """That of the mark in the picture."""


@dataclass(frozen=True, slots=True)
class AnatomyRow:
    """One mark of one anatomy; `seen` is False for one that was not seen, and `source` then says why."""

    number: int | None
    label: str
    seen: bool
    time: str
    after_injection: str
    uncertainty: str
    source: str


@dataclass(frozen=True, slots=True)
class DurationRow:
    """One of the durations of an anatomy."""

    label: str
    value: str
    bounds: str


@dataclass(frozen=True, slots=True)
class AnatomyTable:
    """One anatomy as tables."""

    fault: str
    hosts: str
    seen_from: str
    marks: tuple[AnatomyRow, ...]
    durations: tuple[DurationRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImpactRow:
    """What one probe saw from one vantage, in numbers."""

    probe: str
    vantage: str
    requests: str
    failed: str
    availability: str
    longest_outage: str
    outage_bounds: str
    p50: str
    p95: str
    p99: str


@dataclass(frozen=True, slots=True)
class FaultRow:
    """One fault on one host, as it was really injected and undone."""

    name: str
    kind: str
    host: str
    parameters: str
    asked: str
    achieved: str
    proved: bool
    evidence: str
    in_effect: str
    undo: str
    undo_confirmed: bool
    residue: tuple[str, ...]


def numbered_marks(findings: Findings) -> tuple[NumberedMark, ...]:
    """The marks to show: for each fault as its worst vantage saw it, numbered in order of time over the whole run."""
    seen = [
        (mark, anatomy)
        for anatomy in worst_anatomies(findings.anatomies)
        for mark in anatomy.marks
        if isinstance(mark, Mark)
    ]
    order = list(MarkName)
    seen.sort(key=lambda pair: (pair[0].at_ns, order.index(pair[0].name)))
    several = len({anatomy.fault for _, anatomy in seen}) > 1
    return tuple(
        NumberedMark(number, anatomy, mark, f"{anatomy.fault} " * several + MARK_LABELS[mark.name])
        for number, (mark, anatomy) in enumerate(seen, start=1)
    )


def timeline_rows(record: RunRecord, findings: Findings) -> tuple[TimelineRow, ...]:
    """Everything that happened, in order of time: events, and the marks that only probes saw."""
    by_event = {MarkName.INJECTED, MarkName.NOTICED, MarkName.UNDONE}
    marks = numbered_marks(findings)
    rows = [
        (event.at_ns, TimelineRow(*_when(record, event.at_ns), _told(event), _seen_by(event), _number(marks, event)))
        for event in record.events
        if not _is_first_look(event)
    ]
    rows += [
        (one.mark.at_ns, TimelineRow(*_when(record, one.mark.at_ns), one.label, one.mark.source, one.number))
        for one in marks
        if one.mark.name not in by_event
    ]
    return tuple(row for _, row in sorted(rows, key=lambda pair: pair[0]))


def anatomy_tables(record: RunRecord, findings: Findings) -> tuple[AnatomyTable, ...]:
    """An anatomy a fault, as its worst vantage saw it."""
    numbers = {(one.anatomy.fault, one.mark.name): one.number for one in numbered_marks(findings)}
    return tuple(
        AnatomyTable(
            fault=anatomy.fault,
            hosts=", ".join(anatomy.hosts),
            seen_from=f"{anatomy.probe} from {anatomy.vantage}" if anatomy.probe else "watchers only",
            marks=tuple(_anatomy_row(anatomy, mark, numbers.get((anatomy.fault, mark.name))) for mark in anatomy.marks),
            durations=tuple(
                DurationRow(
                    DURATION_LABELS[one.name],
                    estimate(one.ms, "ms") if one.ms else "not measured",
                    bounds(one.ms, "ms") if one.ms else one.reason,
                )
                for one in anatomy.durations
            ),
            notes=anatomy.notes,
        )
        for anatomy in worst_anatomies(findings.anatomies)
    )


def impact_rows(record: RunRecord) -> tuple[ImpactRow, ...]:
    """A row for every probe and vantage."""
    return tuple(_impact_row(record, series) for series in record.series)


def fault_rows(record: RunRecord) -> tuple[FaultRow, ...]:
    """A row for every fault and host."""
    return tuple(_fault_row(fault) for fault in record.faults)


def measured(result: ExpectationResult) -> str:
    """What was measured, for a table's cell: the estimate with its bounds."""
    if result.measured is None:
        return "not measured"
    value, width = estimate(result.measured, result.unit), bounds(result.measured, result.unit)
    return value if width == "exact" or value.startswith("at least") else f"{value} ({width})"


def limits(record: RunRecord) -> tuple[str, ...]:
    """What a reader must not forget: resolution, missing samples, clock errors."""
    span = observed_span(record)
    lines = []
    for series in record.series:
        who = f"{series.probe} from {series.vantage.name}"
        lines.append(f"{who}: asked every {duration(series.every_ns / 1e6)}, which is the resolution of what it saw.")
        if unknown := unknown_count(series, span):
            silent = gaps(series, span)
            longest = max((gap.length_ns for gap in silent), default=0)
            tail = f" in {counted(len(silent), 'gap')}, the longest {duration(longest / 1e6)}" if silent else ""
            lines.append(f"{who}: {counted(unknown, 'answer')} missing{tail}; counted as unknown, never as good.")
    errors = [(series.vantage.clock_error_ns, series.vantage.name) for series in record.series]
    errors += [(fault.clock_error_ns, fault.host) for fault in record.faults]
    worst_ns, host = max(errors, default=(0, ""))
    if worst_ns:
        lines.append(f"Clocks agree within {duration(worst_ns / 1e6)} (worst: {host}); included in every range.")
    return tuple(lines)


def provenance(record: RunRecord) -> tuple[tuple[str, str], ...]:
    """How to do it again, and who did it."""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    hosts = ", ".join(str(host.get("name", "?")) for host in record.hosts)
    return (
        ("run", record.run_id),
        ("began", date_and_clock(record.started_ns)),
        ("took", duration((record.ended_ns - record.started_ns) / 1e6)),
        ("operator", record.operator or "not recorded"),
        ("experiment", record.name),
        ("experiment sha256", record.source_sha256),
        ("plan", record.plan_digest),
        ("seed", str(record.seed)),
        ("versions", versions or "not recorded"),
        ("controller", record.controller_host),
        ("hosts", hosts or "none"),
    )


def in_words(record: RunRecord, findings: Findings) -> str:
    """The picture as a sentence or two, for those who cannot see it."""
    parts = [
        f"{row.name} on {row.host} {row.in_effect}" if row.in_effect else f"{row.name} was not injected on {row.host}"
        for row in fault_rows(record)
    ]
    parts += [
        f"{outage.probe} from {outage.vantage} failing {clock(outage.begun_ns)} to "
        f"{'the end' if outage.open else clock(outage.ended_ns)}"
        for outage in findings.outages[:6]
    ]
    if len(findings.outages) > 6:
        parts.append(f"{len(findings.outages) - 6} more outages")
    parts += [f"{one.number} {one.label} at {clock(one.mark.at_ns)}" for one in numbered_marks(findings)]
    return "; ".join(parts) or "Nothing was recorded"


def _when(record: RunRecord, at_ns: int) -> tuple[str, str]:
    return clock(at_ns), since(at_ns, record.started_ns)


def _is_first_look(event: Event) -> bool:
    return event.kind is EventKind.WATCH_CHANGED and not event.detail.get("before")


_TOLD = {
    EventKind.RUN_STARTED: "run began",
    EventKind.STEADY_CONFIRMED: "steady state confirmed",
    EventKind.FAULT_ORDERED: "{subject} ordered",
    EventKind.FAULT_ACTIVE: "{subject} in effect",
    EventKind.FAULT_REFUSED: "{subject} refused",
    EventKind.FAULT_ENDED: "{subject} undone",
    EventKind.FAULT_UNKNOWN: "{subject}: undo not confirmed",
    EventKind.GUARD_HIT: "guard hit: {subject}",
    EventKind.HALT_ORDERED: "halt ordered",
    EventKind.HOST_LOST: "host {subject} lost",
    EventKind.HOST_BACK: "host {subject} back",
    EventKind.WATCH_FAILED: "{subject} cannot be read",
    EventKind.RESIDUE_AUDITED: "residue audit of {host}: {subject}",
    EventKind.RUN_ENDED: "run ended",
}


def _told(event: Event) -> str:
    if event.kind is EventKind.WATCH_CHANGED:
        return f"{event.subject}: {event.detail.get('before')} -> {event.detail.get('after')}"
    head = _TOLD[event.kind].format(subject=event.subject, host=event.host)
    return f"{head}: {event.message}" if event.message else head


def _seen_by(event: Event) -> str:
    if event.kind is EventKind.WATCH_CHANGED:
        return f"watcher {event.detail.get('watcher', '')} on {event.host}"
    return f"agent {event.host}" if event.host else "controller"


_EVENT_OF_MARK = {
    MarkName.INJECTED: EventKind.FAULT_ACTIVE,
    MarkName.NOTICED: EventKind.WATCH_CHANGED,
    MarkName.UNDONE: EventKind.FAULT_ENDED,
}


def _number(marks: tuple[NumberedMark, ...], event: Event) -> int | None:
    for one in marks:
        if _EVENT_OF_MARK.get(one.mark.name) is event.kind and one.mark.at_ns == event.at_ns:
            return one.number
    return None


def _anatomy_row(anatomy: Anatomy, mark: Mark | NotSeen, number: int | None) -> AnatomyRow:
    label = MARK_LABELS[mark.name]
    if isinstance(mark, NotSeen):
        return AnatomyRow(None, label, False, "not seen", "", "", mark.reason)
    injected = anatomy.mark(MarkName.INJECTED)
    after = (mark.at_ns - injected.at_ns) / NS_PER_S if isinstance(injected, Mark) else 0.0
    early, late = (mark.at_ns - mark.earliest_ns) / 1e6, (mark.latest_ns - mark.at_ns) / 1e6
    return AnatomyRow(
        number, label, True, clock(mark.at_ns, 2), f"{after:+.2f} s", f"-{early:.0f} / +{late:.0f} ms", mark.source
    )


def _impact_row(record: RunRecord, series: Series) -> ImpactRow:
    evidence = ProbeEvidence(record, series, ())
    outage = worst_outage_ms(series, observed_span(record))
    percentiles = [measure_probe(name, evidence).interval for name in ("p50", "p95", "p99")]
    share = measure_probe("availability", evidence).interval
    p50, p95, p99 = ("-" if interval is None else duration(interval.value) for interval in percentiles)
    return ImpactRow(
        probe=series.probe,
        vantage=series.vantage.name,
        requests=str(len(series.ok)),
        failed=str(len(series.ok) - sum(series.ok)),
        availability="-" if share is None else quantity(share.value, "%"),
        longest_outage=estimate(outage, "ms") if outage.value else "none seen",
        outage_bounds=bounds(outage, "ms") if outage.value else f"none over {duration(outage.high)}",
        p50=p50,
        p95=p95,
        p99=p99,
    )


def _fault_row(fault: FaultOutcome) -> FaultRow:
    in_effect = ""
    if fault.active_ns is not None:
        until = "no undo was seen" if fault.ended_ns is None else clock(fault.ended_ns)
        in_effect = f"{clock(fault.active_ns)} -> {until}"
    return FaultRow(
        name=fault.name,
        kind=fault.kind,
        host=fault.host,
        parameters=", ".join(f"{key}={value}" for key, value in fault.parameters.items()),
        asked=_amount(fault.asked, fault.unit),
        achieved=_amount(fault.achieved, fault.unit),
        proved=fault.proved,
        evidence=fault.explanation,
        in_effect=in_effect,
        undo={"clean": "undone and verified", "not_needed": "nothing to undo"}.get(fault.undo, f"undo {fault.undo}"),
        undo_confirmed=fault.undo in {"clean", "not_needed"},
        residue=fault.residue,
    )


def _amount(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.4g} {unit}".strip()
