"""`memory.oom`: the kernel kills for want of memory, again and again, as where a program grows beyond its limit.

A *hog* takes memory in a control group of its own until it is at the group's limit, and is killed there: nobody else is
in the group, so nobody else can be. At the next beat there is another. The host's memory is never short: `size` is all
that a hog can have. What is to be seen is what comes of the kills: alerts, the kernel log, `oom_kill` of /proc/vmstat.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NoReturn

from pydantic import Field

from brownout_agent.faults.contract import (
    ABLE,
    Capability,
    DurationMs,
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
from brownout_agent.faults.memory_limit import times_killed
from brownout_agent.faults.memory_room import default_reserve, read_room
from brownout_agent.faults.stressor import Stressor, confine, place
from brownout_agent.kernel import limits, own_groups
from brownout_agent.kernel.cgroups import read_control
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.credentials import give_up_root
from brownout_agent.kernel.memory import PAGE_BYTES, ResidentMemory, oom_kills
from brownout_agent.quantities import format_size

_MIB = 2**20
_LIMITS = ("memory.max", "memory.limit_in_bytes")
_OF_SWAP = {"memory.swap.max": 0, "memory.memsw.limit_in_bytes": 1}
"""How often the limit goes into these: version 1 counts memory and swap together."""
_PANIC_ON_OOM = Path("/proc/sys/vm/panic_on_oom")
_PANICS_ALWAYS = "2"
"""Of every shortage, that of one control group included (Documentation/admin-guide/sysctl/vm.rst)."""
_KEPT_UP = 0.9
"""The share of the kills that a slow host must come to at least."""


class MemoryOomParameters(FaultParameters):
    """How much is taken until the kernel kills, and how often."""

    size: SizeBytes = Field(
        default=64 * _MIB,
        ge=16 * _MIB,
        description="what is taken each time, which is the limit of the hog's control group; 64MiB when left out",
    )
    every: DurationMs = Field(
        default=5_000.0, ge=1_000, le=3_600_000, description="the beat, at least 1s; 5s when left out"
    )

    @property
    def every_s(self) -> float:
        return self.every / 1_000


class MemoryOom(Stressor[MemoryOomParameters]):
    """Starts a hog at every beat; each is killed at its limit."""

    kind: ClassVar[str] = "memory.oom"
    summary: ClassVar[str] = "Have the kernel's OOM killer strike a process of ours again and again, and nobody else."
    reverts: ClassVar[str] = (
        "The kernel: hogs die with their holder, with the injector or by its timer. Whoever undoes removes their empty "
        "control group."
    )
    Parameters = MemoryOomParameters

    def detect(self, host: Host) -> Capability:
        if _hog_parent() is None:
            reason = "there is no control group here in which memory can be limited"
            return Capability(False, reason, "run the injector as root, with the memory controller delegated to it")
        if (read_control(_PANIC_ON_OOM) or "") == _PANICS_ALWAYS:
            return Capability(False, f"{_PANIC_ON_OOM} is 2: the host would panic", "sysctl vm.panic_on_oom=1")
        return ABLE

    def prepare(self, parameters: MemoryOomParameters, host: Host) -> Facts:
        able = self.detect(host)
        parent = _hog_parent()
        if not able.able or parent is None:
            raise Refusal(able.reason, able.remedy)
        room = read_room()
        most = room.available_bytes - default_reserve(room.total_bytes)
        if parameters.size > most:
            raise Refusal(
                f"{format_size(parameters.size)} would eat into the reserve: {format_size(room.available_bytes)} are "
                f"available ({room.limited_by})",
                f"ask for at most `size: {most // _MIB}MiB`" if most >= 16 * _MIB else "free memory first",
            )
        return {"hog_parent": str(parent), **place()}

    def apply(self, parameters: MemoryOomParameters, facts: Facts, hold: Hold) -> None:
        confine(facts, hold, forks=2)
        group = _hog_group(facts, hold.fault_id)
        limit_bytes = parameters.size // PAGE_BYTES * PAGE_BYTES
        try:
            _make(group, limit_bytes)
        except OSError as error:
            raise Refusal(f"no control group for the hog: {error}") from error
        killed, tell = os.pipe()
        hold.fork(_feed(group, limit_bytes, parameters.every_s, tell))
        os.close(tell)
        with os.fdopen(killed, "rb") as told:
            if told.read(1):
                hold.ready()
        hold.wait()

    def undo(self, record: Record[MemoryOomParameters]) -> None:
        own_groups.remove([_hog_group(record.facts, record.fault_id)])
        super().undo(record)

    def residue(self, record: Record[MemoryOomParameters]) -> list[str]:
        group = _hog_group(record.facts, record.fault_id)
        left = [f"control group {group} is still there"] if group.exists() else []
        return left + super().residue(record)

    def measure(self, record: Record[MemoryOomParameters], host: Host) -> Meter:
        return _KillMeter(_hog_group(record.facts, record.fault_id), record.parameters.every_s)


def _hog_parent() -> Path | None:
    """Where a group can be made whose memory is limited; None where there is no such place."""
    for parent in own_groups.parents():
        handed_down = (read_control(parent / "cgroup.subtree_control") or "").split()
        if (parent / "memory.limit_in_bytes").exists() or "memory" in handed_down:
            return parent
    return None


def _hog_group(facts: Facts, fault_id: str) -> Path:
    return Path(facts["hog_parent"]) / f"{own_groups.group_name(fault_id)}-hog"


def _make(group: Path, limit_bytes: int) -> None:
    group.mkdir(exist_ok=True)
    for name in _LIMITS:
        if (group / name).exists():
            (group / name).write_text(str(limit_bytes))
    for name, times in _OF_SWAP.items():  # else a hog that is not allowed to lock its memory would be swapped out
        if (group / name).exists():
            (group / name).write_text(str(times * limit_bytes))


def _feed(group: Path, limit_bytes: int, every_s: float, tell: int) -> Callable[[], None]:
    """The work of a fork: hog after hog; it tells when the first was killed. It forks them, and the holder does not,
    since that has a second thread once the fault is on."""

    def run() -> None:
        due_s = time.monotonic()
        _have_one_killed(group, limit_bytes)
        os.write(tell, b"1")
        while True:
            due_s += every_s
            time.sleep(max(0.0, due_s - time.monotonic()))
            _have_one_killed(group, limit_bytes)

    return run


def _have_one_killed(group: Path, limit_bytes: int) -> None:
    """Raises Refusal: a hog came to another end."""
    feeder_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _live_as_hog(group, limit_bytes, feeder_pid)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise Refusal(f"the kernel did not kill a process that took more than {format_size(limit_bytes)} in {group}")


def _live_as_hog(group: Path, limit_bytes: int, feeder_pid: int) -> NoReturn:
    """Take twice what the group may have, which nobody lives to see."""
    try:
        limits.die_with_parent(feeder_pid)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        memory = ResidentMemory(2 * limit_bytes)
        give_up_root(feeder_pid)
        memory.resize(2 * limit_bytes)
    except OSError as error:
        os.write(2, f"a hog ended by itself: {error}\n".encode())
    finally:
        os._exit(1)


class _KillMeter(Meter):
    """Reads the kernel's own counts of processes that it has killed for want of memory: the group's and the host's."""

    def __init__(self, group: Path, every_s: float) -> None:
        self._group = group
        self._every_s = every_s
        self._began_ns = boottime_ns()
        self._elapsed_s = 0.0
        self._samples = 0
        self._of_group = 0
        self._of_host_before = oom_kills() - times_killed(group)
        self._of_host = 0

    def sample(self) -> None:
        self._samples += 1
        self._of_group = max(self._of_group, times_killed(self._group))  # 0 once the group is gone
        self._of_host = oom_kills() - self._of_host_before
        self._elapsed_s = (boottime_ns() - self._began_ns) / 1e9

    def effect(self) -> Effect:
        asked = 1 + int(self._elapsed_s / self._every_s)
        if not self._samples:
            return Effect(asked, None, "kills", False, f"{self._group} was never looked at")
        others = self._of_host - self._of_group
        text = (
            f"the kernel counts {self._of_group} processes of {self._group} that it killed for want of memory; one "
            f"every {self._every_s:g} s makes {asked}"
        )
        if others > 0:
            text += f"; it killed {others} elsewhere on the host meanwhile"
        is_proved = self._of_group >= max(1, int(_KEPT_UP * (asked - 1)))  # the latest may be under way
        return Effect(asked, self._of_group, "kills", is_proved, text, samples=self._samples)
