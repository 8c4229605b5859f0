"""`process.freeze`: all of a service stands still, as a virtual machine does while it is moved to another host.

By the freezer of its control group (`cgroup.freeze`; `freezer.state` in version 1), so whatever it starts is frozen as
well. Sockets stay open, and the kernel goes on accepting connections for them. Unlike `process.pause` nobody is traced,
and there is no signal that a process could see.
"""

import time
from pathlib import Path
from typing import ClassVar

from brownout_agent.faults.contract import Effect, Facts, Hold, Host, Meter, Record, Refusal
from brownout_agent.faults.group_limit import REVERTS, GroupLimit, Setting, SettingWatch, limit_facts, settings_of
from brownout_agent.faults.group_match import Controller, GroupParameters, control_file, refuse_second
from brownout_agent.kernel.cgroups import read_keyed
from brownout_agent.kernel.group_cpu import CpuClock

_FROZEN_WITHIN_S = 5.0
_POLL_S = 0.005
_THAWED = {"cgroup.freeze": ("0", "1"), "freezer.state": ("THAWED", "FROZEN")}
"""What each file says of a group that runs, and of one that is frozen."""


class FreezeParameters(GroupParameters):
    """Whose processes stand still."""


class ProcessFreeze(GroupLimit[FreezeParameters]):
    """Freezes one group, and thaws it."""

    kind = "process.freeze"
    summary = "Freeze a service, or processes with a control group of their own: all hang, sockets stay open."
    reverts = REVERTS.format(what="state")
    Parameters = FreezeParameters
    controller: ClassVar[Controller] = Controller("freezer", ("cgroup.freeze", "freezer.state"), "")

    def prepare(self, parameters: FreezeParameters, host: Host) -> Facts:
        file = control_file(parameters, host, self.controller)
        refuse_second(self.kind, file.parent, host)
        runs, frozen = _THAWED[file.name]
        setting = Setting(str(file), runs, frozen)
        if setting.now() != runs or is_frozen(file.parent):
            raise Refusal(f"{file.parent} is frozen already, or one above it is", f"echo {runs} > {file}")
        return limit_facts(file.parent, setting)

    def apply(self, parameters: FreezeParameters, facts: Facts, hold: Hold) -> None:
        for setting in settings_of(facts):
            setting.take()
        group, deadline_s = Path(facts["group"]), time.monotonic() + _FROZEN_WITHIN_S
        while not is_frozen(group):
            if time.monotonic() > deadline_s:
                raise Refusal(
                    f"{group} is not frozen within {_FROZEN_WITHIN_S:g} s: one of it waits for a disk", "try again"
                )
            time.sleep(_POLL_S)
        hold.ready()
        hold.wait()

    def measure(self, record: Record[FreezeParameters], host: Host) -> Meter:
        return _FreezeMeter(record)


def is_frozen(group: Path) -> bool:
    """Whether the kernel says that every process of the group stands still."""
    state = group / "freezer.state"
    if state.exists():
        return state.read_text().strip() == "FROZEN"
    return read_keyed(group / "cgroup.events").get("frozen") == 1


class _FreezeMeter(Meter):
    """Reads what the kernel says of the group, and whether any of it uses CPU time."""

    def __init__(self, record: Record[FreezeParameters]) -> None:
        self._group = Path(record.facts["group"])
        self._watch = SettingWatch(settings_of(record.facts))
        self._clock = CpuClock(self._group)
        self._used_ns = 0
        self._still = 0

    def sample(self) -> None:
        stands = self._watch.look() and is_frozen(self._group)
        used_ns = self._clock.used_ns()
        self._still += stands and used_ns == self._used_ns
        self._used_ns = used_ns

    def effect(self) -> Effect:
        looks, unit = self._watch.looks, "% of readings"
        if not looks:
            return Effect(100.0, None, unit, False, "the group was never looked at")
        text = (
            f"in {self._still} of {looks} readings {self._group} was frozen and had used no CPU time since the one "
            f"before ({self._clock.instrument}), {self._used_ns / 1e6:.1f} ms in all{self._watch.text}"
        )
        return Effect(100.0, 100 * self._still / looks, unit, self._still == looks, text, samples=looks)
