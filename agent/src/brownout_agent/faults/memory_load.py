"""memory.load: take memory and keep it in RAM, without taking the host down.

**What it takes.** `size`, or `percent` of the memory that was available when the fault was prepared: MemAvailable of
/proc/meminfo, or what the injector's own control group still allows if that is less. Never Free + Cached, which
counts memory that cannot be had.

**What it never takes.** The `reserve`. An order that would eat into it is refused. While the fault holds, others may
push the host below it: then the fault gives memory back, and takes it again once there is room. If memory runs out
all the same, the process that holds it is the kernel's first victim (oom_score_adj 1000), and the effect says so.

**Who holds it.** A fork of the holder, which has one thread. While the holder itself had the memory, and its second
thread besides, the kernel killed it first and then often another process too, before the memory was free: in 7 to 80 %
of the trials of `tests/host/test_memory_load.py` on Linux 6.18 (eight times 40). With one thread it was none of 80, and
so it is with the fork. Why is not known for certain: a bare process of two threads did no such thing in 80 trials.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Self

from pydantic import Field, model_validator

from brownout_agent.faults.contract import (
    ABLE,
    Capability,
    Effect,
    Facts,
    FaultParameters,
    Hold,
    Host,
    Meter,
    Percent,
    Record,
    Refusal,
    SizeBytes,
)
from brownout_agent.faults.stressor import Stressor, become_stressor, confine, place
from brownout_agent.kernel.cgroups import memory_limit
from brownout_agent.kernel.credentials import give_up_root
from brownout_agent.kernel.memory import PAGE_BYTES, ResidentMemory, oom_kills, read_meminfo, resident_bytes
from brownout_agent.kernel.processes import ProcessKey
from brownout_agent.quantities import format_size

TOLERANCE = 0.01
"""A mean further from the asked size than this share of it is not proved."""
_MIB = 2**20
_STEP_BYTES = 128 * _MIB
_WATCH_EVERY_S = 0.2
"""No event tells that available memory has come to a level of our choice; pressure-stall triggers come after stalls."""
_REGROW_ROOM_BYTES = 32 * _MIB
"""Room above the reserve before memory is taken again, so that it does not swing around the reserve."""
_GROW_UNTIL_READY_S = 10.0
"""A very large size is ready before it is complete, rather than never; the meter tells how far it came."""


class MemoryLoadParameters(FaultParameters):
    one_of: ClassVar[tuple[str, ...]] = ("size", "percent")
    size: SizeBytes | None = Field(default=None, ge=_MIB, description="how much to take, like 512MiB; at least 1MiB")
    percent: Percent | None = Field(
        default=None, description="how much to take, in percent of the memory available at the start"
    )
    reserve: SizeBytes | None = Field(
        default=None,
        ge=64 * _MIB,
        description="memory never taken, like 1GiB; at least 64MiB; 5 % of all memory but at least 256MiB if left out",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(getattr(self, way) is not None for way in self.one_of) != 1:
            raise ValueError("give exactly one of `size` (like 512MiB) and `percent` (of available memory)")
        return self


class MemoryLoad(Stressor[MemoryLoadParameters]):
    kind: ClassVar[str] = "memory.load"
    summary: ClassVar[str] = "Take memory and keep it in RAM, down to a reserve"
    reverts: ClassVar[str] = "The kernel: the memory is freed when the holder dies, with the injector or by its timer."
    Parameters = MemoryLoadParameters

    def detect(self, host: Host) -> Capability:
        if "MemAvailable" not in read_meminfo():
            return Capability(False, "/proc/meminfo has no MemAvailable", "a kernel since 3.14 has it")
        return ABLE

    def prepare(self, parameters: MemoryLoadParameters, host: Host) -> Facts:
        room = read_room()
        reserve = parameters.reserve or default_reserve(room.total_bytes)
        asked = parameters.size if parameters.size is not None else int(room.available_bytes * _share(parameters))
        asked = asked // PAGE_BYTES * PAGE_BYTES
        most = room.available_bytes - reserve
        if asked > most:
            fits = f"`size: {most // _MIB}MiB`" if most >= _MIB else "a smaller `reserve`"
            raise Refusal(
                f"{format_size(asked)} would eat into the reserve: {format_size(room.available_bytes)} are available "
                f"({room.limited_by}), {format_size(reserve)} of them stay in reserve",
                f"ask for at most {fits}",
            )
        return {"asked_bytes": asked, "reserve_bytes": reserve, **place()}

    def apply(self, parameters: MemoryLoadParameters, facts: Facts, hold: Hold) -> None:
        confine(facts, hold, forks=1, memory_bytes=facts["asked_bytes"])
        taken, tell = os.pipe()
        keeper = hold.fork(_keep(facts, tell))
        os.close(tell)
        become_stressor()
        with os.fdopen(taken, "rb") as told:
            line = told.readline()
        if line:
            hold.ready(keeper=[keeper.pid, keeper.start_ticks], **json.loads(line))
        hold.wait()

    def measure(self, record: Record[MemoryLoadParameters], host: Host) -> Meter:
        return MemoryMeter(record.facts, ProcessKey.from_json(record.facts["keeper"]))


def _keep(facts: Facts, tell: int) -> Callable[[], None]:
    """The work of the fork: lock the memory, which may need root, and take it without; tell when, and keep it."""
    holder_pid = os.getpid()

    def run() -> None:
        asked, reserve = facts["asked_bytes"], facts["reserve_bytes"]
        with _refused_by_the_kernel(asked):
            memory = ResidentMemory(asked)
        give_up_root(holder_pid)
        with _refused_by_the_kernel(asked):
            _take(memory, asked, reserve)
        said = {"start": memory.start, "end": memory.end, "is_locked": memory.is_locked}
        os.write(tell, json.dumps(said).encode() + b"\n")
        with _refused_by_the_kernel(asked):
            while True:
                time.sleep(_WATCH_EVERY_S)
                memory.resize(next_size(memory.held_bytes, asked, read_room().available_bytes, reserve))
                memory.keep_resident()

    return run


@contextmanager
def _refused_by_the_kernel(asked: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refusal(f"the kernel does not hand out {format_size(asked)}: {error.strerror}") from error


def _take(memory: ResidentMemory, asked: int, reserve: int) -> None:
    ready_by_s = time.monotonic() + _GROW_UNTIL_READY_S
    while memory.held_bytes < asked and time.monotonic() < ready_by_s:
        before = memory.held_bytes
        memory.resize(next_size(before, asked, read_room().available_bytes, reserve))
        if memory.held_bytes <= before:
            break


def _share(parameters: MemoryLoadParameters) -> float:
    assert parameters.percent is not None, "the model holds exactly one of size and percent"
    return parameters.percent / 100


@dataclass(frozen=True, slots=True)
class Room:
    """What may be had: the host's memory, or that of the own control group where it is tighter."""

    total_bytes: int
    available_bytes: int
    limited_by: str


