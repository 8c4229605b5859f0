"""What each metric of an expectation about a probe comes to, for one series, with its uncertainty and evidence."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from brownout_controller.analysis.anatomy import Anatomy
from brownout_controller.analysis.coverage import gaps, observed_span, unknown_count
from brownout_controller.analysis.interval import Interval
from brownout_controller.analysis.marks import Mark, MarkName, NotSeen
from brownout_controller.analysis.outages import NS_PER_MS, find_outages, worst_outage_ms
from brownout_controller.analysis.periods import faults_during
from brownout_controller.analysis.wording import clock, counted, estimate, quantity
from brownout_controller.record import RunRecord, Series

FEWEST_SAMPLES = 10
"""Of fewer samples no share and no percentile is judged."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """`interval` is in the metric's canonical unit, or None where nothing could be measured; `evidence` says why."""

    interval: Interval | None
    evidence: str


@dataclass(frozen=True, slots=True)
class ProbeEvidence:
    """Everything that a metric of one series may read."""

    record: RunRecord
    series: Series
    anatomies: tuple[Anatomy, ...]
    """Of the whole run."""

    @property
    def span(self) -> tuple[int, int]:
        """When this series had to be observing (ns)."""
        return observed_span(self.record)


def measure_probe(metric: str, evidence: ProbeEvidence) -> Measurement:
    """What the metric (a probe's, of `language.expectations.METRICS`) comes to for this series."""
    if not evidence.series.sent_ns:
        return Measurement(None, "no sample was taken")
    if metric in _PERCENTILES:
        return _percentile(_PERCENTILES[metric], evidence)
    return _METRICS[metric](evidence)


def _availability(evidence: ProbeEvidence) -> Measurement:
    series = evidence.series
    good, total = sum(series.ok), len(series.ok)
    if total < FEWEST_SAMPLES:
        return Measurement(None, f"only {counted(total, 'sample')}: too few to judge a share")
    unknown = unknown_count(series, evidence.span)
    low, high = 100 * good / (total + unknown), 100 * (good + unknown) / (total + unknown)
    missing = f"; {counted(unknown, 'answer')} missing" if unknown else ""
    value = 100 * good / total
    return Measurement(Interval(value, low, high), f"{quantity(value, '%')} ({good} of {total} probes{missing})")


def _percentile(share: float, evidence: ProbeEvidence) -> Measurement:
    """Nearest rank over the successful answers. Missing answers may have been faster or slower than any."""
    took_ms = _answer_times_ms(evidence.series)
    fewest = max(FEWEST_SAMPLES, math.ceil(round(1 / (1 - share), 6)))
    if len(took_ms) < fewest:
        return Measurement(None, f"only {counted(len(took_ms), 'answer')}: this percentile takes at least {fewest}")
    unknown = unknown_count(evidence.series, evidence.span)
    everything = len(took_ms) + unknown
    fast, slow = [0.0] * unknown + took_ms, took_ms + [math.inf] * unknown
    interval = Interval(
        _ranked(took_ms, share, len(took_ms)), _ranked(fast, share, everything), _ranked(slow, share, everything)
    )
    missing = f"; {counted(unknown, 'answer')} missing" if unknown else ""
    return Measurement(interval, f"{quantity(interval.value, 'ms')} (of {len(took_ms)} answers{missing})")


def _ranked(values: list[float], share: float, count: int) -> float:
    return values[max(0, math.ceil(round(share * count, 6)) - 1)]


def _max(evidence: ProbeEvidence) -> Measurement:
    took_ms = _answer_times_ms(evidence.series)
    if not took_ms:
        return Measurement(None, "no request was answered")
    unknown = unknown_count(evidence.series, evidence.span)
    high = math.inf if unknown else took_ms[-1]
    missing = f"; {counted(unknown, 'answer')} missing" if unknown else ""
    text = f"{quantity(took_ms[-1], 'ms')} (slowest of {len(took_ms)} answers{missing})"
    return Measurement(Interval(took_ms[-1], took_ms[-1], high), text)


def _outage(evidence: ProbeEvidence) -> Measurement:
    interval = worst_outage_ms(evidence.series, evidence.span)
    outages = find_outages(evidence.series, evidence.span)
    if not outages:
        hidden = quantity(interval.high, "ms")
        return Measurement(interval, f"none seen in {len(evidence.series.ok)} probes; none longer than {hidden}")
    worst = max(outages, key=lambda one: (one.open, one.duration_ms.value))
    end = "still open" if worst.open else clock(worst.ended_ns)
    text = f"{estimate(interval, 'ms')}, {clock(worst.begun_ns)} -> {end}"
    during = faults_during(evidence.record, worst.begun_ns, worst.ended_ns)
    return Measurement(interval, f"{text}, during {', '.join(during)}" if during else f"{text}, while no fault was on")


def _outages(evidence: ProbeEvidence) -> Measurement:
    count = len(find_outages(evidence.series, evidence.span))
    silent = len(gaps(evidence.series, evidence.span))
    hidden = f"; {counted(silent, 'gap')} may hide more" if silent else ""
    interval = Interval(float(count), float(count), math.inf if silent else float(count))
    return Measurement(interval, f"{counted(count, 'outage')} in {len(evidence.series.ok)} probes{hidden}")


def _recovery(evidence: ProbeEvidence) -> Measurement:
    series = evidence.series
    own = [one for one in evidence.anatomies if (one.probe, one.vantage) == (series.probe, series.vantage.name)]
    if not own:
        return Measurement(None, "no fault was in effect, so there was nothing to recover from")
    measured = [_recovery_from(evidence, anatomy) for anatomy in own]
    unclear = next((one for one in measured if one.interval is None), None)
    return unclear or max(measured, key=lambda one: one.interval.low if one.interval else 0.0)


def _recovery_from(evidence: ProbeEvidence, anatomy: Anatomy) -> Measurement:
    error, steady = anatomy.mark(MarkName.FIRST_USER_ERROR), anatomy.mark(MarkName.STEADY)
    if isinstance(error, NotSeen):
        if error.until_ns is None:
            return Measurement(None, error.reason)
        hidden_ms = worst_outage_ms(evidence.series, evidence.span).high
        return Measurement(Interval(0.0, 0.0, hidden_ms), f"no request failed because of {anatomy.fault}")
    interval = anatomy.duration("recovery").ms
    if interval is None:
        return Measurement(None, anatomy.duration("recovery").reason)
    end = clock(steady.at_ns) if isinstance(steady, Mark) else "not steady again"
    return Measurement(
        interval, f"{estimate(interval, 'ms')}, {clock(error.at_ns)} -> {end}, after {anatomy.fault} began"
    )


def _answer_times_ms(series: Series) -> list[float]:
    return sorted(took / NS_PER_MS for took, ok in zip(series.took_ns, series.ok, strict=True) if ok)


_PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
_METRICS: dict[str, Callable[[ProbeEvidence], Measurement]] = {
    "availability": _availability,
    "max": _max,
    "outage": _outage,
    "outages": _outages,
    "recovery": _recovery,
}
