"""The one line of time of a run: our monotonic clock, anchored once to the wall clock."""

import time
from dataclasses import dataclass

from brownout_agent.kernel.clock import boottime_ns

from brownout_controller.fleet.clocks import Exchange


@dataclass(frozen=True, slots=True)
class Timeline:
    """Moves stamps of any clock onto nanoseconds since the Unix epoch, free of steps of the wall clock."""

    wall_ns: int
    monotonic_ns: int
    boottime_ns: int

    @classmethod
    def start(cls) -> "Timeline":
        """Anchor a line now."""
        return cls(time.time_ns(), time.monotonic_ns(), boottime_ns())

    def now(self) -> int:
        """This moment on the line."""
        return self.of_monotonic(time.monotonic_ns())

    def of_monotonic(self, stamp_ns: int) -> int:
        """A stamp of our own monotonic clock."""
        return self.wall_ns + stamp_ns - self.monotonic_ns

    def of_own_boottime(self, stamp_ns: int) -> int:
        """A stamp of our own CLOCK_BOOTTIME, as probes of the controller make them."""
        return self.wall_ns + stamp_ns - self.boottime_ns

    def of_agent(self, stamp_ns: int, clock: Exchange) -> int:
        """A stamp of an agent's CLOCK_BOOTTIME, by the measured offset."""
        return self.of_monotonic(stamp_ns - clock.offset_ns)
