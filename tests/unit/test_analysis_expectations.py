"""Expectations are judged by the whole interval, by the worst vantage, and never by what was not seen."""

import math

import pytest
from brownout_controller.analysis.anatomy import find_anatomies
from brownout_controller.analysis.expectations import ExpectationResult, judge_expectations
from brownout_controller.analysis.interval import Interval, at_least, exactly
from brownout_controller.record import Event, EventKind, RunRecord, Verdict

from tests.support.records import at, change, fault, lost_primary, record, series

HELD, DEVIATED, INCONCLUSIVE = Verdict.HELD, Verdict.DEVIATED, Verdict.INCONCLUSIVE


def judged(run: RunRecord) -> ExpectationResult:
    [result] = judge_expectations(run, find_anatomies(run))
    return result


@pytest.mark.parametrize(
    ("interval", "comparison", "limit", "verdict"),
    [
        (Interval(4.0, 3.0, 5.0), "<", 5.1, HELD),
        (Interval(4.0, 3.0, 5.0), "<", 5.0, INCONCLUSIVE),
        (Interval(4.0, 3.0, 5.0), "<=", 5.0, HELD),
        (Interval(4.0, 3.0, 5.0), "<", 3.0, DEVIATED),
        (Interval(4.0, 3.0, 5.0), "<=", 3.0, INCONCLUSIVE),
        (Interval(4.0, 3.0, 5.0), ">", 2.9, HELD),
        (Interval(4.0, 3.0, 5.0), ">=", 5.1, DEVIATED),
        (Interval(4.0, 3.0, 5.0), ">=", 4.0, INCONCLUSIVE),
        (at_least(4.0), "<", 4.0, DEVIATED),
        (at_least(4.0), "<", 9.0, INCONCLUSIVE),
        (at_least(4.0), ">=", 4.0, HELD),
        (exactly(1.0), "==", 1.0, HELD),
        (exactly(2.0), "==", 1.0, DEVIATED),
        (at_least(1.0), "==", 1.0, INCONCLUSIVE),
        (exactly(1.0), "!=", 1.0, DEVIATED),
        (exactly(2.0), "!=", 1.0, HELD),
        (at_least(0.0), "!=", 1.0, INCONCLUSIVE),
    ],
)
def test_a_limit_is_met_only_if_the_whole_interval_meets_it(
    interval: Interval, comparison: str, limit: float, verdict: Verdict
) -> None:
    assert interval.judge(comparison, limit) is verdict


def test_an_outage_beyond_its_limit_deviates_with_times_and_fault_as_evidence() -> None:
    result = judged(record(expectations=(("checkout", "outage < 15s"),), series=(series(down=((20.1, 38.5),)),)))

    assert result.verdict is DEVIATED
    assert result.measured == Interval(18_400.0, 18_300.0, 18_500.0)
    assert result.evidence == "18.4 s, 14:02:00.1 -> 14:02:18.5, during lose-app-1"


def test_a_limit_within_the_uncertainty_is_inconclusive_and_says_how_fast_to_sample() -> None:
    result = judged(record(expectations=(("checkout", "outage < 2.05s"),), series=(series(down=((20.0, 22.0),)),)))

    assert result.verdict is INCONCLUSIVE
    assert result.evidence.endswith("; the limit lies within 1.90 s to 2.10 s: sample faster than every 50 ms to tell")


def test_no_failure_at_all_proves_only_what_the_sampling_interval_allows() -> None:
    quiet = record(expectations=(("checkout", "outage < 50ms"),))

    assert judged(quiet).verdict is INCONCLUSIVE
    assert judged(record(expectations=(("checkout", "outage < 1s"),))).verdict is HELD


def test_availability_counts_missed_due_times_as_possibly_bad_and_possibly_good() -> None:
    run = record(expectations=(("checkout", "availability >= 99%"),), series=(series(missed=12),))
    result = judged(run)

    assert result.measured == Interval(100.0, 100 * 600 / 612, 100.0)
    assert result.verdict is INCONCLUSIVE
    assert "12 answers missing" in result.evidence


def test_the_worst_vantage_decides_and_is_named() -> None:
    run = record(
        expectations=(("checkout", "outage < 1s"),),
        series=(series(), series(vantage="edge", down=((20.0, 23.0),)), series(vantage="app-2", down=((20.0, 20.5),))),
    )

    assert (judged(run).verdict, judged(run).vantage) == (DEVIATED, "edge")


def test_a_vantage_that_saw_nothing_keeps_a_held_expectation_from_holding() -> None:
    run = record(
        expectations=(("checkout", "availability >= 99%"),), series=(series(), series(vantage="edge", end_s=0.0))
    )

    assert judged(run).verdict is INCONCLUSIVE
    assert judged(run).evidence == "no sample was taken"


