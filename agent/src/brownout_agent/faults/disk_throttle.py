"""`disk.throttle`: a service uses a disk no faster than a rate, as on a small cloud volume or a worn-out SSD.

A limit for one disk is put on its control group (`io.max`; `blkio.throttle.*_device` in version 1). What goes past the
page cache, and what is read anew, waits for its turn. What is written into the page cache waits only when it is written
back, and only in version 2, where the group has the memory controller as well; a file that another group made dirty
first is written back on that group's account. So it is proved only where the group came up to the limit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from brownout_agent.faults.contract import ByteRate, Effect, Facts, Host, Meter, Record, Refusal
from brownout_agent.faults.disk_folder import locate
from brownout_agent.faults.group_limit import REVERTS, GroupLimit, Setting, SettingWatch, limit_facts, settings_of
from brownout_agent.faults.group_match import Controller, GroupParameters, control_file, refuse_second
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.disks import whole_disk
from brownout_agent.kernel.group_io import read_io
from brownout_agent.quantities import format_size

TOLERANCE = 0.05
"""A mean rate that is higher than the limit by more than this share of it is not proved."""
BUSY = 0.8
"""A group that never came up to this share of a limit for WINDOW_S was not held back by it."""
WINDOW_S = 0.5
"""Readings less far apart than this are taken together: of one request in a moment no rate can be told."""
BURST_S = 0.5
"""What the kernel lets through at once when a group begins, in seconds of the limit (blk-throttle's slices)."""
_DIRECTIONS = {"read": "rbps", "write": "wbps", "read_iops": "riops", "write_iops": "wiops"}
"""By parameter, the word of io.max."""
_VERSION_1 = {"read": "read_bps", "write": "write_bps", "read_iops": "read_iops", "write_iops": "write_iops"}
"""By parameter, the middle of the name blkio.throttle.*_device."""


class DiskThrottleParameters(GroupParameters):
    """Whose reading and writing is limited, on which disk, and to how much."""

    path: Annotated[
        str, Field(pattern="^/", description="a folder on the disk that is meant, like /var/lib/postgresql")
    ]
    read: Annotated[ByteRate | None, Field(gt=0, description="how fast it may read, like 2MiB/s")] = None
    write: Annotated[ByteRate | None, Field(gt=0, description="how fast it may write, like 2MiB/s")] = None
    read_iops: Annotated[int | None, Field(ge=1, le=2**31, description="how many reads a second")] = None
    write_iops: Annotated[int | None, Field(ge=1, le=2**31, description="how many writes a second")] = None

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if not self.limits():
            raise ValueError("give `read`, `write`, `read_iops` or `write_iops`, like `write: 2MiB/s`")
        return self

    def limits(self) -> dict[str, int]:
        """What was asked for, by parameter: bytes, or requests, a second."""
        return {name: limit for name in _DIRECTIONS if (limit := getattr(self, name)) is not None}


class DiskThrottle(GroupLimit[DiskThrottleParameters]):
    """Lowers the limits of one group on one disk, and gives back the old ones."""

    kind = "disk.throttle"
    summary = "Let a service, or processes with a control group of their own, use a disk no faster than a rate."
    reverts = REVERTS.format(what="limits")
    Parameters = DiskThrottleParameters
    bounds: ClassVar[frozenset[str]] = frozenset({"paths"})
    controller: ClassVar[Controller] = Controller("io", ("io.max", "blkio.throttle.read_bps_device"), "IOWeight=100")

    def prepare(self, parameters: DiskThrottleParameters, host: Host) -> Facts:
        folder = locate(parameters.path, host)
        disk = whole_disk(folder)
        if disk is None:
            raise Refusal(f"{folder} is on no disk of its own", "name a folder on an ext4 or xfs disk by `path`")
        file = control_file(parameters, host, self.controller)
        refuse_second(self.kind, file.parent, host)
        for name, limit, there in _limits_over(file, disk, parameters):
            if there <= limit:
                raise Refusal(f"{file.parent} may {name} no more than {there} a second already", "ask for less")
        return {**limit_facts(file.parent, *settings(file, disk, parameters)), "disk": disk}

    def measure(self, record: Record[DiskThrottleParameters], host: Host) -> Meter:
        return _IoMeter(record)


def settings(file: Path, disk: str, parameters: DiskThrottleParameters) -> list[Setting]:
    """One for each limit, so that whoever changes another one keeps it: version 2 has a line of them for each disk,
    version 1 a file for each.
    """
    return [_setting(file, disk, name, limit) for name, limit in parameters.limits().items()]


def _setting(file: Path, disk: str, name: str, limit: int) -> Setting:
    if file.name == "io.max":
        setting = Setting(str(file), "max", str(limit), disk, "max", _DIRECTIONS[name])
    else:
        file = file.with_name(f"blkio.throttle.{_VERSION_1[name]}_device")
        setting = Setting(str(file), "0", str(limit), disk, "0")
    return replace(setting, before=setting.now() or setting.unset)


def _limits_over(file: Path, disk: str, parameters: DiskThrottleParameters) -> Iterator[tuple[str, int, int]]:
    """Name, limit asked for, and limit that this group or one above it has already."""
    for folder in (file.parent, *file.parent.parents):
        if not (folder / file.name).exists():
            continue
        there = settings(folder / file.name, disk, parameters)
        for setting, (name, limit) in zip(there, parameters.limits().items(), strict=True):
            if setting.before != setting.unset:
                yield name, limit, int(setting.before)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was done by then (CLOCK_BOOTTIME), by parameter: bytes, or requests."""

    at_ns: int
    done: dict[str, int]

    def shares_since(self, earlier: "Reading", limits: dict[str, int]) -> dict[str, float]:
        """Of each limit, what was done in between."""
        elapsed_s = (self.at_ns - earlier.at_ns) / 1e9
        return {
            name: (self.done[name] - earlier.done[name]) / elapsed_s / limit if elapsed_s > 0 else 0.0
            for name, limit in limits.items()
        }


def windows(readings: Sequence[Reading], limits: dict[str, int]) -> list[float]:
    """Of the limit that it came nearest to, what was done in each stretch of WINDOW_S or more between two readings.
    Pure.
    """
    found, begun = [], readings[0]
    for reading in readings[1:]:
        if reading.at_ns - begun.at_ns >= WINDOW_S * 1e9:
            found.append(max(reading.shares_since(begun, limits).values()))
            begun = reading
    return found


class _IoMeter(Meter):
    """Reads what the kernel counts of the group's requests to the disk."""

    def __init__(self, record: Record[DiskThrottleParameters]) -> None:
        self._group = Path(record.facts["group"])
        self._disk: str = record.facts["disk"]
        self._limits = record.parameters.limits()
        self._watch = SettingWatch(settings_of(record.facts))
        self._readings = [Reading(boottime_ns(), read_io(self._group, self._disk))]

    def sample(self) -> None:
        if self._watch.look():
            self._readings.append(Reading(boottime_ns(), read_io(self._group, self._disk)))

    def effect(self) -> Effect:
        unit = "% of the limit"
        if len(self._readings) == 1:
            text = f"the fault ended before it could be measured{self._watch.text}"
            return Effect(100.0, None, unit, False, text)
        first, last = self._readings[0], self._readings[-1]
        elapsed_s = (last.at_ns - first.at_ns) / 1e9
        means = last.shares_since(first, self._limits)
        nearest, stretches = max(means.values()), windows(self._readings, self._limits)
        rates = ", ".join(
            f"{_written(name, means[name] * limit)} of {_written(name, limit)}" for name, limit in self._limits.items()
        )
        text = f"over {elapsed_s:.1f} s {self._group} did on average {rates} on disk {self._disk}{self._watch.text}"
        was_held_back = max(stretches, default=0.0) >= BUSY
        if not was_held_back:
            text += "; it never came up to a limit, so nothing held it back"
        is_kept = all(mean <= 1 + TOLERANCE + BURST_S / elapsed_s for mean in means.values())
        return Effect(
            100.0, 100 * nearest, unit, was_held_back and is_kept and self._watch.always_stood, text,
            samples=self._watch.looks, lowest=100 * min(stretches, default=nearest),
            highest=100 * max(stretches, default=nearest),
        )  # fmt: skip


def _written(name: str, rate: float) -> str:
    verb, _, is_count = name.partition("_")
    return f"{rate:.1f} {verb}s/s" if is_count else f"{format_size(rate)}/s {verb}"
