"""cpu.load: keep cores busy.

**What the percentage is of.** 100 % is every chosen core busy all the time. With `of: total` it is what the host, or
the chosen cores, come *to*, others included: mean of /proc/stat over the chosen cores, where busy is everything but
idle and iowait (`kernel/cpu.py`). With `of: own` it is what the fault uses itself, on each chosen core, on top of
others.

One worker is pinned to each core and burns a level of it in a closed loop on its own CPU clock (`kernel/duty.py`).
With `of: own` the level is the percentage. With `of: total` one more process, the regulator, reads /proc/stat four
times a second and sets every worker's level: proportional on what others use, integral on what was missed so far,
since /proc/stat is sampled at the tick and right only on average.
"""

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, NoReturn

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

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
)
from brownout_agent.faults.stressor import Stressor, as_stressor, become_stressor, confine, place
from brownout_agent.kernel.cgroups import CpuQuota, cpu_quota
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.cpu import (
    CoreTicks,
    cpu_time_ns,
    format_core_list,
    parse_core_list,
    read_core_ticks,
    set_nice,
    together,
)
from brownout_agent.kernel.duty import SharedLevels, burn
from brownout_agent.kernel.processes import ProcessKey, read_stat

TOLERANCE_POINTS = 3.0
"""A mean further from the asked percentage than this, or than half of what was asked, is not proved."""
LEAST_OWN_POINTS = 1.0
"""A total that others brought about, while the fault itself used less than this, is not proved."""
_REGULATE_EVERY_S = 0.25
_SECONDS_TO_MAKE_UP = 2.0
_DEBT_KEPT_S = 0.25
_NEWEST_COUNTS = 0.4
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _cores(value: object) -> object:
    if isinstance(value, str):
        return parse_core_list(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    return value


def _sorted_once(cores: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(cores)))


Core = Annotated[int, Field(ge=0, strict=True)]
_CORES_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": r"^\s*\d+(-\d+)?\s*(,\s*\d+(-\d+)?\s*)*$"},
        {"type": "integer", "minimum": 0},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
    ]
}
Cores = Annotated[
    tuple[Core, ...],
    BeforeValidator(_cores),
    AfterValidator(_sorted_once),
    Field(min_length=1),
    WithJsonSchema(_CORES_SCHEMA),
]


class CpuLoadParameters(FaultParameters):
    percent: Percent = Field(description="how busy, in percent of all chosen cores; above 0 and up to 100")
    of: Literal["total", "own"] = Field(
        default="total",
        description="total: bring the cores to this percentage, others included; own: use this much on top of others",
    )
    cores: Cores | None = Field(default=None, description="which cores, like 0-3,5 or a list; all when left out")
    nice: int = Field(
        default=0, ge=-20, le=19, description="scheduling priority of the workers: -20 wins over others, 19 yields"
    )


class CpuLoad(Stressor[CpuLoadParameters]):
    kind: ClassVar[str] = "cpu.load"
    summary: ClassVar[str] = "Keep the host, or chosen cores, at a percentage of CPU"
    reverts: ClassVar[str] = "The kernel: workers are killed with the injector and by their own timers."
    Parameters = CpuLoadParameters

    def detect(self, host: Host) -> Capability:
        try:
            read_core_ticks(os.sched_getaffinity(0))
        except OSError as error:
            return Capability(False, f"/proc/stat does not tell of the cores: {error}", "mount /proc")
        return ABLE

    def prepare(self, parameters: CpuLoadParameters, host: Host) -> Facts:
        allowed = os.sched_getaffinity(0)
        asked = allowed if parameters.cores is None else set(parameters.cores)
        if missing := asked - allowed:
            raise Refusal(
                f"core {format_core_list(missing)} is not available; this host has {format_core_list(allowed)}",
                f"write `cores: {format_core_list(asked & allowed or allowed)}`, or leave `cores` out for all",
            )
        return {"cores": sorted(asked), **place()}

    def apply(self, parameters: CpuLoadParameters, facts: Facts, hold: Hold) -> None:
        cores: list[int] = facts["cores"]
        confine(facts, hold, forks=len(cores) + 1)
        if parameters.nice != 0:
            _set_nice(parameters.nice)
        levels = SharedLevels([parameters.percent / 100] * len(cores))
        workers = [
            _fork_on(core, hold, functools.partial(burn, functools.partial(levels.get, index)))
            for index, core in enumerate(cores)
        ]
        if parameters.of == "total":
            hold.fork(as_stressor(functools.partial(_regulate, parameters.percent / 100, cores, workers, levels)))
        become_stressor()
        hold.ready(workers=[[worker.pid, worker.start_ticks] for worker in workers])
        hold.wait()

    def measure(self, record: Record[CpuLoadParameters], host: Host) -> Meter:
        workers = [ProcessKey.from_json(pair) for pair in record.facts["workers"]]
        return CpuMeter(record.parameters, record.facts["cores"], workers)


