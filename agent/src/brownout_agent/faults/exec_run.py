"""`exec.run`: what only this host's owner knows how to bring about, by programs that its policy has named beforehand.

An order gives a name. The policy (`exec:`) says which three programs it stands for, each a list of arguments, and
nothing else is ever executed:

    apply    brings it about and ends with exit code 0. What it leaves running is killed when the fault ends
    measure  only looks: exit code 0, the effect is there; 1, it is not; any other says that it cannot tell
    undo     ends with exit code 0 once all is as before. It is run after half an `apply`, after none, and again after
             half an `undo`, and must do no harm then

They have no terminal, no shell, a clean environment, `/` for their folder and bounded time; they run with the rights of
the injector. `undo` is recorded as it was when the fault began: a policy that changes meanwhile changes nothing of it.
"""

import math
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from brownout_agent.faults.contract import (
    ABLE,
    Capability,
    Commands,
    Effect,
    Facts,
    Fault,
    FaultParameters,
    Hold,
    Host,
    Meter,
    Record,
    Refusal,
)
from brownout_agent.kernel import own_groups
from brownout_agent.kernel.program import Ended, run

_THERE, _NOT_THERE = 0, 1
"""What `measure` says by its exit code."""
_MEMORY_BYTES = 512 * 2**20
_PROCESSES = 128
"""What `apply`, its holder and all that they start may be and use."""
_POLL_S = 0.1
_LINKS_MAX = 8
_NAME_IT = "name it under `exec:` in the host's policy and restart the injector; see docs/policy.md"


class ExecParameters(FaultParameters):
    """What is executed, by the name that this host's policy gives it."""

    name: Annotated[
        str,
        Field(pattern=r"^[a-z0-9-]{1,63}$", description="what the host's policy has named under `exec`: stop-replica"),
    ]


class ExecRun(Fault[ExecParameters]):
    """Runs `apply`, and `undo` at the end."""

    kind = "exec.run"
    summary = "Run a program that the host's own policy has named, and the one that undoes it."
    reverts = (
        "Whoever undoes (the injector, the reaper, the injector's next start, also after a reboot) runs the program "
        "that the policy has named for it. Nothing of the kernel does."
    )
    Parameters = ExecParameters
    outlives_reboot: ClassVar[bool] = True

    def detect(self, host: Host) -> Capability:
        if not host.commands:
            return Capability(False, "this host's policy names no program that may be executed", _NAME_IT)
        if not own_groups.parents():
            reason = "there is no control group to keep together what a program starts"
            return Capability(False, reason, "run the injector as root, cgroups writable")
        return ABLE

    def prepare(self, parameters: ExecParameters, host: Host) -> Facts:
        commands = _named(parameters.name, host)
        if any(kind == self.kind and facts["name"] == commands.name for kind, facts in host.unfinished):
            raise Refusal(f"{commands.name} is on already, or is not undone yet", "wait for its end")
        for argv in (commands.apply, commands.undo, commands.measure):
            _refuse_unsafe(argv[0])
        facts = {**asdict(commands), "group_parents": [str(parent) for parent in own_groups.parents()]}
        before = _measure(facts)
        if before.code == _THERE:
            raise Refusal(f"what {commands.name} brings about is there already: {before.text}", "undo that first")
        if before.code != _NOT_THERE:
            raise Refusal(f"it cannot be told whether {commands.name} is there: {before.text}", _exit_codes(facts))
        return facts

    def apply(self, parameters: ExecParameters, facts: Facts, hold: Hold) -> None:
        try:
            own_groups.enter(_groups(facts, hold.fault_id), _MEMORY_BYTES, _PROCESSES)
            ended = run(facts["apply"], facts["apply_within_s"])
        except OSError as error:
            raise Refusal(f"{parameters.name} could not be begun: {error}") from error
        if ended.code != 0:
            raise Refusal(f"apply of {parameters.name} failed: {ended.text}")
        hold.ready()
        hold.wait()

    def undo(self, record: Record[ExecParameters]) -> None:
        facts = record.facts
        own_groups.remove(_groups(facts, record.fault_id))  # an `apply` that is still at work would undo the undo
        deadline_s = time.monotonic() + facts["undo_within_s"]
        ended = run(facts["undo"], facts["undo_within_s"])
        if ended.code != 0:
            raise Refusal(f"undo of {facts['name']} failed: {ended.text}")
        while _measure(facts).code == _THERE and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)  # what it has started again takes its time to be there

    def residue(self, record: Record[ExecParameters]) -> list[str]:
        groups = _groups(record.facts, record.fault_id)
        left = [f"control group {group} is still there" for group in groups if group.exists()]
        now = _measure(record.facts)
        if now.code == _THERE:
            left.append(f"what {record.facts['name']} has brought about is still there: {now.text}")
        elif now.code != _NOT_THERE:
            left.append(f"it cannot be told whether {record.facts['name']} is undone: {now.text}")
        return left

    def measure(self, record: Record[ExecParameters], host: Host) -> Meter:
        return _ExecMeter(record.facts)


