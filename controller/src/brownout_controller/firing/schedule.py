"""When something is due. Pure: a schedule and a window in, due times out, the same for every controller."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from apscheduler.triggers.cron import CronTrigger

from brownout_controller.language.nearest import nearest

NS_PER_S = 10**9
SHORTEST_S = 10
"""Between two due times. A run takes longer than that in any case."""
_TEN_YEARS_NS = 3_653 * 86_400 * NS_PER_S
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FIELDS = 5
_WEEKDAYS = re.compile(r"([0-7])(?:-([0-7]))?(?:/([1-7]))?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ScheduleRefused(Exception):
    """No schedule can be made of this; the text says why."""


@dataclass(frozen=True, slots=True)
class Window:
    """Times after `after_ns` and up to `until_ns`, ns since the Unix epoch."""

    after_ns: int
    until_ns: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """Either `cron` with its `zone`, or `every_ns`; made by `cron_schedule` and `interval_schedule`."""

    schedule_id: str
    """A UUID. With a due time it is the key of what happens then."""
    begins_ns: int
    """Nothing is due before; an interval counts from here."""
    grace_ns: int
    """So late it may still be fired; later it is missed."""
    payload: str
    """For whoever carries it out."""
    cron: str | None = None
    zone: str | None = None
    every_ns: int | None = None


def cron_schedule(schedule_id: str, cron: str, zone: str, begins_ns: int, grace_ns: int, payload: str) -> Schedule:
    """Due by five cron fields in a time zone; 0 and 7 are Sunday, as in crontab(5).

    Where clocks are put forward, a time that does not exist is due as much later as the gap is long; where they are put
    back, a time that exists twice is due twice.

    Raises:
        ScheduleRefused: no such zone, unreadable, or never due.
    """
    schedule = Schedule(schedule_id, begins_ns, grace_ns, payload, cron=cron, zone=zone)
    soon = Window(begins_ns, begins_ns + _TEN_YEARS_NS)
    if next(due_times(schedule, soon), None) is None:
        raise ScheduleRefused(f"cron `{cron}` is not due once within ten years")
    return schedule


def interval_schedule(schedule_id: str, every_ns: int, begins_ns: int, grace_ns: int, payload: str) -> Schedule:
    """Due at `begins_ns` + n * `every_ns`, n = 1, 2, ...

    Raises:
        ScheduleRefused: more often than every SHORTEST_S.
    """
    if every_ns < SHORTEST_S * NS_PER_S:
        raise ScheduleRefused(f"every {every_ns / NS_PER_S:g} s is too often; at least {SHORTEST_S} s lie between runs")
    return Schedule(schedule_id, begins_ns, grace_ns, payload, every_ns=every_ns)


def due_times(schedule: Schedule, window: Window) -> Iterator[int]:
    """Every due time in the window, in order, each once."""
    after_ns = max(window.after_ns, schedule.begins_ns)
    if schedule.every_ns is not None:
        # Whole numbers: APScheduler's IntervalTrigger counts in floats, and two controllers must agree on every digit.
        count = (after_ns - schedule.begins_ns) // schedule.every_ns + 1
        last = (window.until_ns - schedule.begins_ns) // schedule.every_ns
        yield from (schedule.begins_ns + n * schedule.every_ns for n in range(count, last + 1))
        return
    assert schedule.cron is not None
    assert schedule.zone is not None
    trigger = _trigger(schedule.cron, schedule.zone)
    while (due_ns := _next(trigger, after_ns)) is not None and due_ns <= window.until_ns:
        yield due_ns
        after_ns = due_ns


def _next(trigger: CronTrigger, after_ns: int) -> int | None:
    now = _EPOCH + timedelta(microseconds=after_ns // 1_000 + 1)
    due: datetime | None = trigger.get_next_fire_time(None, now)
    # Cron knows whole seconds, so nothing is lost here.
    return None if due is None else int((due - _EPOCH).total_seconds()) * NS_PER_S


@lru_cache(maxsize=256)
def _trigger(cron: str, zone: str) -> CronTrigger:
    try:
        place = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        near = nearest(zone, available_timezones())
        hint = f"; did you mean {near}?" if near else ""
        raise ScheduleRefused(f"there is no time zone {zone!r}{hint}") from error
    fields = cron.split()
    if len(fields) != _FIELDS:
        raise ScheduleRefused(f"cron `{cron}` has {len(fields)} fields, not five: minute hour day month weekday")
    minute, hour, day, month, weekday = fields
    if day != "*" and weekday != "*":
        raise ScheduleRefused(
            f"cron `{cron}` names days of the month and of the week; some programs take that for both and some for "
            "either, so it is not taken at all. Make two schedules"
        )
    try:
        weekdays = ",".join(_named(item) for item in weekday.split(","))
        return CronTrigger(
            minute=minute, hour=hour, day=day, month=month, day_of_week=weekdays, second=0, timezone=place
        )
    except ValueError as error:
        raise ScheduleRefused(f"cron `{cron}` cannot be read: {error}") from error


def _named(item: str) -> str:
    """Weekdays by name: for crontab(5) 0 is Sunday, for APScheduler it is Monday."""
    found = _WEEKDAYS.fullmatch(item.replace("*/", "0-6/"))
    if found is None:
        return item
    first, last, step = (None if part is None else int(part) for part in found.groups())
    assert first is not None
    if last is None:
        last = len(_DAYS) - 1 if step else first
    if first > last:
        raise ValueError(f"weekdays from {first} to {last}")
    return ",".join(_DAYS[first : last + 1 : step or 1])
