"""Every expectation against what was measured, judged by the whole interval and by the worst vantage."""

import math
from dataclasses import dataclass

from brownout_controller.analysis.anatomy import Anatomy
from brownout_controller.analysis.interval import Interval
from brownout_controller.analysis.probe_metrics import Measurement, ProbeEvidence, measure_probe
from brownout_controller.analysis.watch_metrics import WatchEvidence, measure_watcher
from brownout_controller.analysis.wording import bounds, quantity
from brownout_controller.language.expectations import METRICS, Expectation, Observer, parse_expectation
from brownout_controller.record import RunRecord, Verdict


@dataclass(frozen=True, slots=True)
class ExpectationResult:
    """One expectation and what became of it. `verdict` is HELD, DEVIATED or INCONCLUSIVE."""

    name: str
    """The probe or watcher it speaks of."""
    text: str
    verdict: Verdict
    measured: Interval | None
    """In `unit`; None where nothing could be measured."""
    unit: str
    """`ms`, `%`, or nothing for a count."""
    evidence: str
    vantage: str = ""
    """The worst one, which decided; empty for a watcher."""


def judge_expectations(record: RunRecord, anatomies: tuple[Anatomy, ...]) -> tuple[ExpectationResult, ...]:
    """All results, in the order in which the experiment states them.

    Raises:
        ValueError: an expectation's text is none; the language refuses such an experiment before it runs.
    """
    return tuple(_judge(record, anatomies, name, parse_expectation(text)) for name, text in record.expectations)


def _judge(record: RunRecord, anatomies: tuple[Anatomy, ...], name: str, expectation: Expectation) -> ExpectationResult:
    if METRICS[expectation.metric].observer is Observer.WATCHER:
        measurement = measure_watcher(expectation.metric, WatchEvidence(record, name, anatomies))
        return _result(name, expectation, measurement, "", 0)
    results = [
        _result(
            name,
            expectation,
            measure_probe(expectation.metric, ProbeEvidence(record, series, anatomies)),
            series.vantage.name,
            series.every_ns,
        )
        for series in record.series
        if series.probe == name
    ]
    if not results:
        return _result(name, expectation, Measurement(None, "no sample was taken"), "", 0)
    return max(results, key=lambda result: _badness(result, expectation))


def _result(
    name: str, expectation: Expectation, measurement: Measurement, vantage: str, every_ns: int
) -> ExpectationResult:
    interval = measurement.interval
    verdict = Verdict.INCONCLUSIVE if interval is None else interval.judge(expectation.operator, expectation.limit)
    evidence = measurement.evidence
    if interval is not None and verdict is Verdict.INCONCLUSIVE:
        evidence += f"; the limit lies within {bounds(interval, expectation.unit)}" + _remedy(
            interval, expectation, every_ns
        )
    return ExpectationResult(name, expectation.text, verdict, interval, expectation.unit, evidence, vantage)


def _remedy(interval: Interval, expectation: Expectation, every_ns: int) -> str:
    """What would have told, where it is the probe's own interval that is too coarse."""
    distance_ms = abs(interval.value - expectation.limit)
    resolution_ms = every_ns / 1_000_000
    coarse = 0 < distance_ms < resolution_ms and not math.isinf(interval.high)
    if expectation.unit != "ms" or not coarse:
        return ""
    return f": sample faster than every {quantity(distance_ms, 'ms')} to tell"


def _badness(result: ExpectationResult, expectation: Expectation) -> tuple[int, float]:
    """Deviated is worse than inconclusive is worse than held; among equals, the worst value decides."""
    rank = (Verdict.HELD, Verdict.INCONCLUSIVE, Verdict.DEVIATED).index(result.verdict)
    if result.measured is None:
        return rank, math.inf
    value = result.measured.value
    if expectation.operator in {"<", "<="}:
        return rank, value
    if expectation.operator in {">", ">="}:
        return rank, -value
    return rank, abs(value - expectation.limit)