class _ExecMeter(Meter):
    """Runs `measure` and takes its word."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._samples = 0
        self._there = 0
        self._numbers: list[float] = []
        self._otherwise = ""

    def sample(self) -> None:
        self._samples += 1
        try:
            ended = _measure(self._facts)
        except OSError as error:
            self._otherwise = f"; at reading {self._samples} it could not be run: {error}"
            return
        if ended.code != _THERE:
            self._otherwise = f"; at reading {self._samples} {ended.text}"
            return
        self._there += 1
        if (number := printed_number(ended.stdout)) is not None:
            self._numbers.append(number)

    def effect(self) -> Effect:
        unit, program = "% of readings", self._facts["measure"][0]
        if not self._samples:
            return Effect(100.0, None, unit, False, f"{program} was never run")
        text = f"in {self._there} of {self._samples} readings {program} said that the effect was there (exit code 0)"
        if self._numbers:
            mean = sum(self._numbers) / len(self._numbers)
            text += f", with numbers from {min(self._numbers):g} to {max(self._numbers):g}, {mean:g} on average"
        achieved = 100 * self._there / self._samples
        is_proved = self._there == self._samples
        return Effect(100.0, achieved, unit, is_proved, text + self._otherwise, samples=self._samples)


def printed_number(stdout: str) -> float | None:
    """The number that the last line begins with, None where it does not begin with one. Pure."""
    words = stdout.splitlines()[-1].split() if stdout else []
    try:
        number = float(words[0]) if words else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _measure(facts: Facts) -> Ended:
    return run(facts["measure"], facts["measure_within_s"], leaves_nothing=True)


def _exit_codes(facts: Facts) -> str:
    return f"have {facts['measure'][0]} end with 0 where the effect is there and with 1 where it is not"


def _named(name: str, host: Host) -> Commands:
    for commands in host.commands:
        if commands.name == name:
            return commands
    known = ", ".join(commands.name for commands in host.commands) or "nothing"
    raise Refusal(f"this host's policy names no `{name}`; it names {known}", _NAME_IT)


def _refuse_unsafe(program: str) -> None:
    """Raises Refusal where a program cannot be run, or where others than root could put another in its place."""
    try:
        path = Path(program).resolve(strict=True)
    except OSError as error:
        raise Refusal(
            f"{program} is not there: {error.strerror}", "install it, or mend `exec:` in the policy"
        ) from error
    if not path.is_file() or not os.access(path, os.X_OK):
        raise Refusal(f"{program} cannot be executed", f"chmod 755 {path}")
    for place in {*_on_the_way(Path(program)), path, *path.parents}:
        status = place.stat()
        is_others = status.st_uid not in {0, os.geteuid()}
        is_open = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
        is_sticky = place.is_dir() and bool(status.st_mode & stat.S_ISVTX)  # others cannot take away what is root's
        if is_others or (is_open and not is_sticky):
            why = f"{place} can be changed by others than root"
            raise Refusal(f"{program} is not executed: {why}", f"chown root {place}; chmod go-w {place}")


def _on_the_way(path: Path) -> Iterator[Path]:
    """The path and the folders above it, and the same of wherever it leads as a link."""
    for _ in range(_LINKS_MAX):
        yield path
        yield from path.parents
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()


def _groups(facts: Facts, fault_id: str) -> list[Path]:
    return [Path(parent) / own_groups.group_name(fault_id) for parent in facts["group_parents"]]
