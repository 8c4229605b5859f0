"""The one clock of a host: CLOCK_BOOTTIME. No step of the wall clock moves it, and it runs on in suspend."""

import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boottime_ns() -> int:
    """Nanoseconds since boot, suspend included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_offset_ns() -> int:
    """From the boot clock to the wall clock; it moves only when the wall clock is set or slewed."""
    before_ns = boottime_ns()
    wall_ns = time.time_ns()
    return wall_ns - (before_ns + boottime_ns()) // 2


def boot_id() -> str:
    """The kernel's name for this boot; a record of another boot speaks of a kernel that is gone."""
    return _BOOT_ID.read_text().strip()
