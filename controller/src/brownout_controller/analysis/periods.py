"""When each fault was in effect, and which part of the run speaks about it."""

from dataclasses import dataclass

from brownout_controller.analysis.coverage import observed_span
from brownout_controller.record import FaultOutcome, RunRecord


@dataclass(frozen=True, slots=True)
class FaultPeriod:
    """One fault of the experiment on all of its hosts. Times in ns on the run's timeline."""

    name: str
    kind: str
    hosts: tuple[str, ...]
    injected_ns: int
    """In effect on the first host."""
    undo_begun_ns: int
    """In effect on all of its hosts until then; the end of observation if no undo was seen."""
    ended_ns: int | None
    """Verified gone on the last host; None if that was never confirmed."""
    clock: str
    """The host whose clock stamped `injected_ns`, and how far it may be off."""
    clock_error_ns: int
    window_begin_ns: int
    """The baseline before it: since the fault before was gone, or observation began."""
    window_end_ns: int
    """Its consequences after it: until the next fault, or observation ended."""
    overlaps: tuple[str, ...]
    """Faults that were in effect at the same time: what is seen may be their doing."""


def fault_periods(record: RunRecord) -> tuple[FaultPeriod, ...]:
    """Every fault that was in effect on at least one host, in order of injection."""
    begin_ns, end_ns = observed_span(record)
    by_name: dict[str, list[FaultOutcome]] = {}
    for fault in record.faults:
        if fault.active_ns is not None:
            by_name.setdefault(fault.name, []).append(fault)
    spans = {name: (_injected_ns(group), _gone_ns(group, end_ns)) for name, group in by_name.items()}
    periods = (_period(group, spans, (begin_ns, end_ns)) for group in by_name.values())
    return tuple(sorted(periods, key=lambda period: period.injected_ns))


def faults_during(record: RunRecord, begin_ns: int, end_ns: int) -> tuple[str, ...]:
    """Names of the faults that were in effect at some time within [begin_ns, end_ns]."""
    return tuple(
        period.name
        for period in fault_periods(record)
        if period.injected_ns <= end_ns and (period.ended_ns or record.ended_ns) >= begin_ns
    )


def _period(group: list[FaultOutcome], spans: dict[str, tuple[int, int]], observed: tuple[int, int]) -> FaultPeriod:
    first = min(group, key=lambda fault: fault.active_ns or 0)
    injected_ns, gone_ns = spans[first.name]
    others = {name: span for name, span in spans.items() if name != first.name}
    overlaps = tuple(name for name, (begun, gone) in others.items() if begun < gone_ns and gone > injected_ns)
    apart = [span for name, span in others.items() if name not in overlaps]
    ended = [fault.ended_ns for fault in group]
    undone = [time for fault in group if (time := fault.undo_begun_ns or fault.ended_ns) is not None]
    return FaultPeriod(
        name=first.name,
        kind=first.kind,
        hosts=tuple(fault.host for fault in group),
        injected_ns=injected_ns,
        undo_begun_ns=min(undone) if undone else observed[1],
        ended_ns=None if None in ended else max(time for time in ended if time is not None),
        clock=first.host,
        clock_error_ns=first.clock_error_ns,
        window_begin_ns=max([gone for _, gone in apart if gone <= injected_ns], default=observed[0]),
        window_end_ns=min([begun for begun, _ in apart if begun >= gone_ns], default=observed[1]),
        overlaps=overlaps,
    )


def _injected_ns(group: list[FaultOutcome]) -> int:
    return min(fault.active_ns for fault in group if fault.active_ns is not None)


def _gone_ns(group: list[FaultOutcome], end_ns: int) -> int:
    return max(end_ns if fault.ended_ns is None else fault.ended_ns for fault in group)
