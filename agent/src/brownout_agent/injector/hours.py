"""The hours in which a host takes faults. Pure: the time now comes in as a value."""

import re
from datetime import UTC, datetime, timedelta
from typing import Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")
_DAY = timedelta(days=1)


class Hours(BaseModel):
    """A window on some days of the week. `to` before `from` is on the next day; `24:00` is the end of the day."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = Field(min_length=1)
    start: str = Field(alias="from")
    end: str = Field(alias="to")
    tz: str

    @field_validator("start", "end", mode="before")
    @classmethod
    def _is_clock(cls, text: object) -> object:
        if not isinstance(text, str) or not _CLOCK.fullmatch(text):
            raise ValueError('is no time of day; write it in quotes, like "09:00"')
        return text

    @field_validator("tz")
    @classmethod
    def _is_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
            raise ValueError(f"`{name}` is no time zone of this host; write one like UTC or Europe/Berlin") from None
        return name

    @model_validator(mode="after")
    def _is_a_window(self) -> Self:
        if self.start in {self.end, "24:00"}:
            raise ValueError('from and to make no window; a whole day is from "00:00" to "24:00"')
        return self

    def open_until(self, now: datetime) -> datetime | None:
        """When the window that `now` (aware) is in closes, windows that follow without a gap included; None outside.

        Where every hour of the week is open, it is more than a week away.
        """
        closes = self._closes(now)
        for _ in DAYS:
            later = None if closes is None else self._closes(closes)
            if later is None:
                break
            closes = later
        return closes

    def _closes(self, now: datetime) -> datetime | None:
        # Windows are compared in UTC: two times of one zone would be compared by the clock on the wall alone.
        today = now.astimezone(ZoneInfo(self.tz)).date()
        for date in (today, today - _DAY):
            if DAYS[date.weekday()] not in self.days:
                continue
            midnight = datetime(date.year, date.month, date.day, tzinfo=ZoneInfo(self.tz))
            opens, closes = _at(midnight, self.start), _at(midnight, self.end)
            if self.end <= self.start:
                closes = _at(midnight + _DAY, self.end)
            if opens <= now < closes:
                return closes
        return None

    def __str__(self) -> str:
        return f"{self.start}-{self.end} {self.tz} on {' '.join(self.days)}"


def _at(midnight: datetime, clock: str) -> datetime:
    hour, minute = (int(part) for part in clock.split(":"))
    day = midnight + _DAY * (hour // 24)  # the wall clock's day, of 23 to 25 hours
    return day.replace(hour=hour % 24, minute=minute).astimezone(UTC)
