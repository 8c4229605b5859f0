"""Burn a share of one core: the closed loop of one worker on its own CPU clock, and the levels that it burns at."""

import mmap
import struct
import time
from collections.abc import Callable
from typing import NoReturn

PERIOD_NS = 47_300_000
"""Short enough to look steady to a monitor, and no multiple of any tick (1, 2.5, 4, 10 ms): /proc/stat samples at the
tick, so that a period in step with it would be seen at the same phase each time, up to a tick wrong."""
_DEBT_KEPT_NS = 2 * PERIOD_NS
_SPINS = 1_000
"""About 20 us of user time between two looks at the clocks, which are system calls."""


class SharedLevels:
    """One number from 0 to 1 for each worker, in memory that every process forked from here on shares."""

    def __init__(self, levels: list[float]) -> None:
        self._memory = mmap.mmap(-1, 8 * len(levels))
        for index, level in enumerate(levels):
            self.set(index, level)

    def set(self, index: int, level: float) -> None:
        struct.pack_into("d", self._memory, 8 * index, level)

    def get(self, index: int) -> float:
        return float(struct.unpack_from("d", self._memory, 8 * index)[0])


def burn(level: Callable[[], float]) -> NoReturn:
    """Use `level()` (0 to 1) of a core for ever, in periods of PERIOD_NS, counted by this process's CPU clock.

    What a rival for the core took is made up for later, but never more than two periods of it: a worker that was
    starved for a minute must not then burn for a minute.
    """
    boundary_ns = time.monotonic_ns()
    goal_ns = time.process_time_ns()
    while True:
        boundary_ns += PERIOD_NS
        goal_ns += round(level() * PERIOD_NS)
        used_ns = time.process_time_ns()
        goal_ns = max(min(goal_ns, used_ns + _DEBT_KEPT_NS), used_ns - PERIOD_NS)
        while time.process_time_ns() < goal_ns and time.monotonic_ns() < boundary_ns:
            for _ in range(_SPINS):
                pass
        rest_ns = boundary_ns - time.monotonic_ns()
        if rest_ns > 0:
            time.sleep(rest_ns / 1e9)
        elif rest_ns < -_DEBT_KEPT_NS:
            boundary_ns = time.monotonic_ns()  # held up (a debugger, a suspend): periods that are gone stay gone
