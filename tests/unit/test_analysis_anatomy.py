"""The marks of a failover, what is said where one was not seen, and the times between them."""

from collections.abc import Callable

import pytest
from brownout_controller.analysis.anatomy import Anatomy, find_anatomies
from brownout_controller.analysis.interval import Interval
from brownout_controller.analysis.marks import Mark, MarkName, NotSeen
from brownout_controller.record import RunRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.records import at, change, fault, lost_primary, record, series


def only(run: RunRecord) -> Anatomy:
    [anatomy] = find_anatomies(run)
    return anatomy


def seen(anatomy: Anatomy, name: MarkName) -> Mark:
    mark = anatomy.mark(name)
    assert isinstance(mark, Mark), mark
    return mark


def unseen(anatomy: Anatomy, name: MarkName) -> NotSeen:
    mark = anatomy.mark(name)
    assert isinstance(mark, NotSeen), mark
    return mark


def rotation(*names: str) -> Callable[[float], str]:
    """Round robin at one request every 100 ms."""
    return lambda t: names[round(t * 10) % len(names)]


def test_a_standby_that_takes_over_gives_every_mark() -> None:
    anatomy = find_anatomies(lost_primary())[0]

    assert anatomy.vantage == "controller"
    assert {mark.name: mark.at_ns for mark in anatomy.marks if isinstance(mark, Mark)} == {
        MarkName.INJECTED: at(20.0),
        MarkName.FIRST_USER_ERROR: at(20.1),
        MarkName.NOTICED: at(21.6),
        MarkName.MOVED: at(22.4),
        MarkName.STEADY: at(22.4),
        MarkName.UNDONE: at(50.0),
        MarkName.FAILED_BACK: at(51.2),
    }


def test_durations_carry_the_sampling_interval_the_poll_and_both_clocks() -> None:
    anatomy = find_anatomies(lost_primary())[0]

    # Injected: +-2 ms. Noticed: up to 100 ms earlier, +-1 ms. The probe's own marks share one clock. Who answers may
    # have been settled while the first answer was awaited: 184 ms at the move, up to 6.8 ms at the return.
    assert anatomy.duration("time_to_detect").ms == Interval(1600.0, 1497.0, 1603.0)
    assert anatomy.duration("time_to_failover").ms == Interval(2400.0, 2298.0, 2586.0)
    assert anatomy.duration("recovery").ms == Interval(2300.0, 2200.0, 2400.0)
    failback = anatomy.duration("failback").ms
    assert failback is not None
    assert (failback.value, failback.low) == (1200.0, 1098.0)
    assert 1252.0 + 4.0 <= failback.high <= 1252.0 + 7.0


def test_a_rotation_has_moved_when_requests_no_longer_fail() -> None:
    """The survivor answers half of the requests all along: its answers alone prove no move."""
    pair = rotation("app-1", "app-2")

    def who(t: float) -> str:
        return "app-2" if 20.0 <= t < 50.0 else pair(t)

    failing = tuple((20.0 + k / 5, 20.0 + k / 5 + 0.1) for k in range(8))  # app-1's turns, up to 21.5 s
    anatomy = only(record(series=(series(who=who, down=failing),)))

    assert seen(anatomy, MarkName.FIRST_USER_ERROR).at_ns == at(20.0)
    assert seen(anatomy, MarkName.MOVED).at_ns == at(21.5)
    assert seen(anatomy, MarkName.STEADY).at_ns == at(21.5)
    assert seen(anatomy, MarkName.FAILED_BACK).at_ns == at(50.0)


def test_a_fault_that_the_load_balancer_hides_has_no_user_error_and_still_a_move() -> None:
    pair = rotation("app-1", "app-2")
    anatomy = only(record(series=(series(who=lambda t: "app-2" if 20.0 <= t < 50.0 else pair(t)),)))

    assert unseen(anatomy, MarkName.FIRST_USER_ERROR).reason == "no request failed"
    assert unseen(anatomy, MarkName.STEADY).reason == "never unsteady: no request failed"
    assert seen(anatomy, MarkName.MOVED).at_ns == at(20.0)
    assert anatomy.duration("recovery").ms is None


