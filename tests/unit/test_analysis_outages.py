"""Outages and what is unknown: the bounds hold the truth, and silence never helps."""

import math
from dataclasses import replace

from brownout_controller.analysis.coverage import Gap, gaps, observed_span, unknown_count
from brownout_controller.analysis.interval import Interval
from brownout_controller.analysis.outages import find_outages, worst_outage_ms
from brownout_controller.record import Series
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.records import at, record, series

SPAN = (at(0), at(10))


def without(samples: Series, index: int) -> Series:
    """The series as if the prober had missed one due time."""

    kept = [i for i in range(len(samples.ok)) if i != index]
    return replace(
        samples,
        sent_ns=tuple(samples.sent_ns[i] for i in kept),
        took_ns=tuple(samples.took_ns[i] for i in kept),
        ok=tuple(samples.ok[i] for i in kept),
        outcome=tuple(samples.outcome[i] for i in kept),
        identity=tuple(samples.identity[i] for i in kept),
        missed=samples.missed + 1,
    )


def test_an_outage_lasts_from_the_first_failed_request_to_the_first_answered_one() -> None:
    [outage] = find_outages(series(every_ms=100, end_s=10, down=((3.05, 4.25),)), SPAN)

    assert outage.begun_ns == at(3.1)
    assert outage.ended_ns == at(4.3)
    assert outage.failures == 12
    assert outage.outcomes == (("timeout", 12),)
    assert outage.duration_ms == Interval(1200.0, 1100.0, 1300.0)
    assert not outage.open


def test_one_failed_request_is_an_outage_that_may_have_been_a_moment() -> None:
    [outage] = find_outages(series(every_ms=100, end_s=10, down=((3.0, 3.1),)), SPAN)

    assert outage.duration_ms == Interval(100.0, 0.0, 200.0)


def test_an_outage_at_the_end_is_open_and_nothing_bounds_it() -> None:
    [outage] = find_outages(series(every_ms=100, end_s=10, down=((8.0, 99.0),)), SPAN)

    assert outage.open
    assert outage.duration_ms == Interval(1900.0, 1900.0, math.inf)


def test_an_outage_from_the_first_sample_on_may_have_begun_with_the_observation() -> None:
    [outage] = find_outages(series(every_ms=100, begin_s=1.0, end_s=10, down=((0.0, 2.0),)), SPAN)

    assert outage.duration_ms == Interval(1000.0, 900.0, 2000.0)


def test_a_silence_within_an_outage_lowers_what_is_certain_and_not_what_is_possible() -> None:
    [whole] = find_outages(series(end_s=10, down=((3.0, 6.0),)), SPAN)
    [broken] = find_outages(series(end_s=10, down=((3.0, 6.0),), silent=((4.0, 5.0),)), SPAN)

    assert whole.duration_ms == Interval(3000.0, 2900.0, 3100.0)
    assert broken.duration_ms == Interval(3000.0, 900.0, 3100.0)


def test_without_a_failure_an_outage_shorter_than_the_interval_cannot_be_excluded() -> None:
    assert worst_outage_ms(series(every_ms=200, end_s=10), SPAN) == Interval(0.0, 0.0, 200.0)


def test_a_silence_without_a_failure_may_hide_an_outage_of_its_length() -> None:
    silent = series(end_s=10, silent=((4.0, 6.0),))

    assert gaps(silent, SPAN) == (Gap(at(3.9), at(6.0)),)
    assert unknown_count(silent, SPAN) == 20
    assert worst_outage_ms(silent, SPAN) == Interval(0.0, 0.0, 2100.0)


def test_a_vantage_that_falls_silent_while_another_goes_on_has_a_gap_up_to_the_end() -> None:
    run = record(series=(series(end_s=60), series(vantage="edge", end_s=30)), faults=())

    assert gaps(run.series[1], observed_span(run)) == (Gap(at(29.9), at(59.9)),)
    assert gaps(run.series[0], observed_span(run)) == ()


def test_a_prober_without_any_sample_knows_nothing_of_the_whole_run() -> None:
    assert gaps(series(end_s=0), SPAN) == (Gap(*SPAN),)
    assert worst_outage_ms(series(end_s=0), SPAN) == Interval(0.0, 0.0, 10_000.0)


@settings(deadline=None)
@given(
    begun_s=st.floats(1.0, 5.0),
    length_s=st.floats(0.0, 4.0),
    phase_s=st.floats(0.0, 0.5),
    every_ms=st.sampled_from([50.0, 100.0, 333.0, 500.0]),
)
def test_the_bounds_hold_the_true_outage_at_any_phase_of_sampling(
    begun_s: float, length_s: float, phase_s: float, every_ms: float
) -> None:
    sampled = series(every_ms=every_ms, begin_s=phase_s, end_s=10, down=((begun_s, begun_s + length_s),))
    measured = worst_outage_ms(sampled, SPAN)

    assert measured.low - 1e-3 <= length_s * 1000 <= measured.high + 1e-3
    assert measured.low <= measured.value <= measured.high


@settings(deadline=None)
@given(
    begun_s=st.floats(1.0, 5.0),
    length_s=st.floats(0.0, 4.0),
    lost=st.lists(st.integers(0, 97), min_size=1, max_size=60),
)
def test_missing_samples_widen_the_bounds_and_never_narrow_them(
    begun_s: float, length_s: float, lost: list[int]
) -> None:
    samples = series(every_ms=100, end_s=10, down=((begun_s, begun_s + length_s),))
    for index in lost:
        before = worst_outage_ms(samples, SPAN)
        samples = without(samples, 1 + index % (len(samples.ok) - 2))  # the edges are when observation began and ended
        after = worst_outage_ms(samples, SPAN)
        assert after.low <= before.low
        assert after.high >= before.high
        assert after.low - 1e-3 <= length_s * 1000 <= after.high + 1e-3
