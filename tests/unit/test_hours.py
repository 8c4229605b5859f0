"""The hours in which a host takes faults: days, nights, zones and the two odd days of the year."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from brownout_agent.injector.hours import DAYS, Hours


def hours(days: str, begin: str, end: str, tz: str = "UTC") -> Hours:
    written: dict[str, Any] = {"days": days.split(), "from": begin, "to": end, "tz": tz}
    return Hours.model_validate(written)


def at(day: int, hour: int, minute: int = 0, month: int = 11) -> datetime:
    """A time in 2026, UTC; 23 November is a Monday."""
    return datetime(2026, month, day, hour, minute, tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "now", "closes"),
    [
        (hours("mon", "09:00", "17:00"), at(23, 9), at(23, 17)),
        (hours("mon", "09:00", "17:00"), at(23, 16, 59), at(23, 17)),
        (hours("mon", "09:00", "17:00"), at(23, 17), None),
        (hours("mon", "09:00", "17:00"), at(23, 8, 59), None),
        (hours("mon", "09:00", "17:00"), at(24, 10), None),
        (hours("mon", "22:00", "06:00"), at(24, 5, 59), at(24, 6)),
        (hours("mon", "22:00", "06:00"), at(24, 6), None),
        (hours("mon", "22:00", "06:00"), at(23, 5), None),
        (hours("mon", "00:00", "24:00"), at(23, 0), at(24, 0)),
        (hours("mon tue", "00:00", "24:00"), at(23, 12), at(25, 0)),
        (hours("mon", "09:00", "17:00", "Asia/Tokyo"), at(23, 0), at(23, 8)),
        (hours("mon", "09:00", "17:00", "Asia/Tokyo"), at(23, 8), None),
        # Berlin: 29 March 2026 has no 02:30, 25 October has it twice.
        (hours("sun", "01:00", "04:00", "Europe/Berlin"), at(29, 1, 59, month=3), at(29, 2, month=3)),
        (hours("sun", "01:00", "04:00", "Europe/Berlin"), at(25, 2, 59, month=10), at(25, 3, month=10)),
        (hours("sun", "00:00", "24:00", "Europe/Berlin"), at(25, 22, 59, month=10), at(25, 23, month=10)),
    ],
)
def test_a_window_is_open_from_its_first_instant_until_before_its_last(
    window: Hours, now: datetime, closes: datetime | None
) -> None:
    assert window.open_until(now) == closes


def test_where_every_hour_is_open_the_longest_fault_fits_at_any_time() -> None:
    always = hours(" ".join(DAYS), "00:00", "24:00", "Europe/Berlin")
    for hour in range(24 * 7):
        now = at(23, 0) + timedelta(hours=hour, minutes=59)
        closes = always.open_until(now)
        assert closes is not None
        assert closes - now > timedelta(days=5)


@pytest.mark.parametrize(
    "written",
    [
        {"days": ["mon"], "from": "24:00", "to": "17:00", "tz": "UTC"},
        {"days": ["mon"], "from": "09:00", "to": "17:00", "tz": "UTC", "until": "18:00"},
        {"days": ["mon"], "from": "09:00", "to": "17:00", "tz": "x" * 300},
    ],
)
def test_what_is_no_window_is_refused(written: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no window|Extra inputs|no time zone"):
        Hours.model_validate(written)


def test_minutes_count_and_a_window_cannot_be_changed() -> None:
    window = hours("mon", "09:15", "17:45")
    assert [window.open_until(at(23, 9, minute)) for minute in (14, 15)] == [None, at(23, 17, 45)]
    with pytest.raises(ValueError, match="frozen"):
        window.end = "18:00"  # type: ignore[misc]