def test_a_hidden_fault_that_made_answers_slow_is_said_to_have_done_so() -> None:
    """A balancer that tries app-1 for a second before it asks app-2: nobody fails, and the move is that uncertain."""
    pair = rotation("app-1", "app-2")

    def slow(t: float) -> float:
        return 1030.0 if 20.0 <= t < 21.6 and pair(t) == "app-1" else 4.0

    anatomy = only(record(series=(series(who=lambda t: "app-2" if 20.0 <= t < 50.0 else pair(t), took_ms=slow),)))

    assert anatomy.notes == ("answers took up to 1.03 s while the fault was in effect, 4.0 ms before it",)
    failover = anatomy.duration("time_to_failover").ms
    assert failover == Interval(0.0, 0.0, 1032.0)


def test_traffic_that_never_left_is_said_to_have_stayed() -> None:
    anatomy = only(record(series=(series(who=rotation("app-1", "app-2")),)))

    assert unseen(anatomy, MarkName.MOVED).reason == (
        "traffic never left: app-1, app-2 answered while the fault was in effect"
    )
    failover = anatomy.duration("time_to_failover").ms
    assert failover is not None
    assert failover.low == pytest.approx(29_950)
    assert failover.high == float("inf")


def test_a_few_answers_by_the_survivor_are_chance_and_no_move() -> None:
    """Behind a rotation of two, nine answers in a row by one of them do not prove that the other is gone."""
    pair = rotation("app-1", "app-2")
    run = record(
        faults=(fault(active_s=20.0, ended_s=20.9, undo_begun_ns=at(20.9)),),
        series=(series(who=lambda t: "app-2" if 20.0 <= t < 20.9 else pair(t)),),
    )

    assert unseen(only(run), MarkName.MOVED).reason.startswith("traffic never left")


def test_without_identity_the_watcher_tells_when_traffic_moved_and_returned() -> None:
    anatomy = only(
        record(
            series=(series(down=((20.0, 22.0),)),),
            events=(change(0.2, "", "UP"), change(21.6, "UP", "DOWN"), change(52.0, "DOWN", "UP")),
        )
    )

    assert seen(anatomy, MarkName.MOVED).at_ns == at(21.6)
    assert "taken from the watcher" in seen(anatomy, MarkName.MOVED).source
    assert seen(anatomy, MarkName.FAILED_BACK).at_ns == at(52.0)


def test_without_identity_and_watcher_nothing_is_made_up() -> None:
    anatomy = only(record(series=(series(down=((20.0, 22.0),)),)))

    assert unseen(anatomy, MarkName.NOTICED).until_ns is None
    assert "no identity configured" in unseen(anatomy, MarkName.MOVED).reason
    assert anatomy.duration("time_to_detect").ms is None


def test_a_change_that_names_the_faults_host_wins_over_an_earlier_one() -> None:
    anatomy = only(
        record(
            events=(
                change(0.2, "", "UP"),
                change(0.2, "", "UP", "shop/other"),
                change(20.5, "UP", "DOWN", "shop/other"),
                change(21.0, "UP", "DOWN"),
            )
        )
    )

    assert seen(anatomy, MarkName.NOTICED).source == "lb: shop/app-1 UP -> DOWN"


def test_an_unreadable_watcher_is_no_change_for_the_worse() -> None:
    anatomy = only(record(events=(change(0.2, "", "UP"), change(21.0, "UP", "unreadable"))))

    assert isinstance(anatomy.mark(MarkName.NOTICED), NotSeen)


def test_a_request_under_way_at_the_injection_is_the_first_user_error() -> None:
    """It was sent 50 ms before and given up 30 ms after: its user met the fault."""
    anatomy = only(record(series=(series(begin_s=0.05, every_ms=100, down=((19.93, 21.0),)),)))

    assert seen(anatomy, MarkName.FIRST_USER_ERROR).at_ns == at(19.95)
    recovery = anatomy.duration("recovery").ms
    assert recovery == Interval(1100.0, 1000.0, 1200.0)


