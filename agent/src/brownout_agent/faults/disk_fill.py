"""disk.fill: take the free space of a file system, all but a little.

The space is held by an unnamed file (O_TMPFILE) that posix_fallocate(3) gives blocks: nothing is written, nothing is
to be seen in the folder, and when the holder dies the kernel frees it, so that an undo needs no space of its own.
"""

import os
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from brownout_agent.faults.contract import (
    Capability,
    Effect,
    Facts,
    Fault,
    FaultParameters,
    Hold,
    Host,
    Meter,
    Percent,
    Record,
    Refusal,
    SizeBytes,
)
from brownout_agent.faults.disk_folder import can_hold_unnamed, locate_for_unnamed
from brownout_agent.kernel.disks import open_unnamed
from brownout_agent.quantities import format_size

_MIB = 2**20
LEAVE_AT_LEAST_BYTES = 64 * _MIB
"""What stays free unless less is asked for by `leave`."""
TOLERANCE_BYTES = 2 * _MIB
_FIRST_STEP_BYTES = 1024 * _MIB


class DiskFillParameters(FaultParameters):
    one_of: ClassVar[tuple[str, ...]] = ("size", "percent", "leave")
    path: str = Field(pattern="^/", description="a folder on the file system that is meant, like /var/lib/postgresql")
    size: SizeBytes | None = Field(default=None, ge=_MIB, description="how much to take, like 10GiB")
    percent: Percent | None = Field(default=None, description="how full the file system becomes, others included")
    leave: SizeBytes | None = Field(default=None, description="how much stays free for ordinary users, like 100MiB")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(getattr(self, way) is not None for way in self.one_of) != 1:
            raise ValueError("give exactly one of `size`, `percent` and `leave`")
        return self


class DiskFill(Fault[DiskFillParameters]):
    kind: ClassVar[str] = "disk.fill"
    summary: ClassVar[str] = "Fill a file system to a level, by a size, or to a rest that stays free"
    reverts: ClassVar[str] = "The kernel: the space is an unnamed file's, which goes when the holder dies."
    Parameters = DiskFillParameters
    bounds: ClassVar[frozenset[str]] = frozenset({"paths"})

    def detect(self, host: Host) -> Capability:
        return can_hold_unnamed(host)

    def prepare(self, parameters: DiskFillParameters, host: Host) -> Facts:
        folder = locate_for_unnamed(parameters.path, host)
        free, total = _free_and_total(folder)
        take = _to_take(parameters, free, total)
        if take <= 0:
            raise Refusal(f"{folder} has {format_size(free)} free, which is less than asked for already")
        if parameters.leave is None and free - take < LEAVE_AT_LEAST_BYTES:
            left = format_size(max(0, free - take))
            raise Refusal(
                f"{folder} has {format_size(free)} free; {format_size(take)} would leave {left} of them",
                f"ask for less, or say `leave`: without it {format_size(LEAVE_AT_LEAST_BYTES)} stay free",
            )
        return {"folder": folder, "take_bytes": take, "free_before_bytes": free}

    def apply(self, parameters: DiskFillParameters, facts: Facts, hold: Hold) -> None:
        descriptor = open_unnamed(facts["folder"])
        taken, step = 0, _FIRST_STEP_BYTES
        while taken < facts["take_bytes"] and step >= os.sysconf("SC_PAGE_SIZE"):
            size = min(step, facts["take_bytes"] - taken)
            try:
                os.posix_fallocate(descriptor, taken, size)
            except OSError:
                step //= 2  # what is left is in smaller pieces, or somebody was faster
            else:
                taken += size
        hold.ready(taken_bytes=taken)
        hold.wait()

    def measure(self, record: Record[DiskFillParameters], host: Host) -> Meter:
        return _FillMeter(record)


class _FillMeter(Meter):
    """Reads the blocks of the holder's file and the file system's free space: neither is the holder's own word."""

    def __init__(self, record: Record[DiskFillParameters]) -> None:
        self._asked = int(record.facts["take_bytes"])
        self._path = str(record.facts["folder"])
        self._holder = record.holders[0].pid
        self._held: list[int] = []
        self._free = 0

    def sample(self) -> None:
        self._held.append(_unnamed_bytes(self._holder, Path(self._path).stat().st_dev))
        self._free, _ = _free_and_total(self._path)

    def effect(self) -> Effect:
        if not self._held:
            return Effect(self._asked, None, "bytes", False, "it ended before it could be measured")
        least = min(self._held)
        proved = abs(least - self._asked) <= TOLERANCE_BYTES
        text = (
            f"{format_size(least)} of {format_size(self._asked)} are held by an unnamed file on {self._path} "
            f"(fstat), {format_size(self._free)} are free for ordinary users (statvfs)."
        )
        return Effect(self._asked, least, "bytes", proved, text, len(self._held), least, max(self._held))


def _to_take(parameters: DiskFillParameters, free: int, total: int) -> int:
    if parameters.size is not None:
        return parameters.size
    if parameters.leave is not None:
        return free - parameters.leave
    assert parameters.percent is not None
    return int(total * parameters.percent / 100) - (total - free)


def _free_and_total(folder: str) -> tuple[int, int]:
    """Bytes free for ordinary users, and bytes that ordinary users could ever have: what `df` reckons with."""
    space = os.statvfs(folder)
    used = space.f_blocks - space.f_bfree
    return space.f_bavail * space.f_frsize, (used + space.f_bavail) * space.f_frsize


def _unnamed_bytes(pid: int, device: int) -> int:
    """Bytes of disk that unnamed files of this process hold on this device, by /proc/PID/fd (proc(5))."""
    held = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        status = entry.stat()
        if status.st_dev == device and status.st_nlink == 0:
            held += status.st_blocks * 512
    return held
