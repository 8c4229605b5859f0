"""disk.inodes: use up the inodes of a file system: "No space left on device" (ENOSPC) while there is space.

The inodes are those of empty unnamed files (O_TMPFILE), each kept by an open descriptor: nothing is to be seen in the
folder, and the kernel frees them when the processes that hold them die, or when a host that crashed mounts the file
system again. The price is memory of the kernel and a descriptor for each, shared among so many processes as the limit
on descriptors (RLIMIT_NOFILE) makes necessary. What would take too much of either is refused.
"""

import json
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

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
)
from brownout_agent.faults.disk_folder import can_hold_unnamed, locate_for_unnamed
from brownout_agent.faults.memory_room import default_reserve, read_room
from brownout_agent.kernel.folders import opened
from brownout_agent.kernel.processes import PROC
from brownout_agent.quantities import format_size

LEAVE_AT_LEAST = 1_000
"""Inodes that stay free unless less is asked for by `leave`."""
KERNEL_BYTES_PER_FILE = 2_048
"""What an open file without a name keeps in memory: on ext4 of Linux 6.18 1512 bytes (inode, dentry, file)."""
MOST_FILES = 300_000
"""So that they are gone about 2 s after the end: on ext4, one of 19,000 takes 9 us to make and 6 us to free. Names in a
hidden folder take 20 us and 14 us, cost no memory, and stay when whoever made them dies."""
_PROCESSES_MAX = 64
_OWN_DESCRIPTORS = 64
_OPEN_WITHIN_S = 15.0
_CHURN_FILES = 16
_UNCOUNTED_FILES = 16_384
"""How many more are tried where none is to be left: xfs counts in batches, and gives some beyond its limit."""

Inodes = Annotated[int, Field(le=2**32)]


class DiskInodesParameters(FaultParameters):
    one_of: ClassVar[tuple[str, ...]] = ("count", "percent", "leave")
    path: str = Field(pattern="^/", description="a folder on the file system that is meant, like /var/lib/postgresql")
    count: Inodes | None = Field(default=None, ge=1, description="how many to take, like 10000")
    percent: Percent | None = Field(default=None, description="how many are used then, others' included")
    leave: Inodes | None = Field(default=None, ge=0, description="how many stay free, like 100; 0 leaves none")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(getattr(self, way) is not None for way in self.one_of) != 1:
            raise ValueError("give exactly one of `count`, `percent` and `leave`")
        return self


@dataclass(frozen=True, slots=True)
class InodeTable:
    """How many files a file system may have, and how many more it can take (statvfs(3))."""

    total: int
    free: int


class DiskInodes(Fault[DiskInodesParameters]):
    kind: ClassVar[str] = "disk.inodes"
    summary: ClassVar[str] = "Use up the inodes of a file system, so that no file can be made while there is space"
    reverts: ClassVar[str] = (
        "The kernel: the inodes are unnamed files', which go when the processes that hold them die."
    )
    Parameters = DiskInodesParameters
    bounds: ClassVar[frozenset[str]] = frozenset({"paths"})

    def detect(self, host: Host) -> Capability:
        return can_hold_unnamed(host)

    def prepare(self, parameters: DiskInodesParameters, host: Host) -> Facts:
        folder = locate_for_unnamed(parameters.path, host)
        table = read_inodes(folder)
        if table.total == 0:
            raise Refusal(
                f"the file system of {folder} has no limit on inodes, as btrfs has none: it makes them of free space",
                "use disk.fill there, or name a folder on ext4, xfs or tmpfs by `path`",
            )
        take = to_take(parameters, table)
        if take <= 0:
            raise Refusal(f"{folder} has {table.free} inodes free; nothing is to be taken to leave as many as asked")
        if parameters.leave is None and table.free - take < LEAVE_AT_LEAST:
            raise Refusal(
                f"{folder} has {table.free} inodes free; {take} would leave {max(0, table.free - take)} of them",
                f"ask for less, or say `leave`: without it {LEAVE_AT_LEAST} stay free",
            )
        _refuse_too_many(take)
        return {"folder": folder, "take": take, "free_before": table.free}

    def apply(self, parameters: DiskInodesParameters, facts: Facts, hold: Hold) -> None:
        told, tell = os.pipe()
        tried = facts["take"] + (_UNCOUNTED_FILES if parameters.leave == 0 else 0)
        shares = split(tried, _descriptors_a_process())
        keepers = [hold.fork(_keep(facts["folder"], share, tell)) for share in shares]
        os.close(tell)
        with os.fdopen(told, "rb") as lines:
            said = [json.loads(line) for line in lines]  # to its end: each has told and closed it, or is dead
        if len(said) == len(keepers):
            hold.ready(held=sum(held for held, _ in said), why_no_more=next((why for _, why in said if why), ""))
        hold.wait()

    def measure(self, record: Record[DiskInodesParameters], host: Host) -> Meter:
        return _InodeMeter(record.facts)


