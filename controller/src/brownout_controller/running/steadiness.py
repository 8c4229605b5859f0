"""Whether the system is steady before the first fault: if not, nothing is injected."""

from brownout_controller.analysis.expectations import judge_expectations
from brownout_controller.record import RunRecord, Verdict

FAILING_NOW = 3
"""So many failures in a row, at the end of the time before the first fault, are no steady state."""


def unsteady(record: RunRecord, trouble: tuple[str, ...]) -> tuple[str, ...]:
    """Why the first fault must not start: an expectation is missed already, or a probe fails now.

    `trouble` says which probes and watchers cannot observe at all; they come first.
    """
    missed = [
        f"{result.name}: {result.text}: {result.evidence}"
        for result in judge_expectations(record, ())
        if result.verdict is Verdict.DEVIATED
    ]
    expected = {name for name, _ in record.expectations}
    failing = [
        f"{series.probe} from {series.vantage.name} fails now: {series.outcome[-1]}"
        for series in record.series
        if series.probe in expected and series.ok and not any(series.ok[-FAILING_NOW:])
    ]
    return tuple(dict.fromkeys((*trouble, *missed, *failing)))
