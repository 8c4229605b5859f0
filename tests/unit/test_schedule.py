"""When something is due: the same for everybody who asks, over gaps and folds of the clock, and never twice."""

import uuid
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from brownout_controller.firing.schedule import (
    NS_PER_S,
    Schedule,
    ScheduleRefused,
    Window,
    cron_schedule,
    due_times,
    interval_schedule,
)
from hypothesis import given, settings
from hypothesis import strategies as st

ID = str(uuid.UUID(int=1))


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * NS_PER_S


def cron(text: str, zone: str = "UTC", begins: str = "2026-01-01") -> Schedule:
    return cron_schedule(ID, text, zone, ns(begins), 0, "")


def due(schedule: Schedule, after: str, until: str) -> list[str]:
    stamps = due_times(schedule, Window(ns(after), ns(until)))
    return [datetime.fromtimestamp(stamp / NS_PER_S, UTC).strftime("%d %H:%M") for stamp in stamps]


def test_a_window_holds_its_end_and_not_its_beginning() -> None:
    hourly = cron("0 * * * *")
    assert due(hourly, "2026-03-01 01:00", "2026-03-01 03:00") == ["01 02:00", "01 03:00"]


def test_nothing_is_due_before_a_schedule_begins() -> None:
    assert due(cron("0 * * * *", begins="2026-03-01 02:30"), "2026-02-01", "2026-03-01 03:00") == ["01 03:00"]


@pytest.mark.parametrize(
    ("weekday", "days"),
    [
        ("0", ["01"]), ("7", ["01"]), ("1", ["02"]), ("6", ["07"]), ("sun", ["01"]),
        ("1-5", ["02", "03", "04", "05", "06"]), ("5-7", ["01", "06", "07"]), ("0-2", ["01", "02", "03"]),
        ("1,3", ["02", "04"]), ("1-5/2", ["02", "04", "06"]), ("*/2", ["01", "03", "05", "07"]),
    ],
)  # fmt: skip
def test_weekdays_are_those_of_crontab(weekday: str, days: list[str]) -> None:
    """1 March 2026 is a Sunday."""
    found = due(cron(f"0 12 * * {weekday}"), "2026-03-01", "2026-03-08")
    assert found == [f"{day} 12:00" for day in days]


def test_a_time_that_does_not_exist_is_due_as_much_later_as_the_gap_is_long() -> None:
    nightly = cron("30 2 * * *", "Europe/Berlin")
    assert due(nightly, "2026-03-28 12:00", "2026-03-30 12:00") == ["29 01:30", "30 00:30"]  # 03:30, then 02:30 there


def test_a_time_that_exists_twice_is_due_twice() -> None:
    nightly = cron("30 2 * * *", "Europe/Berlin")
    assert due(nightly, "2026-10-24 12:00", "2026-10-26 12:00") == ["25 00:30", "25 01:30", "26 01:30"]


@pytest.mark.parametrize(
    ("text", "zone", "why"),
    [
        ("0 0 30 2 *", "UTC", "not due once within ten years"),
        ("0 0 * *", "UTC", "has 4 fields, not five"),
        ("0 0 * * * *", "UTC", "has 6 fields, not five"),
        ("61 * * * *", "UTC", "cannot be read"),
        ("0 0 * * 5-2", "UTC", "weekdays from 5 to 2"),
        ("0 0 13 * 5", "UTC", "days of the month and of the week"),
        ("0 0 * * *", "Europe/Berln", "did you mean Europe/Berlin"),
        ("0 0 * * *", "../../etc/passwd", "no time zone"),
        ("0 0 * * *", "", "no time zone"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused_with_the_reason(text: str, zone: str, why: str) -> None:
    with pytest.raises(ScheduleRefused, match=why):
        cron(text, zone)


def test_an_interval_shorter_than_a_run_can_be_is_refused() -> None:
    with pytest.raises(ScheduleRefused, match="every 1 s is too often"):
        interval_schedule(ID, NS_PER_S, 0, 0, "")


SCHEDULES = st.one_of(
    st.builds(
        lambda every, begins: interval_schedule(ID, every, begins, 0, ""),
        st.integers(10 * NS_PER_S, 3_600 * NS_PER_S),
        st.integers(0, 10**15),
    ),
    st.builds(
        lambda text, zone: cron_schedule(ID, text, zone, ns("2026-03-28"), 0, ""),
        st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 */3 * * 1-5", "59 1 1 * *"]),
        st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    ),
)


@settings(deadline=None, max_examples=40)
@given(SCHEDULES, st.lists(st.integers(0, 3 * 86_400 * NS_PER_S), max_size=8))
def test_however_a_window_is_cut_the_due_times_are_the_same(schedule: Schedule, cuts: list[int]) -> None:
    begin = schedule.begins_ns
    end = begin + 3 * 86_400 * NS_PER_S
    whole = list(due_times(schedule, Window(begin, end)))
    edges = [begin, *sorted(begin + cut for cut in cuts), end]
    pieces = [due for a, b in pairwise(edges) for due in due_times(schedule, Window(a, b))]
    assert pieces == whole == sorted(set(whole))
