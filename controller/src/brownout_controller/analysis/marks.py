"""Marks: the moments of a failover, each with how far off it may be and who saw it."""

from dataclasses import dataclass
from enum import StrEnum

from brownout_controller.analysis.interval import Interval
from brownout_controller.analysis.outages import NS_PER_MS


class MarkName(StrEnum):
    """The moments of a failover, in the order in which they usually come."""

    INJECTED = "injected"
    FIRST_USER_ERROR = "first_user_error"
    NOTICED = "noticed"
    MOVED = "moved"
    STEADY = "steady"
    UNDONE = "undone"
    FAILED_BACK = "failed_back"


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment that was seen. It lies within [earliest_ns, latest_ns] on the run's timeline."""

    name: MarkName
    at_ns: int
    source: str
    """The probe and vantage, watcher or agent that saw it, and what it saw."""
    before_ns: int = 0
    """How much earlier it may have been: the sampling or polling interval."""
    after_ns: int = 0
    """How much later it may have been: an answer that took long may have waited for it."""
    clock: str = ""
    """The host whose clock stamped it. Two marks of one clock have no clock error between them."""
    clock_error_ns: int = 0

    @property
    def earliest_ns(self) -> int:
        """The earliest it may have been, clock error included."""
        return self.at_ns - self.before_ns - self.clock_error_ns

    @property
    def latest_ns(self) -> int:
        """The latest it may have been, clock error included."""
        return self.at_ns + self.after_ns + self.clock_error_ns


@dataclass(frozen=True, slots=True)
class NotSeen:
    """A moment that was not seen, and why. That may be good news, or a lack of instruments; `reason` says which."""

    name: MarkName
    reason: str
    until_ns: int | None = None
    """It would have been seen up to here; None where nothing could have shown it."""


def between_ms(earlier: Mark, later: Mark) -> Interval:
    """The time from one mark to the other. Never below zero: what looks earlier was within the uncertainty."""
    error_ns = 0 if earlier.clock == later.clock else earlier.clock_error_ns + later.clock_error_ns
    value = later.at_ns - earlier.at_ns
    low = value - later.before_ns - earlier.after_ns - error_ns
    high = value + later.after_ns + earlier.before_ns + error_ns
    return Interval(*(max(0.0, bound / NS_PER_MS) for bound in (value, low, high)))