def read_inodes(folder: str) -> InodeTable:
    found = os.statvfs(folder)
    return InodeTable(found.f_files, found.f_ffree)


def to_take(parameters: DiskInodesParameters, table: InodeTable) -> int:
    """How many inodes are to be taken. Pure; not above 0 where enough are used already."""
    if parameters.count is not None:
        return parameters.count
    if parameters.leave is not None:
        return table.free - parameters.leave
    assert parameters.percent is not None, "the model holds exactly one"
    return int(table.total * parameters.percent / 100) - (table.total - table.free)


def split(count: int, most: int) -> list[int]:
    """Shares of `most` at most, as few as there can be. Pure."""
    return [min(most, count - begun) for begun in range(0, count, most)]


def _descriptors_a_process() -> int:
    """How many files a process may hold beside what it has open anyway: its hard limit is had for the asking."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(hard - _OWN_DESCRIPTORS, 1)


def _refuse_too_many(take: int) -> None:
    """Each file costs memory of the kernel and a descriptor, of which other programs need theirs."""
    smaller = "ask for fewer, or name a folder on a smaller file system"
    room = read_room()
    allocated, _, most = map(int, (PROC / "sys/fs/file-nr").read_text().split())
    bounds = (
        (MOST_FILES, "what the kernel frees within seconds of the fault's end", ""),
        (
            (room.available_bytes - default_reserve(room.total_bytes)) // KERNEL_BYTES_PER_FILE,
            f"what the memory allows: {format_size(KERNEL_BYTES_PER_FILE)} of the kernel's for each; "
            f"{format_size(room.available_bytes)} are available ({room.limited_by}), "
            f"{format_size(default_reserve(room.total_bytes))} of them stay in reserve",
            "",
        ),
        (most - allocated - most // 10, "what fs.file-max allows, of which a tenth stays free", "raise fs.file-max"),
        (
            _PROCESSES_MAX * _descriptors_a_process(),
            f"what {_PROCESSES_MAX} processes may have open",
            "raise the injector's limit (LimitNOFILE=)",
        ),
    )
    fits, why, remedy = min(bounds)
    if take > fits:
        raise Refusal(
            f"{take} inodes are more than the {max(fits, 0)} that can be held here: {why}",
            f"{smaller}; or {remedy}" if remedy else smaller,
        )


# ---- inside the keepers ------------------------------------------------------------------------------------------


def _keep(folder: str, share: int, tell: int) -> Callable[[], None]:
    """The work of a fork: hold so many unnamed files, tell how many they are, and stay."""

    def run() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        os.write(tell, json.dumps(_open_files(folder, share)).encode() + b"\n")
        os.close(tell)
        while True:
            signal.pause()

    return run


def _open_files(folder: str, share: int) -> tuple[int, str]:
    """How many could be had, and why no more; "" when the share could."""
    give_up_s = time.monotonic() + _OPEN_WITHIN_S
    with opened(folder) as descriptor:
        for held in range(share):
            if time.monotonic() > give_up_s:
                return held, f"the disk was too slow to make more in {_OPEN_WITHIN_S:g} s"
            try:
                os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o600, dir_fd=descriptor)
            except OSError as error:
                return held, str(error.strerror)
    return share, ""


# ---- the meter ---------------------------------------------------------------------------------------------------


class _InodeMeter(Meter):
    """Reads what the file system itself counts (statvfs(3)): what is not free cannot be had, whoever has it."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._free: list[int] = []

    def sample(self) -> None:
        self._free.append(read_inodes(self._facts["folder"]).free)

    def effect(self) -> Effect:
        asked, before, held = self._facts["take"], self._facts["free_before"], self._facts["held"]
        if not self._free:
            return Effect(asked, None, "inodes", False, "it ended before it could be measured")
        least = before - max(self._free)
        text = (
            f"{least} of {asked} inodes of {self._facts['folder']} were used up at every look: of {before} free ones "
            f"{max(self._free)} were left at the most (statvfs). {held} are those of its unnamed files."
        )
        if held < asked:
            text += f" It got no more: {self._facts['why_no_more']}."
        return Effect(
            asked=asked,
            achieved=least,
            unit="inodes",
            proved=is_near(least, asked) and is_near(held, asked),
            explanation=text,
            samples=len(self._free),
            lowest=least,
            highest=before - min(self._free),
        )


def is_near(achieved: int, asked: int) -> bool:
    """Whether so many inodes are as good as taken. Others make and remove files meanwhile: a few are theirs. Pure."""
    return achieved >= asked - min(max(_CHURN_FILES, asked // 100), asked // 2)
