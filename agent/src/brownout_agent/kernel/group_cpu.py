"""What a control group did with CPU time: how much it used, and how often the kernel held it back for its quota."""

from dataclasses import dataclass
from pathlib import Path

from brownout_agent.kernel.cgroup_tree import members_below
from brownout_agent.kernel.cgroups import read_control, read_keyed
from brownout_agent.kernel.cpu import cpu_time_ns
from brownout_agent.kernel.processes import ProcessKey, key_of


@dataclass(frozen=True, slots=True)
class Throttling:
    """Since the group was made: periods in which it ran, those of them in which it was held back, and how long.

    `held_back_s` is summed over the cores, so it may be more than the time that went by.
    """

    periods: int
    throttled: int
    held_back_s: float


def throttling(group: Path) -> Throttling:
    """By cpu.stat; zeros where the group is gone."""
    stat = read_keyed(group / "cpu.stat")
    held_back_s = stat["throttled_usec"] / 1e6 if "throttled_usec" in stat else stat.get("throttled_time", 0) / 1e9
    return Throttling(stat.get("nr_periods", 0), stat.get("nr_throttled", 0), held_back_s)


class CpuClock:
    """The CPU time that a group uses from now on, groups below it included.

    Version 2 counts it itself, version 1 where cpuacct is mounted with cpu. Elsewhere the CPU clocks of the processes
    are added up: what one used that came and went between two readings is missed.
    """

    def __init__(self, group: Path) -> None:
        self._group = group
        self._began: dict[ProcessKey, int] = {}
        self._used: dict[ProcessKey, int] = {}
        self._latest_ns = 0
        if "usage_usec" in read_keyed(group / "cpu.stat"):
            self.instrument = "cpu.stat"
        elif (group / "cpuacct.usage").exists():
            self.instrument = "cpuacct.usage"
        else:
            self.instrument = "the CPU clocks of its processes"
            self._began = self._clocks()
        self._began_ns = self._count_ns()

    def used_ns(self) -> int:
        """Since this clock was made; of a group that is gone, what was read last."""
        self._latest_ns = max(self._latest_ns, self._count_ns() - self._began_ns)
        return self._latest_ns

    def _count_ns(self) -> int:
        match self.instrument:
            case "cpu.stat":
                return read_keyed(self._group / "cpu.stat").get("usage_usec", 0) * 1_000
            case "cpuacct.usage":
                return int(read_control(self._group / "cpuacct.usage") or 0)
            case _:
                self._used |= self._clocks()
                return sum(used - self._began.get(key, 0) for key, used in self._used.items())

    def _clocks(self) -> dict[ProcessKey, int]:
        clocks = {}
        for pid in members_below(self._group) - {0}:
            key = key_of(pid)
            if key is None:
                continue
            try:
                clocks[key] = cpu_time_ns(pid)
            except OSError:  # it has ended since
                continue
        return clocks
