"""disk.io: read from and write to a disk at a steady rate.

One worker for each direction reads or writes one block after the other, round and round in an unnamed file or at random
places of it, each block at its own absolute due time, past the page cache (O_DIRECT). Where the file system refuses
O_DIRECT, writes are followed by fdatasync(2) and reads drop their pages first, and the effect says so. The file is
filled with random bytes beforehand, since holes and zeros never reach a disk.

A rate is in bytes or in requests a second; the latter is the former divided by the size of a block, and is kept as
bytes, so that a policy's ceiling for the one holds for the other.
"""

import functools
import itertools
import mmap
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from brownout_agent.faults.contract import (
    ABLE,
    ByteRate,
    Capability,
    Effect,
    Facts,
    FaultParameters,
    Hold,
    Host,
    Meter,
    Record,
    Refusal,
    SizeBytes,
)
from brownout_agent.faults.disk_folder import locate
from brownout_agent.faults.stressor import Stressor, as_stressor, become_stressor, confine, place
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.disks import (
    ALIGNMENT_BYTES,
    IN_MEMORY,
    ScratchFile,
    filesystem_of,
    open_scratch,
    remedy_for,
    storage_bytes,
)
from brownout_agent.kernel.processes import ProcessKey
from brownout_agent.quantities import format_size, parse_size_bytes

Direction = Literal["read", "write"]
Pattern = Literal["sequential", "random"]
Transfer = Callable[[ScratchFile, mmap.mmap, int], None]
MOST_REQUESTS_PER_S = 1_000_000


