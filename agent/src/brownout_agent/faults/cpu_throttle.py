"""`cpu.throttle`: a service gets no more than a quota of CPU time, as on a small or crowded virtual machine.

The quota of its control group is lowered (`cpu.max`; `cpu.cfs_quota_us` in version 1): once it has used its share of a
period, 100 ms as a rule, none of its threads runs until the next. What needs little CPU time does not notice, and what
needs more is slow in bursts; so it is proved only where the kernel did hold the group back.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from brownout_agent.faults.contract import Effect, Facts, Host, Meter, Record, Refusal
from brownout_agent.faults.group_limit import REVERTS, GroupLimit, Setting, SettingWatch, limit_facts, settings_of
from brownout_agent.faults.group_match import Controller, GroupParameters, control_file, refuse_second
from brownout_agent.kernel.cgroups import cpu_quota_over
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.group_cpu import CpuClock, throttling
from brownout_agent.quantities import parse_core_percent

LEAST_QUOTA_US = 1_000
"""The kernel takes no less (min_cfs_quota_period, kernel/sched/core.c)."""
TICK_NS = 10_000_000
"""The kernel looks at the tick whether a core has used up its part; the longest is 10 ms (CONFIG_HZ_100)."""


class ThrottleParameters(GroupParameters):
    """Whose CPU time is limited, and to how much."""

    quota: Annotated[
        float,
        BeforeValidator(parse_core_percent),
        Field(description="what it may use, in percent of one core as in systemd's CPUQuota=: 20%, or 150% of several"),
    ]


class CpuThrottle(GroupLimit[ThrottleParameters]):
    """Lowers the quota of one group, and gives back the old one."""

    kind = "cpu.throttle"
    summary = "Let a service, or processes with a control group of their own, use no more CPU time than a quota."
    reverts = REVERTS.format(what="quota")
    Parameters = ThrottleParameters
    controller: ClassVar[Controller] = Controller("cpu", ("cpu.max", "cpu.cfs_quota_us"), "CPUWeight=100")

    def prepare(self, parameters: ThrottleParameters, host: Host) -> Facts:
        file = control_file(parameters, host, self.controller)
        group = file.parent
        refuse_second(self.kind, group, host)
        cores = os.cpu_count() or 1
        if parameters.quota >= 100 * cores:
            raise Refusal(f"{parameters.quota:g} % is all that {cores} cores have, and limits nothing", "ask for less")
        tightest = cpu_quota_over(group)
        if tightest is not None and 100 * tightest.cores <= parameters.quota:
            raise Refusal(f"{tightest.group} has a quota of {100 * tightest.cores:g} % already", "ask for less")
        before = file.read_text().strip()
        period_us = _period_us(file)
        quota_us = int(period_us * parameters.quota / 100)
        if quota_us < LEAST_QUOTA_US:
            least = 100 * LEAST_QUOTA_US / period_us
            raise Refusal(f"{parameters.quota:g} % of a period of {period_us} us is too little", f"ask for {least:g}%")
        ours = f"{quota_us} {period_us}" if file.name == "cpu.max" else str(quota_us)
        return {**limit_facts(group, Setting(str(file), before, ours)), "period_us": period_us}

    def measure(self, record: Record[ThrottleParameters], host: Host) -> Meter:
        return _ThrottleMeter(record)


def _period_us(file: Path) -> int:
    in_version_1 = file.name != "cpu.max"
    return int(file.with_name("cpu.cfs_period_us").read_text() if in_version_1 else file.read_text().split()[1])


def most_ns(quota: float, elapsed_ns: int, period_us: int, cores: int) -> float:
    """The CPU time that a quota lets through in a time that may begin and end within a period. Pure.

    `quota` is in percent of one core. What a core takes too much between two ticks it has to give back later
    (kernel/sched/fair.c, __account_cfs_rq_runtime), so that is added once.
    """
    return quota / 100 * (elapsed_ns + period_us * 1_000) + cores * TICK_NS


@dataclass(frozen=True, slots=True)
class _Reading:
    at_ns: int
    used_ns: int

    def percent_since(self, earlier: "_Reading") -> float:
        elapsed_ns = self.at_ns - earlier.at_ns
        return 100 * (self.used_ns - earlier.used_ns) / elapsed_ns if elapsed_ns > 0 else 0.0


class _ThrottleMeter(Meter):
    """Reads how much CPU time the group used, and what the kernel counts of holding it back."""

    def __init__(self, record: Record[ThrottleParameters]) -> None:
        self._group = Path(record.facts["group"])
        self._quota = record.parameters.quota
        self._period_us: int = record.facts["period_us"]
        self._watch = SettingWatch(settings_of(record.facts))
        self._before = self._latest = throttling(self._group)
        self._clock = CpuClock(self._group)
        self._readings = [_Reading(boottime_ns(), 0)]

    def sample(self) -> None:
        if self._watch.look():
            self._latest = throttling(self._group)
            self._readings.append(_Reading(boottime_ns(), self._clock.used_ns()))

    def effect(self) -> Effect:
        unit = "% of one core"
        first, last = self._readings[0], self._readings[-1]
        if len(self._readings) == 1:
            text = f"the fault ended before it could be measured{self._watch.text}"
            return Effect(self._quota, None, unit, False, text)
        elapsed_ns, used = last.at_ns - first.at_ns, last.percent_since(first)
        windows = [
            now.percent_since(before)
            for before, now in zip(self._readings, self._readings[1:], strict=False)
            if now.at_ns - before.at_ns >= self._period_us * 1_000  # in less it may use all of a period's share
        ] or [used]
        periods = self._latest.periods - self._before.periods
        throttled = self._latest.throttled - self._before.throttled
        held_back_s = self._latest.held_back_s - self._before.held_back_s
        text = (
            f"over {elapsed_ns / 1e9:.1f} s {self._group} used {used:.1f} % of one core ({self._clock.instrument}); "
            f"the kernel held it back in {throttled} of the {periods} periods in which it ran, for {held_back_s:.1f} s "
            f"summed over the cores (cpu.stat){self._watch.text}"
        )
        if not throttled:
            text += "; it wanted no more than its quota, so nothing was taken from it"
        is_kept = last.used_ns <= most_ns(self._quota, elapsed_ns, self._period_us, os.cpu_count() or 1)
        is_proved = throttled > 0 and is_kept and self._watch.always_stood
        return Effect(
            self._quota, used, unit, is_proved, text,
            samples=self._watch.looks, lowest=min(windows), highest=max(windows),
        )  # fmt: skip
