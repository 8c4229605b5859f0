"""A process that keeps memory in RAM, down to a reserve; what the faults that take memory have in common.

**How much it takes.** `size`, or `percent` of the memory that was available when the fault was prepared: MemAvailable
of /proc/meminfo, or what the injector's own control group still allows if that is less. Never Free + Cached, which
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
    Facts,
    FaultParameters,
    Hold,
    Meter,
    Percent,
    Refusal,
    SizeBytes,
)
from brownout_agent.faults.memory_room import REGROW_ROOM_BYTES, default_reserve, next_size, read_room
from brownout_agent.faults.stressor import become_stressor, confine, place
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.credentials import give_up_root
from brownout_agent.kernel.memory import PAGE_BYTES, ResidentMemory, oom_kills, read_meminfo, resident_bytes
from brownout_agent.kernel.processes import ProcessKey
from brownout_agent.quantities import format_size

_MIB = 2**20
_GROW_UNTIL_READY_S = 10.0
"""A very large size is ready before it is complete, rather than never; the meter tells how far it came."""

Allowance = Callable[[float], int]
"""How many bytes are asked for so many seconds after the keeper began."""


class MemoryParameters(FaultParameters):
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


def detect_available() -> Capability:
    """Whether this host says how much memory can be had."""
    if "MemAvailable" not in read_meminfo():
        return Capability(False, "/proc/meminfo has no MemAvailable", "a kernel since 3.14 has it")
    return ABLE


def prepare_keeper(parameters: MemoryParameters) -> Facts:
    """How much will be taken in the end, and what stays.

    Raises:
        Refusal: it would eat into the reserve.
    """
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


def apply_keeper(facts: Facts, hold: Hold, allowance: Allowance, watch_every_s: float) -> None:
    """Have a fork keep what is allowed, looked at so often; ready when it has what is asked for at its beginning."""
    confine(facts, hold, forks=1, memory_bytes=facts["asked_bytes"])
    taken, tell = os.pipe()
    keeper = hold.fork(_keep(facts, tell, allowance, watch_every_s))
    os.close(tell)
    become_stressor()
    with os.fdopen(taken, "rb") as told:
        line = told.readline()
    if line:
        hold.ready(keeper=[keeper.pid, keeper.start_ticks], **json.loads(line))
    hold.wait()


def _keep(facts: Facts, tell: int, allowance: Allowance, watch_every_s: float) -> Callable[[], None]:
    """The work of the fork: lock the memory, which may need root, and take it without; tell when, and keep it."""
    holder_pid = os.getpid()

    def run() -> None:
        most, reserve = facts["asked_bytes"], facts["reserve_bytes"]
        with _refused_by_the_kernel(most):
            memory = ResidentMemory(most)
        give_up_root(holder_pid)
        began_ns = boottime_ns()
        with _refused_by_the_kernel(most):
            _take(memory, allowance(0), reserve)
        said = {"start": memory.start, "end": memory.end, "is_locked": memory.is_locked, "began_ns": began_ns}
        os.write(tell, json.dumps(said).encode() + b"\n")
        with _refused_by_the_kernel(most):
            while True:
                time.sleep(watch_every_s)
                asked = allowance((boottime_ns() - began_ns) / 1e9)
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


def _share(parameters: MemoryParameters) -> float:
    assert parameters.percent is not None, "the model holds exactly one of size and percent"
    return parameters.percent / 100


@dataclass(frozen=True, slots=True)
class Reading:
    """How much was resident at one moment (CLOCK_BOOTTIME)."""

    at_ns: int
    resident_bytes: int


@dataclass(slots=True)
class KeeperMeter(Meter):
    """Resident size of the keeper's mapping, from /proc/PID/smaps, read from outside of it."""

    facts: Facts
    readings: list[Reading] = field(default_factory=list)
    is_gone: bool = False
    _keeper: ProcessKey = field(init=False)
    _least_available: int = field(default_factory=lambda: read_room().available_bytes)
    _oom_kills_before: int = field(default_factory=oom_kills)

    def __post_init__(self) -> None:
        self._keeper = ProcessKey.from_json(self.facts["keeper"])
        self.sample()

    def sample(self) -> None:
        begun_ns = boottime_ns()
        now = resident_bytes(self._keeper, self.facts["start"], self.facts["end"])
        self.is_gone = now is None
        self._least_available = min(self._least_available, read_room().available_bytes)
        if now is not None:
            self.readings.append(Reading((begun_ns + boottime_ns()) // 2, now))

    def how_kept(self) -> str:
        """For people."""
        return "locked in RAM" if self.facts["is_locked"] else "kept in RAM by touching it"

    def why_less(self) -> str:
        """What kept it from taking more, for people."""
        reserve = self.facts["reserve_bytes"]
        if self._least_available < reserve + REGROW_ROOM_BYTES:
            return f"Others needed memory, and it never takes the reserve of {format_size(reserve)}."
        return "The host was too slow to hand out that much within the fault's time."

    def death(self) -> str:
        """A sentence about its end before its time; empty while it lives."""
        if not self.is_gone:
            return ""
        kills = oom_kills() - self._oom_kills_before
        cause = f"; the kernel's OOM killer struck {kills} time(s) meanwhile" if kills else ""
        return f" The holder died before its time{cause}."
