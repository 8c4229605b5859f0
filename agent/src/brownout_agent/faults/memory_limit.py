"""`memory.limit`: a service gets no more memory than a limit, as under one that is too tight or beside greedy others.

The limit of its control group is lowered. Beyond `memory.high` the kernel takes back what it can, page cache first, and
lets whoever wants more wait; beyond `memory.max` (`memory.limit_in_bytes` in version 1) it kills one of the group when
nothing can be taken back. Nobody outside of the group is killed or waits.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from brownout_agent.faults.contract import Effect, Facts, Host, Meter, Record, Refusal, SizeBytes
from brownout_agent.faults.group_limit import REVERTS, GroupLimit, Setting, SettingWatch, limit_facts, settings_of
from brownout_agent.faults.group_match import Controller, GroupParameters, control_file, refuse_second
from brownout_agent.kernel.cgroups import memory_use, read_keyed
from brownout_agent.quantities import format_size

SLOW_TOLERANCE = 0.1
"""By this share a group may be above memory.high, which is no wall: the farther above, the more it is slowed down."""
_HARD = ("memory.max", "memory.limit_in_bytes")
_UNLIMITED_BYTES = 2**62
"""Version 1 says "no limit" with the largest page-aligned number."""


class MemoryLimitParameters(GroupParameters):
    """Whose memory is limited, to how much, and what comes of wanting more."""

    limit: Annotated[
        SizeBytes, Field(ge=2**20, description="what all of it may use together, page cache included, like 256MiB")
    ]
    beyond: Annotated[
        Literal["slow", "kill"],
        Field(description="who wants more waits (slow), or is killed where nothing can be taken back (kill)"),
    ] = "slow"
    kill_at_once: Annotated[
        bool, Field(description="kill: also where more is in use already, so that one is killed as it begins")
    ] = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kill_at_once and self.beyond != "kill":
            raise ValueError("`kill_at_once` is for `beyond: kill`")
        return self


class MemoryLimit(GroupLimit[MemoryLimitParameters]):
    """Lowers one limit of one group, and gives back the old one."""

    kind = "memory.limit"
    summary = "Let a service, or processes with a control group of their own, use no more memory than a limit."
    reverts = REVERTS.format(what="limit")
    Parameters = MemoryLimitParameters
    controller: ClassVar[Controller] = Controller("memory", _HARD, "MemoryAccounting=yes")

    def prepare(self, parameters: MemoryLimitParameters, host: Host) -> Facts:
        file = control_file(parameters, host, self.controller)
        group = file.parent
        refuse_second(self.kind, group, host)
        if parameters.beyond == "slow":
            file = group / "memory.high"
            if not file.exists():
                raise Refusal(
                    "version 1 of control groups slows nobody down, it has no memory.high", "write `beyond: kill`"
                )
        _refuse_no_tighter(group, parameters)
        if parameters.beyond == "kill" and not parameters.kill_at_once:
            _refuse_killing_at_once(group, parameters)
        ours = parameters.limit // mmap.PAGESIZE * mmap.PAGESIZE  # as the kernel rounds it
        setting = Setting(str(file), file.read_text().strip(), str(ours))
        return {**limit_facts(group, setting), "reached": times_reached(file), "killed": times_killed(group)}

    def measure(self, record: Record[MemoryLimitParameters], host: Host) -> Meter:
        return _MemoryMeter(record)


def _refuse_no_tighter(group: Path, parameters: MemoryLimitParameters) -> None:
    names = (*_HARD, "memory.high") if parameters.beyond == "slow" else _HARD
    for file, there_bytes in _limits(group, names):
        if there_bytes <= parameters.limit:
            raise Refusal(f"{file} is {format_size(there_bytes)} already", "ask for less")


def _limits(group: Path, names: tuple[str, ...]) -> Iterator[tuple[Path, int]]:
    """Of this group and those above it."""
    for folder in (group, *group.parents):
        for file in (folder / name for name in names):
            text = file.read_text().strip() if file.exists() else "max"
            if text != "max" and int(text) < _UNLIMITED_BYTES:
                yield file, int(text)


def _refuse_killing_at_once(group: Path, parameters: MemoryLimitParameters) -> None:
    use = memory_use(group)
    if use is None or parameters.limit > use.used_bytes - use.droppable_bytes:
        return
    raise Refusal(
        f"{group} uses {format_size(use.used_bytes)}, of which {format_size(use.droppable_bytes)} can be dropped: "
        f"with {format_size(parameters.limit)} one of it would be killed at once",
        "ask for more, or write `kill_at_once: true`",
    )


def times_reached(file: Path) -> int:
    """How often the group wanted more than this limit since it was made, with the groups below it."""
    if file.name == "memory.limit_in_bytes":
        return int(file.with_name("memory.failcnt").read_text())
    events = read_keyed(file.with_name("memory.events.local")) or read_keyed(file.with_name("memory.events"))
    return events.get(file.name.removeprefix("memory."), 0)


def times_killed(group: Path) -> int:
    """How many processes of the group the kernel has killed for want of memory since it was made."""
    return {**read_keyed(group / "memory.oom_control"), **read_keyed(group / "memory.events")}.get("oom_kill", 0)


class _MemoryMeter(Meter):
    """Reads what the group uses, how often the kernel refused it more, and whom it killed for that."""

    def __init__(self, record: Record[MemoryLimitParameters]) -> None:
        self._group = Path(record.facts["group"])
        self._watch = SettingWatch(settings_of(record.facts))
        self._limit_bytes = int(self._watch.settings[0].ours)
        self._beyond = record.parameters.beyond
        self._reached_before: int = record.facts["reached"]
        self._killed_before: int = record.facts["killed"]
        self._reached = self._killed = 0
        self._used_bytes: list[int] = []

    def sample(self) -> None:
        use = memory_use(self._group)
        if not self._watch.look() or use is None:
            return
        self._used_bytes.append(use.used_bytes)
        try:
            self._reached = times_reached(Path(self._watch.settings[0].file)) - self._reached_before
        except FileNotFoundError:  # the group has gone just now
            return
        self._killed = max(self._killed, times_killed(self._group) - self._killed_before)

    def effect(self) -> Effect:
        if not self._used_bytes:
            text = f"the fault ended before it could be measured{self._watch.text}"
            return Effect(self._limit_bytes, None, "bytes", False, text)
        most = max(self._used_bytes)
        text = (
            f"{self._group} used up to {format_size(most)} in {len(self._used_bytes)} readings; it reached its limit "
            f"of {format_size(self._limit_bytes)} {self._reached} times, and the kernel killed {self._killed} of it "
            f"for that{self._watch.text}"
        )
        if not self._reached:
            text += "; it wanted no more than its limit, so nothing was kept from it"
        allowed = self._limit_bytes * (1 + SLOW_TOLERANCE if self._beyond == "slow" else 1)
        if most > allowed:
            text += "; not enough of what it used could be taken back"
        is_proved = self._reached > 0 and most <= allowed and self._watch.always_stood
        return Effect(
            self._limit_bytes, most, "bytes", is_proved, text,
            samples=self._watch.looks, lowest=min(self._used_bytes), highest=most,
        )  # fmt: skip