@pytest.mark.parametrize("expected", ["availability >= 1%", "p50 < 1h", "max < 1h", "outage < 1h", "recovery < 1h"])
def test_without_samples_nothing_is_held(expected: str) -> None:
    run = record(expectations=(("checkout", expected),), series=(series(end_s=0.0),))

    assert judged(run).verdict is INCONCLUSIVE


@pytest.mark.parametrize(
    ("expected", "value"), [("p50 < 1s", 50.0), ("p90 < 1s", 90.0), ("p95 < 1s", 95.0), ("p99 < 1s", 99.0)]
)
def test_percentiles_are_the_nearest_rank_of_the_answers(expected: str, value: float) -> None:
    hundred = series(end_s=10.0, took_ms=lambda t: round(t * 10) + 1.0)

    run = record(expectations=(("checkout", expected),), series=(hundred,), faults=())

    assert judged(run).measured == exactly(value)


def test_a_percentile_of_too_few_answers_is_not_judged() -> None:
    result = judged(record(expectations=(("checkout", "p99 < 1s"),), series=(series(end_s=9.0),)))

    assert result.verdict is INCONCLUSIVE
    assert "takes at least 100" in result.evidence


def test_missing_answers_may_have_been_slower_than_any() -> None:
    run = record(expectations=(("checkout", "max < 1s"),), series=(series(missed=1),))

    assert judged(run).measured == Interval(4.0, 4.0, math.inf)
    assert judged(run).verdict is INCONCLUSIVE


def test_outages_are_counted_and_gaps_may_hide_more() -> None:
    twice = series(down=((20.0, 21.0), (30.0, 31.0)))
    gappy = series(down=((20.0, 21.0),), silent=((40.0, 42.0),))

    assert judged(record(expectations=(("checkout", "outages <= 2"),), series=(twice,))).verdict is HELD
    assert judged(record(expectations=(("checkout", "outages == 1"),), series=(twice,))).verdict is DEVIATED
    assert judged(record(expectations=(("checkout", "outages == 1"),), series=(gappy,))).verdict is INCONCLUSIVE


def test_recovery_is_that_of_the_slowest_fault() -> None:
    run = record(
        expectations=(("checkout", "recovery < 2s"),),
        faults=(fault("first", 10.0, 20.0), fault("second", 40.0, 50.0)),
        series=(series(down=((10.0, 11.0), (40.0, 43.0))),),
    )

    assert judged(run).verdict is DEVIATED
    assert "after second began" in judged(run).evidence


def test_nothing_to_recover_from_is_held_when_the_fault_was_there_and_unclear_when_it_was_not() -> None:
    expected = (("checkout", "recovery < 10s"),)

    assert judged(record(expectations=expected)).verdict is HELD
    assert judged(record(expectations=expected, faults=(fault(active_s=None),))).verdict is INCONCLUSIVE


def test_a_fault_that_nobody_detected_misses_its_limit() -> None:
    run = record(expectations=(("lb", "time_to_detect < 3s"),), events=(change(0.2, "", "UP"),))

    assert judged(run).verdict is DEVIATED
    assert judged(run).evidence.startswith("not detected")


def test_a_watcher_that_was_blind_neither_holds_nor_deviates() -> None:
    failed = Event(at(20.0), EventKind.WATCH_FAILED, "lb", "edge", detail={"watcher": "lb"})
    run = record(expectations=(("lb", "time_to_detect < 3s"),), events=(change(0.2, "", "UP"), failed))

    assert judged(run).verdict is INCONCLUSIVE


def test_a_watcher_that_never_looked_neither_holds_nor_deviates() -> None:
    assert judged(record(expectations=(("lb", "changes == 0"),))).verdict is INCONCLUSIVE


def test_changes_are_counted_without_the_first_look() -> None:
    run = record(
        expectations=(("lb", "changes == 2"),),
        events=(change(0.2, "", "UP"), change(21.0, "UP", "DOWN"), change(51.0, "DOWN", "UP")),
    )

    assert judged(run).verdict is HELD


def test_time_to_failover_is_that_of_the_slowest_vantage() -> None:
    run = lost_primary()
    [*_, result] = judge_expectations(
        record(expectations=(("lb", "time_to_failover < 2.4s"),), series=run.series, events=(change(0.2, "", "UP"),)),
        find_anatomies(run),
    )

    assert result.verdict is INCONCLUSIVE
    assert result.measured == Interval(2450.0, 2346.5, 2453.5 + 179.5)