def _parse_requests_per_s(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number of requests a second; write it like 500")
    return value


RequestsPerS = Annotated[int, BeforeValidator(_parse_requests_per_s), Field(ge=1, le=MOST_REQUESTS_PER_S)]

TOLERANCE = 0.05
"""A mean rate further from the asked one than this share of it is not proved."""
_MIB = 2**20
_FREE_SPACE_KEPT_BYTES = 64 * _MIB
_BLOCKS_PER_S = 20
_DEBT_KEPT_S = 0.5
_FILL_WITHIN_S = 15.0


class DiskIoParameters(FaultParameters):
    read: ByteRate | None = Field(default=None, gt=0, description="how fast to read, like 20MiB/s")
    write: ByteRate | None = Field(default=None, gt=0, description="how fast to write, like 20MiB/s")
    read_iops: RequestsPerS | None = Field(
        default=None, description="how fast to read, in requests a second of `block` each; in place of `read`"
    )
    write_iops: RequestsPerS | None = Field(
        default=None, description="how fast to write, in requests a second of `block` each; in place of `write`"
    )
    pattern: Pattern = Field(
        default="sequential", description="sequential, or random: each block at a random place of the working set"
    )
    fsync: bool = Field(default=False, description="true: each write waits for fsync(2), as a database's commit does")
    path: str | None = Field(
        default=None, description="a folder on the disk that is meant; the agent's scratch folder if left out"
    )
    block: SizeBytes | None = Field(
        default=None,
        ge=ALIGNMENT_BYTES,
        le=16 * _MIB,
        description="bytes a request, in multiples of 4KiB up to 16MiB; for about 20 requests a second if left out",
    )
    file_size: SizeBytes = Field(
        default=64 * _MIB, ge=_MIB, le=4096 * _MIB, description="the working set on disk, like 64MiB; 1MiB to 4GiB"
    )

    @model_validator(mode="before")
    @classmethod
    def _requests_as_bytes(cls, written: Any) -> Any:
        """A rate in requests is one in bytes as well. What is no number or no size is for its own field to refuse."""
        if not isinstance(written, dict):
            return written
        rates: dict[str, str] = {}
        for way in ("read", "write"):
            requests = written.get(f"{way}_iops")
            if requests is None:
                continue
            if written.get(way) is not None:
                raise ValueError(f"give `{way}` or `{way}_iops`, not both")
            if "block" not in written:
                raise ValueError(f"`{way}_iops` needs the size of a request, like `block: 4KiB`")
            if isinstance(requests, int | float) and 1 <= requests <= MOST_REQUESTS_PER_S:
                rates[way] = f"{int(requests * parse_size_bytes(written['block']))}B/s"
        return {**written, **rates}

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        if path is not None and not path.startswith("/"):
            raise ValueError(f"`{path}` is not an absolute path; write it like /var/lib/postgresql")
        return path

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.read is None and self.write is None:
            raise ValueError("give `read`, `write` or both, like `write: 20MiB/s`")
        if self.fsync and self.write is None:
            raise ValueError("`fsync` is about writes; give `write`, or leave it out")
        if self.block is not None and self.block % ALIGNMENT_BYTES:
            raise ValueError(f"`block` is {self.block} bytes and must be a multiple of 4KiB, as direct I/O wants it")
        if self.block is not None and self.block > self.file_size:
            raise ValueError("`block` is larger than `file_size`")
        return self

    def rates(self) -> dict[Direction, int]:
        """Bytes a second of each direction that was asked for."""
        rates: dict[Direction, int] = {}
        if self.read is not None:
            rates["read"] = self.read
        if self.write is not None:
            rates["write"] = self.write
        return rates


class DiskIo(Stressor[DiskIoParameters]):
    kind: ClassVar[str] = "disk.io"
    summary: ClassVar[str] = "Read from or write to a disk at a steady rate"
    reverts: ClassVar[str] = "The kernel: its workers die with the injector or by their timers, and the file with them."
    Parameters = DiskIoParameters
    bounds: ClassVar[frozenset[str]] = frozenset({"paths"})

    def detect(self, host: Host) -> Capability:
        if not Path("/proc/self/io").exists():
            reason = "/proc/PID/io is missing, so that no rate could be proved"
            return Capability(False, reason, "use a kernel with CONFIG_TASK_IO_ACCOUNTING, as distributions build it")
        return ABLE

    def prepare(self, parameters: DiskIoParameters, host: Host) -> Facts:
        folder = locate(parameters.path or host.scratch, host)
        elsewhere = "name a folder on an ext4, xfs or btrfs disk by `path`"
        if (kind := filesystem_of(folder)) in IN_MEMORY:
            raise Refusal(f"{folder} is on {kind}, which is memory and no disk", elsewhere)
        try:
            scratch = open_scratch(folder)
        except OSError as error:
            raise Refusal(
                f"{folder} takes no unnamed file (O_TMPFILE): {error.strerror}", remedy_for(error, elsewhere)
            ) from error
        os.close(scratch.descriptor)
        space = os.statvfs(folder)
        free = space.f_bavail * space.f_frsize
        if free < parameters.file_size + _FREE_SPACE_KEPT_BYTES:
            raise Refusal(
                f"{folder} has {format_size(free)} free; a working set of {format_size(parameters.file_size)} needs "
                f"{format_size(_FREE_SPACE_KEPT_BYTES)} more than itself",
                "make `file_size` smaller, or name another folder by `path`",
            )
        return {"folder": folder, "is_direct": scratch.is_direct, **place()}

    def apply(self, parameters: DiskIoParameters, facts: Facts, hold: Hold) -> None:
        rates = parameters.rates()
        confine(facts, hold, forks=len(rates))
        try:
            file = open_scratch(facts["folder"])  # as root: what it may open later is nothing
            _fill(file, parameters.file_size)
        except OSError as error:
            raise Refusal(f"cannot fill a working set in {facts['folder']}: {error.strerror}") from error
        workers = {
            direction: hold.fork(
                as_stressor(functools.partial(_work, file, direction, rate_bps, parameters, hold.fault_id))
            )
            for direction, rate_bps in rates.items()
        }
        become_stressor()
        hold.ready(workers={direction: [key.pid, key.start_ticks] for direction, key in workers.items()})
        hold.wait()

    def measure(self, record: Record[DiskIoParameters], host: Host) -> Meter:
        workers = {direction: ProcessKey.from_json(pair) for direction, pair in record.facts["workers"].items()}
        return DiskMeter(record.parameters, workers, record.facts["is_direct"])


def block_bytes(parameters: DiskIoParameters, rate_bps: int) -> int:
    """Bytes a request: as asked, or for about 20 requests a second, from 4 KiB to 1 MiB."""
    if parameters.block is not None:
        return parameters.block
    wanted = rate_bps // _BLOCKS_PER_S // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    return min(max(wanted, ALIGNMENT_BYTES), _MIB)


# ---- inside the workers -----------------------------------------------------------------------------------------


def next_due_s(due_s: float, interval_s: float, now_s: float) -> float:
    """When the next block is due, on the monotonic clock, after one that was due at `due_s` is done at `now_s`.

    Due times are absolute, so that a late block is made up for. A disk that cannot keep up owes half a second at most:
    what is asked is a rate, and not a backlog worked off in a burst.
    """
    return max(due_s + interval_s, now_s - _DEBT_KEPT_S)


def offsets(pattern: Pattern, file_size: int, block: int, seed: str) -> Iterator[int]:
    """Where one block after the other begins; it has no end. Pure: one seed, one order."""
    places = range(0, file_size - block + 1, block)
    if pattern == "sequential":
        return itertools.cycle(places)
    chooser = random.Random(seed)  # noqa: S311 - nothing is to be kept secret
    return (chooser.choice(places) for _ in itertools.count())


def _fill(file: ScratchFile, size: int) -> None:
    buffer = _random_pages(_MIB)
    late_s = time.monotonic() + _FILL_WITHIN_S
    for offset in range(0, size, _MIB):
        os.pwrite(file.descriptor, buffer, offset)
        if time.monotonic() > late_s:
            raise Refusal(
                f"this disk took only {format_size(offset + _MIB)} of a working set of {format_size(size)} in "
                f"{_FILL_WITHIN_S:g} s; make `file_size` smaller"
            )
    os.fdatasync(file.descriptor)


def _random_pages(length: int) -> mmap.mmap:
    """A page-aligned buffer of bytes that no layer below can compress or share."""
    buffer = mmap.mmap(-1, length)
    buffer.write(os.urandom(length))
    return buffer


def _work(
    file: ScratchFile, direction: Direction, rate_bps: int, parameters: DiskIoParameters, fault_id: str
) -> NoReturn:
    transfer: Transfer = _read if direction == "read" else _write_synced if parameters.fsync else _write
    block = block_bytes(parameters, rate_bps)
    buffer = _random_pages(block)
    due_s = time.monotonic()
    for offset in offsets(parameters.pattern, parameters.file_size, block, f"{fault_id} {direction}"):
        transfer(file, buffer, offset)
        now_s = time.monotonic()
        due_s = next_due_s(due_s, block / rate_bps, now_s)
        time.sleep(max(due_s - now_s, 0.0))
    raise AssertionError("there is always another block")


def _read(file: ScratchFile, buffer: mmap.mmap, offset: int) -> None:
    if not file.is_direct:
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead: it would read more than asked
        os.posix_fadvise(file.descriptor, offset, len(buffer), os.POSIX_FADV_DONTNEED)
    os.preadv(file.descriptor, [buffer], offset)


def _write(file: ScratchFile, buffer: mmap.mmap, offset: int) -> None:
    os.pwrite(file.descriptor, buffer, offset)
    if not file.is_direct:
        os.fdatasync(file.descriptor)


def _write_synced(file: ScratchFile, buffer: mmap.mmap, offset: int) -> None:
    os.pwrite(file.descriptor, buffer, offset)
    os.fsync(file.descriptor)


# ---- the meter --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """What each direction's worker has moved to or from storage so far, at one moment."""

    at_ns: int
    moved_bytes: dict[Direction, int]

    def rates_since(self, earlier: "Reading") -> dict[Direction, float]:
        """Bytes a second of each direction in between."""
        seconds = max(self.at_ns - earlier.at_ns, 1) / 1e9
        return {way: (moved - earlier.moved_bytes[way]) / seconds for way, moved in self.moved_bytes.items()}


@dataclass(slots=True)
class DiskMeter(Meter):
    """Rates at the storage layer, from /proc/PID/io of the workers, read from outside of them."""

    parameters: DiskIoParameters
    workers: dict[Direction, ProcessKey]
    is_direct: bool
    _readings: list[Reading] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sample()

    def sample(self) -> None:
        moved: dict[Direction, int] = {}
        for way, worker in self.workers.items():
            counted = storage_bytes(worker)
            if counted is None:
                return  # a worker that died takes its counters along; what was read before stands
            moved[way] = counted.read if way == "read" else counted.write
        self._readings.append(Reading(boottime_ns(), moved))

    def effect(self) -> Effect:
        asked_bps = self.parameters.rates()
        asked = float(sum(asked_bps.values()))
        if len(self._readings) < 2:
            return Effect(asked, None, "bytes/s", False, "The fault ended before its rate could be measured.")
        first, last = self._readings[0], self._readings[-1]
        rates = last.rates_since(first)
        seconds = (last.at_ns - first.at_ns) / 1e9
        windows = [
            sum(now.rates_since(before).values())
            for before, now in zip(self._readings, self._readings[1:], strict=False)
        ]
        reasons = [reason for way in rates if (reason := self._why_not(way, rates[way], asked_bps[way], seconds))]
        said = " and ".join(self._said(way, rate_bps, asked_bps[way]) for way, rate_bps in rates.items())
        explanation = f"At the storage layer (/proc/PID/io), over {seconds:.1f} s: {said}, {self._how()}."
        return Effect(
            asked=asked,
            achieved=sum(rates.values()),
            unit="bytes/s",
            proved=not reasons,
            explanation=" ".join([explanation, *reasons]),
            samples=len(windows),
            lowest=min(windows),
            highest=max(windows),
        )

    def _said(self, way: Direction, rate_bps: float, asked_bps: int) -> str:
        block = block_bytes(self.parameters, asked_bps)
        requests = f"{rate_bps / block:.3g} requests of {format_size(block)} a second"
        return f"{way} {format_size(rate_bps)}/s of {format_size(asked_bps)}/s ({requests})"

    def _how(self) -> str:
        how = ["past the page cache" if self.is_direct else "through the page cache, synced, for want of O_DIRECT"]
        how += ["at random places"] if self.parameters.pattern == "random" else []
        how += ["each write followed by fsync"] if self.parameters.fsync else []
        return ", ".join(how)

    def _why_not(self, way: Direction, rate_bps: float, asked_bps: int, seconds: float) -> str:
        if is_near(rate_bps, asked_bps, block_bytes(self.parameters, asked_bps), seconds):
            return ""
        if rate_bps > asked_bps:
            return f"The {way} rate is above what was asked."
        return f"The disk did not keep up with the {way} rate, one request at a time."


def is_near(rate_bps: float, asked_bps: int, block: int, seconds: float) -> bool:
    """Whether a mean rate over so many seconds is what was asked.

    The first and the last block may fall on either side of a reading: one block is allowed beside the tolerance, but
    never so much that a disk at rest would pass.
    """
    one_block_bps = min(block / seconds, asked_bps / 2)
    return abs(rate_bps - asked_bps) <= TOLERANCE * asked_bps + one_block_bps