def read_room() -> Room:
    """How much memory a process of ours could still take now."""
    info = read_meminfo()
    room = Room(info["MemTotal"], info["MemAvailable"], "MemAvailable of the host")
    limit = memory_limit(os.getpid())
    if limit is None or limit.room_bytes >= room.available_bytes:
        return room
    return Room(min(limit.limit_bytes, room.total_bytes), limit.room_bytes, f"limit of control group {limit.group}")


def default_reserve(total_bytes: int) -> int:
    """What stays free when nothing is said: 5 % of all memory, at least 256 MiB."""
    return max(256 * _MIB, total_bytes // 20)


def next_size(held: int, asked: int, available: int, reserve: int) -> int:
    """How many bytes to hold next, in whole pages: down at once when others eat the reserve, up in steps."""
    spare = available - reserve
    if spare < 0:
        return max(held + spare, 0) // PAGE_BYTES * PAGE_BYTES
    if held == asked or (held < asked and spare < min(_REGROW_ROOM_BYTES, asked - held)):
        return held
    return min(held + min(_STEP_BYTES, spare), asked) // PAGE_BYTES * PAGE_BYTES


@dataclass(slots=True)
class MemoryMeter(Meter):
    """Resident size of the keeper's mapping, from /proc/PID/smaps, read from outside of it."""

    facts: Facts
    keeper: ProcessKey
    _resident: list[int] = field(default_factory=list)
    _least_available: int = field(default_factory=lambda: read_room().available_bytes)
    _is_gone: bool = False
    _oom_kills_before: int = field(default_factory=oom_kills)

    def __post_init__(self) -> None:
        self.sample()

    def sample(self) -> None:
        now = resident_bytes(self.keeper, self.facts["start"], self.facts["end"])
        self._is_gone = now is None
        self._least_available = min(self._least_available, read_room().available_bytes)
        if now is not None:
            self._resident.append(now)

    def effect(self) -> Effect:
        asked = float(self.facts["asked_bytes"])
        if not self._resident:
            return Effect(asked, None, "bytes", False, f"The holder ended before it could be measured.{self._death()}")
        achieved = sum(self._resident) / len(self._resident)
        how = "locked in RAM" if self.facts["is_locked"] else "kept in RAM by touching it"
        said = (
            f"{format_size(achieved)} of {format_size(asked)} were resident, {how}, on average of "
            f"{len(self._resident)} looks at /proc/PID/smaps."
        )
        if achieved < asked * (1 - TOLERANCE) and not self._is_gone:
            said += f" {self._why_less()}"
        return Effect(
            asked=asked,
            achieved=achieved,
            unit="bytes",
            proved=abs(achieved - asked) <= TOLERANCE * asked and not self._is_gone,
            explanation=said + self._death(),
            samples=len(self._resident),
            lowest=min(self._resident),
            highest=max(self._resident),
        )

    def _why_less(self) -> str:
        reserve = self.facts["reserve_bytes"]
        if self._least_available < reserve + _REGROW_ROOM_BYTES:
            return f"Others needed memory, and it never takes the reserve of {format_size(reserve)}."
        return "The host was too slow to hand out that much within the fault's time."

    def _death(self) -> str:
        if not self._is_gone:
            return ""
        kills = oom_kills() - self._oom_kills_before
        cause = f"; the kernel's OOM killer struck {kills} time(s) meanwhile" if kills else ""
        return f" The holder died before its time{cause}."
