"""Expectations: `outage < 5s`, `availability >= 99%`. Pure: text in, value out.

The form is that of k6's thresholds, except that a unit is never left out. Limits are canonical: milliseconds for
durations, 0-100 for percentages, plain numbers for counts.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from brownout_agent.quantities import parse_duration_ms

from brownout_controller.language.nearest import nearest

_LONGEST_TEXT = 100
_FORM = re.compile(r"\s*(?P<metric>[^\s<>=!]+)\s*(?P<operator><=|>=|==|!=|<|>)\s*(?P<limit>[^\s<>=!].*?)\s*")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


class Unit(StrEnum):
    """What a metric is counted in. The value is the canonical unit of a limit."""

    DURATION = "ms"
    PERCENT = "%"
    COUNT = ""


class Observer(StrEnum):
    """Who observes a metric."""

    PROBE = "probe"
    WATCHER = "watcher"


@dataclass(frozen=True, slots=True)
class Metric:
    """Something that can be expected. `definition` is one sentence, shown by `explain` and in reports."""

    name: str
    unit: Unit
    observer: Observer
    definition: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("availability", Unit.PERCENT, Observer.PROBE, "Successful answers as a share of all requests sent."),
        Metric("p50", Unit.DURATION, Observer.PROBE, "The median time of the successful answers."),
        Metric("p90", Unit.DURATION, Observer.PROBE, "The time that 90 % of the successful answers kept."),
        Metric("p95", Unit.DURATION, Observer.PROBE, "The time that 95 % of the successful answers kept."),
        Metric("p99", Unit.DURATION, Observer.PROBE, "The time that 99 % of the successful answers kept."),
        Metric("max", Unit.DURATION, Observer.PROBE, "The time of the slowest successful answer."),
        Metric(
            "outage",
            Unit.DURATION,
            Observer.PROBE,
            "The longest stretch from the sending of the first failed request to the sending of the first success "
            "after it.",
        ),
        Metric("outages", Unit.COUNT, Observer.PROBE, "How many stretches of failed requests there were."),
        Metric(
            "recovery",
            Unit.DURATION,
            Observer.PROBE,
            "Per fault, the longest: from the first failed request after it became active to the first success after "
            "which requests kept succeeding while it lasted, or, if they never did, after it was undone.",
        ),
        Metric("changes", Unit.COUNT, Observer.WATCHER, "How many changes the watched system reported."),
        Metric(
            "time_to_detect",
            Unit.DURATION,
            Observer.WATCHER,
            "From the fault's becoming active to the watched system's first report of a change for the worse.",
        ),
        Metric(
            "time_to_failover",
            Unit.DURATION,
            Observer.WATCHER,
            "From the fault's becoming active to the moment when traffic had moved.",
        ),
    )
}


class InvalidExpectation(ValueError):
    """Not an expectation. `start` and `end` are offsets into the text of what is wrong; `hint` is what to write."""

    def __init__(self, code: str, message: str, start: int, end: int, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.code = code
        self.message = message
        self.start = start
        self.end = end
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Expectation:
    """One condition on one metric. `limit` is in the canonical unit, which `unit` names (`ms`, `%` or nothing)."""

    text: str
    metric: str
    operator: str
    limit: float
    unit: str


def parse_expectation(text: str) -> Expectation:
    """The expectation that `text` states, for instance `p95 < 300ms`.

    Raises:
        InvalidExpectation: a ValueError that says what is wrong, where in the text, and what to write instead.
    """
    if len(text) > _LONGEST_TEXT:
        raise InvalidExpectation("bad-threshold", "an expectation has at most 100 characters", 0, len(text))
    match = _FORM.fullmatch(text)
    if match is None:
        example = "write a metric, an operator and a limit, like `outage < 5s`"
        raise InvalidExpectation("bad-threshold", f"`{text}` is not an expectation", 0, len(text), example)
    if match["metric"] not in METRICS:
        meant = nearest(match["metric"], METRICS)
        hint = f"did you mean `{meant}`?" if meant else f"known are {', '.join(METRICS)}"
        raise InvalidExpectation(
            "unknown-metric", f"there is no metric `{match['metric']}`", *match.span("metric"), hint
        )
    metric = METRICS[match["metric"]]
    try:
        limit = _LIMITS[metric.unit](match["limit"])
    except ValueError as error:
        message, _, hint = str(error).partition("; ")
        raise InvalidExpectation("bad-threshold", f"`{text.strip()}` {message}", *match.span("limit"), hint) from error
    return Expectation(text.strip(), metric.name, match["operator"], limit, metric.unit.value)


def _duration_limit(text: str) -> float:
    if _NUMBER.fullmatch(text):
        raise ValueError(f"needs a unit; {text}ms or {text}s?")
    try:
        milliseconds = parse_duration_ms(text)
    except ValueError as error:
        raise ValueError("needs a duration; write it like 300ms, 30s or 2m30s") from error
    if not math.isfinite(milliseconds):
        raise ValueError("has a limit that is too large; write a shorter duration")
    return milliseconds


def _percent_limit(text: str) -> float:
    if _NUMBER.fullmatch(text):
        raise ValueError(f"needs a unit; {text}%?")
    if not text.endswith("%") or not _NUMBER.fullmatch(text[:-1].rstrip()):
        raise ValueError("needs a percentage; write it like 99% or 99.9%")
    percent = float(text[:-1])
    if percent > 100:
        raise ValueError("has a limit above 100%; write 0% to 100%")
    return percent


def _count_limit(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("needs a whole number; write it like 1")
    return float(text)


_LIMITS: dict[Unit, Callable[[str], float]] = {
    Unit.DURATION: _duration_limit,
    Unit.PERCENT: _percent_limit,
    Unit.COUNT: _count_limit,
}