def _fork_on(core: int, hold: Hold, work: Callable[[], None]) -> ProcessKey:
    """Fork a stressor that is pinned from its first instruction on: nobody else may pin it later."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        return hold.fork(as_stressor(work))
    finally:
        os.sched_setaffinity(0, everywhere)


def _set_nice(nice: int) -> None:
    try:
        set_nice(nice)
    except PermissionError as error:
        raise Refusal(f"`nice: {nice}` needs CAP_SYS_NICE; run the injector as root, or leave `nice` out") from error


# ---- the regulator: brings the cores to a percentage, others included -------------------------------------------


def fill_to_mean(others: Sequence[float], mean: float) -> float:
    """The level L such that the mean of max(other, L) is `mean`: water poured over an uneven ground.

    A core that others already drive above the mean is left alone and the rest are brought up by less, so that the
    host as a whole comes to the percentage. Shares from 0 to 1; a mean that others alone exceed gives the smallest.
    """
    missing = mean * len(others)
    ground = sorted(others)
    for count in range(len(ground), 0, -1):
        level = (missing - sum(ground[count:])) / count
        if level >= ground[count - 1]:
            return level
    return ground[0]


@dataclass(slots=True)
class Regulator:
    """What each worker should burn, from what /proc/stat and the workers' CPU clocks said. No I/O, no clock."""

    target: float
    """The mean busy share of all cores that is wanted, 0 to 1."""
    others: list[float]
    """What others use of each core, smoothed."""
    owed_s: float = 0.0
    """Seconds of one core, mean over the cores, that are still missing; negative when there were too many."""

    def step(self, elapsed_s: float, busy: Sequence[float], own: Sequence[float]) -> list[float]:
        """The levels for the next period, given the shares of the last one for each core: all, and our own."""
        owed_s = self.owed_s + (self.target - sum(busy) / len(busy)) * elapsed_s
        self.owed_s = min(max(owed_s, -_DEBT_KEPT_S), _DEBT_KEPT_S)
        for index, (all_busy, own_busy) in enumerate(zip(busy, own, strict=True)):
            self.others[index] += _NEWEST_COUNTS * (all_busy - own_busy - self.others[index])
        level = fill_to_mean(self.others, self.target + self.owed_s / _SECONDS_TO_MAKE_UP)
        return [min(max(level - other, 0.0), 1.0) for other in self.others]


def _regulate(target: float, cores: list[int], workers: list[ProcessKey], levels: SharedLevels) -> NoReturn:
    regulator = Regulator(target, [0.0] * len(cores))
    seen_ns, ticks = time.monotonic_ns(), read_core_ticks(cores)
    used_ns = [cpu_time_ns(worker.pid) for worker in workers]
    while True:
        time.sleep(_REGULATE_EVERY_S)
        now_ns, now_ticks = time.monotonic_ns(), read_core_ticks(cores)
        now_used_ns = [cpu_time_ns(worker.pid) for worker in workers]
        elapsed_ns = now_ns - seen_ns
        busy = [now_ticks[core].share_since(ticks[core]) for core in cores]
        own = [(now - before) / elapsed_ns for now, before in zip(now_used_ns, used_ns, strict=True)]
        for index, level in enumerate(regulator.step(elapsed_ns / 1e9, busy, own)):
            levels.set(index, level)
        seen_ns, ticks, used_ns = now_ns, now_ticks, now_used_ns


# ---- the judgement ----------------------------------------------------------------------------------------------


def is_proved(of: str, asked: float, achieved: float, own: float) -> bool:
    """Whether the mean is what was asked and the fault had a part in it. All in percent of the chosen cores."""
    is_near = abs(achieved - asked) <= min(TOLERANCE_POINTS, asked / 2)
    return is_near and (of == "own" or own >= min(LEAST_OWN_POINTS, asked / 2))


