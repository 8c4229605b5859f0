"""How busy each core is, as the whole host sees it (/proc/stat), and how much CPU time one process has used.

**Busy is everything but idle and iowait**, as top, htop and psutil have it: user, nice, system, irq, softirq and steal.
Steal is busy since nobody on this host could have used it; iowait is idle since a runnable process would have got it.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
_AUTOGROUP = Path("/proc/self/autogroup")
_IDLE, _IOWAIT, _STEAL = 3, 4, 7  # columns of a cpu line, proc(5); later ones (guest) are already within user and nice


@dataclass(frozen=True, slots=True)
class CoreTicks:
    """What one core, or several together, did since boot, in clock ticks (1/100 s, whatever CONFIG_HZ is)."""

    busy: int
    total: int

    def share_since(self, earlier: "CoreTicks") -> float:
        """The busy share in between, 0 to 1; 0 when no tick went by. Counters that step back count as standing."""
        total = self.total - earlier.total
        return min(max(self.busy - earlier.busy, 0) / total, 1.0) if total > 0 else 0.0


def parse_core_ticks(text: str) -> dict[int, CoreTicks]:
    """Every online core of a /proc/stat text, by its number."""
    cores: dict[int, CoreTicks] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name.startswith("cpu") and name != "cpu":
            columns = [int(column) for column in rest.split()[: _STEAL + 1]]
            total = sum(columns)
            cores[int(name[3:])] = CoreTicks(total - columns[_IDLE] - columns[_IOWAIT], total)
    return cores


def read_core_ticks(cores: Iterable[int]) -> dict[int, CoreTicks]:
    """What these cores did since boot.

    Raises:
        OSError: one of them is offline.
    """
    found = parse_core_ticks(_STAT.read_text())
    try:
        return {core: found[core] for core in cores}
    except KeyError as error:
        raise OSError(f"core {error.args[0]} is not online") from None


def together(cores: Iterable[CoreTicks]) -> CoreTicks:
    """Several cores as one."""
    cores = tuple(cores)
    return CoreTicks(sum(core.busy for core in cores), sum(core.total for core in cores))


def cpu_time_ns(pid: int) -> int:
    """CPU time that this process has used, exact to the nanosecond (clock_getcpuclockid(3), without its call).

    Raises:
        OSError: there is no such process.
    """
    cpu_clock_of_whole_process = 2  # CPUCLOCK_SCHED, include/linux/posix-timers.h
    return time.clock_gettime_ns((~pid << 3) | cpu_clock_of_whole_process)


def set_nice(nice: int) -> None:
    """Give this process and its session a nice value, -20 (wins over others) to 19 (yields).

    Where the kernel groups processes by session (sched_autogroup, the default of most distributions), a process's nice
    value counts within its session only, and the session's own one against others (sched(7)): both are set.

    Raises:
        PermissionError: a negative value without CAP_SYS_NICE.
        ValueError: this process does not lead its session, so that others of it would be changed as well.
    """
    if os.getsid(0) != os.getpid():
        raise ValueError("a process that does not lead its session may not set the session's nice value")
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    if _AUTOGROUP.exists():
        _AUTOGROUP.write_text(str(nice))


def parse_core_list(text: str) -> tuple[int, ...]:
    """The cores of `0-3,5`, sorted and each once (the "list format" of cpuset(7)).

    Raises:
        ValueError: not such a list.
    """
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ValueError(f"`{text}` is not a list of cores; write it like 0-3,5")
        if dash and int(last) > 65_535:
            raise ValueError(f"`{text}` names more cores than any host has")
        cores.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cores))


def format_core_list(cores: Iterable[int]) -> str:
    """`[0, 1, 2, 5]` -> `0-2,5`."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
