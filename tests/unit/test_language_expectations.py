"""Expectations: what is read, what is refused, and where the fault lies."""

import pytest
from brownout_controller.language.expectations import METRICS, Expectation, InvalidExpectation, parse_expectation
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "metric", "operator", "limit", "unit"),
    [
        ("outage < 5s", "outage", "<", 5_000, "ms"),
        ("p95<300ms", "p95", "<", 300, "ms"),
        ("  availability  >=  99.5 % ", "availability", ">=", 99.5, "%"),
        ("availability >= 0%", "availability", ">=", 0, "%"),
        ("recovery <= 1m30s", "recovery", "<=", 90_000, "ms"),
        ("changes == 1", "changes", "==", 1, ""),
        ("outages != 2", "outages", "!=", 2, ""),
        ("time_to_detect > PT10S", "time_to_detect", ">", 10_000, "ms"),
    ],
)
def test_an_expectation_is_read_into_its_canonical_unit(
    text: str, metric: str, operator: str, limit: float, unit: str
) -> None:
    expectation = parse_expectation(text)
    assert (expectation.metric, expectation.operator, expectation.limit, expectation.unit) == (
        metric,
        operator,
        limit,
        unit,
    )
    assert expectation.text == text.strip()


@pytest.mark.parametrize(
    ("text", "code", "wrong", "hint"),
    [
        ("p95 < 300", "bad-threshold", "300", "300ms or 300s?"),
        ("availability >= 99", "bad-threshold", "99", "99%?"),
        ("availability >= 101%", "bad-threshold", "101%", "write 0% to 100%"),
        ("availability >= -1%", "bad-threshold", "-1%", "write it like 99% or 99.9%"),
        ("availability >= nan%", "bad-threshold", "nan%", "write it like 99% or 99.9%"),
        ("outage < -5s", "bad-threshold", "-5s", "write it like 300ms, 30s or 2m30s"),
        ("outage < inf", "bad-threshold", "inf", "write it like 300ms, 30s or 2m30s"),
        ("outage < 99%", "bad-threshold", "99%", "write it like 300ms, 30s or 2m30s"),
        ("changes == 1.5", "bad-threshold", "1.5", "write it like 1"),
        ("changes == 1s", "bad-threshold", "1s", "write it like 1"),
        ("outtage < 5s", "unknown-metric", "outtage", "did you mean `outage`?"),
        ("P95 < 5s", "unknown-metric", "P95", "did you mean `p95`?"),
        ("time_to_change < 5s", "unknown-metric", "time_to_change", "did you mean `time_to_detect`?"),
        ("outage = 5s", "bad-threshold", "outage = 5s", "write a metric, an operator and a limit, like `outage < 5s`"),
        ("outage", "bad-threshold", "outage", "write a metric, an operator and a limit, like `outage < 5s`"),
        ("", "bad-threshold", "", "write a metric, an operator and a limit, like `outage < 5s`"),
    ],
)
def test_what_is_not_an_expectation_is_refused_with_its_place_and_a_hint(
    text: str, code: str, wrong: str, hint: str
) -> None:
    with pytest.raises(InvalidExpectation) as caught:
        parse_expectation(text)
    assert (caught.value.code, text[caught.value.start : caught.value.end]) == (code, wrong)
    assert caught.value.hint == hint
    assert hint in str(caught.value)


def test_a_metric_that_resembles_nothing_lists_what_there_is() -> None:
    with pytest.raises(InvalidExpectation, match="known are availability, p50"):
        parse_expectation("zzz < 5s")


@given(st.text(max_size=120) | st.builds("{} < {}".format, st.sampled_from(sorted(METRICS)), st.text(max_size=20)))
def test_no_text_raises_anything_but_the_refusal_with_a_place_inside_the_text(text: str) -> None:
    outcome = _outcome(text)
    if isinstance(outcome, InvalidExpectation):
        assert 0 <= outcome.start <= outcome.end <= len(text)
    else:
        assert outcome.metric in METRICS
        assert 0 <= outcome.limit < float("inf")


def _outcome(text: str) -> Expectation | InvalidExpectation:
    try:
        return parse_expectation(text)
    except InvalidExpectation as error:
        return error
