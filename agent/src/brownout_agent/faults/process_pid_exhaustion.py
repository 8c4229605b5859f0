"""`process.pid_exhaustion`: the processes of one control group can start no other, and no thread: EAGAIN from fork(2).

The limit of their own group (`pids.max`) is lowered to what is there. Whoever else is in that group is hit as well, and
nobody outside of it: the host's own table of processes stays as free as it was.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field

from brownout_agent.faults.contract import ABLE, Capability, Effect, Facts, Fault, Hold, Host, Meter, Record, Refusal
from brownout_agent.faults.process_match import (
    Process,
    ProcessParameters,
    Untouchable,
    match,
    read_process,
    refuse_untouchable,
)
from brownout_agent.kernel.cgroup_tree import members_below
from brownout_agent.kernel.cgroups import pids_group, pids_trees

_LIMIT, _COUNT, _EVENTS = "pids.max", "pids.current", "pids.events"


class PidExhaustionParameters(ProcessParameters):
    """Whose control group gets no more processes. All that match must be in one group."""

    leave: Annotated[
        int, Field(ge=0, le=100_000, description="how many more of both can still be started; none when left out")
    ] = 0


class ProcessPidExhaustion(Fault[PidExhaustionParameters]):
    """Lowers the limit of one group, and gives back the old one."""

    kind = "process.pid_exhaustion"
    summary = "Let the control group of a process start no more processes and threads."
    reverts = (
        "Whoever undoes (the injector, the reaper, the injector's next start) writes the old limit back: it belongs to "
        "the group and outlives us. It is gone with the group as well."
    )
    Parameters = PidExhaustionParameters

    def detect(self, host: Host) -> Capability:
        trees = pids_trees()
        if not trees:
            return Capability(False, "no control group here counts processes", "mount the pids controller")
        if not any(os.access(tree, os.W_OK) for tree in trees):
            return Capability(False, f"{trees[0]} is not writable", "run the injector as root, cgroups writable")
        return ABLE

    def prepare(self, parameters: PidExhaustionParameters, host: Host) -> Facts:
        chosen = match(parameters, host)
        group = _common_group(chosen)
        _refuse_second(group, host)
        _refuse_protected(group, host)
        if not os.access(group / _LIMIT, os.W_OK):
            raise Refusal(f"{group / _LIMIT} is not writable", "run the injector as root, cgroups writable")
        before, count = _read(group / _LIMIT), int(_read(group / _COUNT))
        lowered = count + parameters.leave
        if before != "max" and int(before) <= lowered:
            raise Refusal(f"{group} has {count} of {before} processes: no more than `leave` are free", "ask for less")
        return {
            "group": str(group), "before": before, "lowered": str(lowered),
            "names": [process.text for process in chosen],
        }  # fmt: skip

    def apply(self, parameters: PidExhaustionParameters, facts: Facts, hold: Hold) -> None:
        limit = Path(facts["group"]) / _LIMIT
        try:
            if _read(limit) != facts["before"]:
                raise Refusal(f"somebody has changed {limit} meanwhile", "try again")
            limit.write_text(facts["lowered"])
        except OSError as error:
            raise Refusal(f"{limit} cannot be written: {error.strerror}", "try again") from error
        hold.ready()
        hold.wait()

    def undo(self, record: Record[PidExhaustionParameters]) -> None:
        """What somebody else has written meanwhile is not ours to change, nor is a group of the same name."""
        with suppress(FileNotFoundError):  # the group has gone since, and its limit with it
            if self.residue(record):
                (Path(record.facts["group"]) / _LIMIT).write_text(record.facts["before"])

    def residue(self, record: Record[PidExhaustionParameters]) -> list[str]:
        limit, before = Path(record.facts["group"]) / _LIMIT, record.facts["before"]
        if not limit.exists() or _read(limit) != record.facts["lowered"]:
            return []
        return [f"{limit} is still {record.facts['lowered']}; next: echo {before} > {limit}"]

    def measure(self, record: Record[PidExhaustionParameters], host: Host) -> Meter:
        return _GroupMeter(record)


class _GroupMeter(Meter):
    """Reads what the kernel counts: how many there are, and how often it has refused one."""

    def __init__(self, record: Record[PidExhaustionParameters]) -> None:
        self._group = Path(record.facts["group"])
        self._lowered = int(record.facts["lowered"])
        self._leave = record.parameters.leave
        self._refused_before = self._refused()
        self._samples = 0
        self._limited = 0
        self._free: list[int] = []
        self._refusals = 0

    def _refused(self) -> int:
        return int(_read(self._group / _EVENTS).partition("max ")[2].split()[0])

    def sample(self) -> None:
        self._samples += 1
        try:
            limit, count = _read(self._group / _LIMIT), int(_read(self._group / _COUNT))
            self._refusals = self._refused() - self._refused_before
        except OSError:  # the group is gone
            return
        if limit == str(self._lowered):
            self._limited += 1
            self._free.append(max(0, self._lowered - count))

    def effect(self) -> Effect:
        if not self._samples:
            return Effect(100.0, None, "% of readings", False, "the group was never looked at")
        text = f"in {self._limited} of {self._samples} readings {self._group} was limited to {self._lowered} processes"
        if self._free:
            text += f", and could start {min(self._free)} more at the fewest, {max(self._free)} at the most"
        text += f"; the kernel has refused {self._refusals} meanwhile ({_EVENTS})"
        has_run_out = self._refusals > 0 or min(self._free, default=self._leave + 1) <= self._leave
        achieved = 100 * self._limited / self._samples
        is_proved = self._limited == self._samples and has_run_out
        return Effect(100.0, achieved, "% of readings", is_proved, text, samples=self._samples)


def _common_group(chosen: list[Process]) -> Path:
    groups: dict[Path | None, str] = {}
    for process in chosen:
        try:
            groups.setdefault(pids_group(process.key.pid), process.text)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise Refusal(f"{process.text} ended while it was looked at", "try again") from error
    if None in groups:
        raise Refusal(
            f"{groups[None]} is in the root control group, which has no limit on processes",
            "run it as a service of its own, or by `systemd-run --scope`",
        )
    if len(groups) > 1:
        listed = ", ".join(f"{name} in {group}" for group, name in groups.items())
        raise Refusal(f"they are in different control groups: {listed}", "narrow the match to one of them")
    (group,) = groups
    assert group is not None
    return group


def _refuse_second(group: Path, host: Host) -> None:
    """Two of them could not both give back what was before."""
    for kind, facts in host.unfinished:
        if kind == ProcessPidExhaustion.kind and facts["group"] == str(group):
            raise Refusal(f"{group} has a {kind} already, or one that is not undone yet", "wait for its end")


def _refuse_protected(group: Path, host: Host) -> None:
    """Nobody is spared in a group, so nobody may be in it who must be."""
    untouchable = Untouchable.of(host)
    remedy = "run what is meant in a control group of its own, as a service is"
    for pid in sorted(members_below(group)):
        process = read_process(pid) if pid else None
        if process is None:
            continue
        try:
            refuse_untouchable(process, untouchable)
        except Refusal as refusal:
            raise Refusal(f"all of {group} would be hit, and {refusal.reason}", remedy) from refusal


def _read(path: Path) -> str:
    return path.read_text().strip()