# ---- the meter --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """The chosen cores as one, and what the workers used of them, at one moment."""

    at_ns: int
    ticks: CoreTicks
    own_s: float

    def busy_percent_since(self, earlier: "Reading") -> float:
        return 100 * self.ticks.share_since(earlier.ticks)

    def own_percent_since(self, earlier: "Reading", core_count: int) -> float:
        elapsed_s = (self.at_ns - earlier.at_ns) / 1e9
        return 100 * (self.own_s - earlier.own_s) / (elapsed_s * core_count) if elapsed_s > 0 else 0.0


@dataclass(slots=True)
class CpuMeter(Meter):
    """`of: total` by /proc/stat, `of: own` by /proc/PID/stat of the workers; both read from outside of them."""

    parameters: CpuLoadParameters
    cores: list[int]
    workers: list[ProcessKey]
    quota: CpuQuota | None = None
    _own_ticks: dict[ProcessKey, int] = field(default_factory=dict)
    _throttled_before_s: float | None = None
    _readings: list[Reading] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sample()

    def sample(self) -> None:
        for worker in self.workers:
            stat = read_stat(worker.pid)
            if stat is not None and stat.start_ticks == worker.start_ticks:
                self._own_ticks[worker] = stat.cpu_ticks
                self._read_quota(worker.pid)
        ticks = together(read_core_ticks(self.cores).values())
        self._readings.append(Reading(boottime_ns(), ticks, sum(self._own_ticks.values()) / _TICKS_PER_S))

    def _read_quota(self, pid: int) -> None:
        try:
            self.quota = cpu_quota(pid) or self.quota
        except (FileNotFoundError, ProcessLookupError):
            return  # it died between two looks; what was read before stands
        if self.quota is not None and self._throttled_before_s is None:
            self._throttled_before_s = self.quota.throttled_s

    def effect(self) -> Effect:
        first, last = self._readings[0], self._readings[-1]
        if last.ticks.total == first.ticks.total:
            return Effect(
                self.parameters.percent, None, "percent", False, "the fault ended before it could be measured"
            )
        total_percent = last.busy_percent_since(first)
        own_percent = last.own_percent_since(first, len(self.cores))
        is_total = self.parameters.of == "total"
        achieved = total_percent if is_total else own_percent
        windows = [
            now.busy_percent_since(before) if is_total else now.own_percent_since(before, len(self.cores))
            for before, now in zip(self._readings, self._readings[1:], strict=False)
        ]
        seconds = (last.at_ns - first.at_ns) / 1e9
        said = (
            f"Over {seconds:.1f} s cores {format_core_list(self.cores)} was busy for {total_percent:.1f} % "
            f"(/proc/stat, everything but idle and iowait), {own_percent:.1f} % by the fault itself "
            f"(/proc/PID/stat); 100 % is {len(self.cores)} chosen core(s) busy all the time."
        )
        proved = is_proved(self.parameters.of, self.parameters.percent, achieved, own_percent)
        return Effect(
            asked=self.parameters.percent,
            achieved=achieved,
            unit="percent",
            proved=proved,
            explanation=said if proved else f"{said} {self._why_not(achieved, total_percent, own_percent)}",
            samples=len(windows),
            lowest=min(windows),
            highest=max(windows),
        )

    def _why_not(self, achieved: float, total: float, own: float) -> str:
        asked, others = self.parameters.percent, total - own
        if self.parameters.of == "total" and (achieved > asked or own < LEAST_OWN_POINTS < others):
            return (
                f"Others used {others:.1f} %, at times more than {asked:g} % on their own, which it cannot take back."
            )
        if achieved > asked:
            return f"It used more than {asked:g} %."
        throttled_s = self.quota.throttled_s - (self._throttled_before_s or 0.0) if self.quota else 0.0
        if self.quota is not None and throttled_s > 0:
            return (
                f"The CPU quota of control group {self.quota.group} ({self.quota.cores:g} cores) starved it: the "
                f"kernel held the group back for {throttled_s:.1f} s."
            )
        if others > TOLERANCE_POINTS:
            remedy = "; a lower `nice`, down to -20, gives it precedence" if self.parameters.nice > -20 else ""
            return f"Others used {others:.1f} % and won over it{remedy}."
        return "The kernel gave its workers too little CPU time."
