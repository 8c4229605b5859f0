"""`process.pid_exhaustion`: the processes of one control group can start no other, and no thread: EAGAIN from fork(2).

The limit of their own group (`pids.max`) is lowered to what is there. Whoever else is in that group is hit as well, and
nobody outside of it: the host's own table of processes stays as free as it was.
"""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from brownout_agent.faults.contract import Effect, Facts, Host, Meter, Record, Refusal
from brownout_agent.faults.group_limit import REVERTS, GroupLimit, Setting, SettingWatch, limit_facts, settings_of
from brownout_agent.faults.group_match import Controller, common_group, refuse_protected, refuse_second
from brownout_agent.faults.process_match import ProcessParameters, match
from brownout_agent.kernel.cgroups import pids_group

_LIMIT, _COUNT, _EVENTS = "pids.max", "pids.current", "pids.events"


class PidExhaustionParameters(ProcessParameters):
    """Whose control group gets no more processes. All that match must be in one group."""

    leave: Annotated[
        int, Field(ge=0, le=100_000, description="how many more of both can still be started; none when left out")
    ] = 0


class ProcessPidExhaustion(GroupLimit[PidExhaustionParameters]):
    """Lowers the limit of one group, and gives back the old one."""

    kind = "process.pid_exhaustion"
    summary = "Let the control group of a process start no more processes and threads."
    reverts = REVERTS.format(what="limit")
    Parameters = PidExhaustionParameters
    controller: ClassVar[Controller] = Controller("pids", (_LIMIT,), "TasksAccounting=yes")

    def prepare(self, parameters: PidExhaustionParameters, host: Host) -> Facts:
        chosen = match(parameters, host)
        group = common_group(chosen, pids_group, "processes")
        refuse_second(self.kind, group, host)
        refuse_protected(group, host)
        before, count = _read(group / _LIMIT), int(_read(group / _COUNT))
        lowered = count + parameters.leave
        if before != "max" and int(before) <= lowered:
            raise Refusal(f"{group} has {count} of {before} processes: no more than `leave` are free", "ask for less")
        return limit_facts(group, Setting(str(group / _LIMIT), before, str(lowered)))

    def measure(self, record: Record[PidExhaustionParameters], host: Host) -> Meter:
        return _GroupMeter(record)


class _GroupMeter(Meter):
    """Reads what the kernel counts: how many there are, and how often it has refused one."""

    def __init__(self, record: Record[PidExhaustionParameters]) -> None:
        self._group = Path(record.facts["group"])
        self._watch = SettingWatch(settings_of(record.facts))
        self._lowered = int(self._watch.settings[0].ours)
        self._leave = record.parameters.leave
        self._refused_before = self._refused()
        self._free: list[int] = []
        self._refusals = 0

    def _refused(self) -> int:
        return int(_read(self._group / _EVENTS).partition("max ")[2].split()[0])

    def sample(self) -> None:
        stands = self._watch.look()
        try:
            count = int(_read(self._group / _COUNT))
            self._refusals = self._refused() - self._refused_before
        except OSError:  # the group is gone
            return
        if stands:
            self._free.append(max(0, self._lowered - count))

    def effect(self) -> Effect:
        looks, stood = self._watch.looks, self._watch.stood
        if not looks:
            return Effect(100.0, None, "% of readings", False, "the group was never looked at")
        text = f"in {stood} of {looks} readings {self._group} was limited to {self._lowered} processes"
        if self._free:
            text += f", and could start {min(self._free)} more at the fewest, {max(self._free)} at the most"
        text += f"; the kernel has refused {self._refusals} meanwhile ({_EVENTS}){self._watch.text}"
        has_run_out = self._refusals > 0 or min(self._free, default=self._leave + 1) <= self._leave
        is_proved = self._watch.always_stood and has_run_out
        return Effect(100.0, 100 * stood / looks, "% of readings", is_proved, text, samples=looks)


def _read(path: Path) -> str:
    return path.read_text().strip()