def test_a_service_that_was_failing_before_the_fault_blames_it_for_nothing() -> None:
    anatomy = only(record(series=(series(down=((15.0, 30.0),)),)))

    assert unseen(anatomy, MarkName.FIRST_USER_ERROR).reason == "requests were failing before the fault was injected"
    assert anatomy.duration("recovery").ms is None


def test_a_service_that_recovers_only_with_the_undo_is_steady_after_it() -> None:
    anatomy = only(record(series=(series(down=((20.0, 50.3),)),)))

    steady = seen(anatomy, MarkName.STEADY)
    assert steady.at_ns == at(50.3)
    assert "only as the fault was undone" in steady.source


def test_answers_that_waited_for_the_undo_do_not_count_as_recovery_under_the_fault() -> None:
    """A paused server answers, when it is resumed, what was sent up to the probe's time-out before."""

    def waiting(t: float) -> float:
        return (50.0 - t) * 1000 if 49.5 <= t < 50.0 else 4.0

    anatomy = only(record(series=(series(down=((20.0, 49.5),), took_ms=waiting, who=lambda _: "app-1"),)))

    steady = seen(anatomy, MarkName.STEADY)
    assert steady.at_ns == at(49.5)
    assert "only as the fault was undone" in steady.source
    assert unseen(anatomy, MarkName.MOVED).reason == "nobody answered while the fault was in effect"
    assert unseen(anatomy, MarkName.FAILED_BACK).reason == "traffic had not moved, so it could not return"


def test_a_service_that_never_recovers_leaves_recovery_unbounded() -> None:
    anatomy = only(record(series=(series(down=((20.0, 99.0),)),)))

    assert "still failing" in unseen(anatomy, MarkName.STEADY).reason
    assert anatomy.duration("recovery").ms == Interval(39_900.0, 39_900.0, float("inf"))


def test_one_good_answer_between_failures_is_not_steady() -> None:
    anatomy = only(record(series=(series(down=((20.0, 22.0), (22.1, 25.0))),)))

    assert seen(anatomy, MarkName.STEADY).at_ns == at(25.0)


def test_an_undo_that_nobody_confirmed_is_no_mark() -> None:
    anatomy = only(record(faults=(fault(ended_s=None, undo="unknown"),)))

    assert unseen(anatomy, MarkName.UNDONE).reason == "undo was not confirmed"


def test_each_of_two_faults_is_judged_by_its_own_part_of_the_run() -> None:
    run = record(
        faults=(fault("first", 10.0, 20.0), fault("second", 40.0, 50.0)),
        series=(series(down=((10.0, 11.0), (40.0, 43.0))),),
    )
    first, second = find_anatomies(run)

    assert first.duration("recovery").ms == Interval(1000.0, 900.0, 1100.0)
    assert second.duration("recovery").ms == Interval(3000.0, 2900.0, 3100.0)
    assert first.notes == second.notes == ()


def test_faults_that_overlap_are_told_apart_by_nobody_and_the_anatomy_says_so() -> None:
    first, _ = find_anatomies(record(faults=(fault("first", 10.0, 30.0), fault("second", 20.0, 40.0))))

    assert first.notes == ("second was in effect at the same time: what is seen here may be its doing",)


def test_a_fault_that_was_never_in_effect_has_no_anatomy() -> None:
    assert find_anatomies(record(faults=(fault(active_s=None, ended_s=None),))) == ()


@settings(deadline=None)
@given(moved_s=st.floats(20.5, 40.0), phase_s=st.floats(0.0, 0.099), error_ms=st.floats(-2.0, 2.0))
def test_the_range_of_time_to_failover_holds_the_truth(moved_s: float, phase_s: float, error_ms: float) -> None:
    """Whatever the phase of the sampling, and with the agent's clock off by as much as its error says."""
    run = record(
        faults=(fault(active_s=20.0 + error_ms / 1000),),
        series=(
            series(begin_s=phase_s, down=((20.0, moved_s),), who=lambda t: "app-2" if moved_s <= t < 51.0 else "app-1"),
        ),
    )
    failover = only(run).duration("time_to_failover").ms

    assert failover is not None
    assert failover.low - 1e-3 <= (moved_s - 20.0) * 1000 <= failover.high + 1e-3
