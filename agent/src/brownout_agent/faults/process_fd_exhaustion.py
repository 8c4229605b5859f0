"""`process.fd_exhaustion`: running processes get no more descriptors: "Too many open files" (EMFILE).

Their soft limit (RLIMIT_NOFILE) is lowered to what they have open. What is open stays open, and a number that a process
closes it may get again. Processes that match later are not touched. Those that the victims start meanwhile are born
with the lowered limit, as every child is with its parent's: the undo finds them, by descent and by control group, and
gives them the old one as well. One whose parents have died and that is in no group of its victim's keeps it.
"""

import os
import time
from typing import Annotated, Any

from pydantic import Field

from brownout_agent.faults.contract import ABLE, Capability, Effect, Facts, Fault, Hold, Host, Meter, Record, Refusal
from brownout_agent.faults.process_match import Process, ProcessParameters, match
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.descriptors import (
    Limit,
    free_below,
    limit_for,
    may_set_limit,
    open_numbers,
    read_limit,
    set_limit,
)
from brownout_agent.kernel.processes import PROC, ProcessKey, all_pids, ancestors, is_alive, read_stat

_UNDO_TIMEOUT_S = 2.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class FdExhaustionParameters(ProcessParameters):
    """Which processes run out of descriptors. Children that run already are hit only when they match too."""

    leave: Annotated[
        int, Field(ge=0, le=100_000, description="how many more each of them can still get; none when left out")
    ] = 0


class ProcessFdExhaustion(Fault[FdExhaustionParameters]):
    """Lowers the soft limit of the matched processes, and gives back the old one."""

    kind = "process.fd_exhaustion"
    summary = "Let processes get no more file descriptors: too many open files."
    reverts = (
        "Whoever undoes (the injector, the reaper, the injector's next start) gives the old limit back, to processes "
        "that were started meanwhile as well: a limit belongs to its process and outlives ours."
    )
    Parameters = FdExhaustionParameters

    def detect(self, host: Host) -> Capability:
        if not may_set_limit(os.getpid()):
            return Capability(False, "prlimit(2) is refused", "allow prlimit64 in the injector's seccomp profile")
        return ABLE

    def prepare(self, parameters: FdExhaustionParameters, host: Host) -> Facts:
        chosen = match(parameters, host)
        for process in chosen:
            _refuse_second(process, host)
        victims = [_victim(process, parameters.leave) for process in chosen]
        # Ticks are coarse: one that is born in this very tick may be an heir.
        return {"victims": victims, "since_ticks": boottime_ns() * _TICKS_PER_S // 10**9}

    def apply(self, parameters: FdExhaustionParameters, facts: Facts, hold: Hold) -> None:
        limited = 0
        for victim in facts["victims"]:
            key, before = _key(victim), _before(victim)
            if not is_alive(key):
                continue
            if read_limit(key.pid) != before:
                raise Refusal(f"somebody has changed the limit of {victim['name']} meanwhile", "try again")
            limited += _set_limit(key, _lowered(victim))
        if not limited:
            raise Refusal(f"{_names(facts)} ended before a limit could be set", "try again")
        hold.ready()
        hold.wait()

    def undo(self, record: Record[FdExhaustionParameters]) -> None:
        """Parents and children in turns, until a look finds none: a parent still limited has limited children."""
        deadline_s = time.monotonic() + _UNDO_TIMEOUT_S
        while (limited := _limited(record.facts)) and time.monotonic() < deadline_s:
            for key, old in limited:
                _set_limit(key, old)

    def residue(self, record: Record[FdExhaustionParameters]) -> list[str]:
        return [
            f"process {key.pid} is still limited in its descriptors; next: prlimit --pid {key.pid} --nofile={old.soft}:"
            for key, old in _limited(record.facts)
        ]

    def measure(self, record: Record[FdExhaustionParameters], host: Host) -> Meter:
        return _LimitMeter(record)


class _LimitMeter(Meter):
    """Reads limits and descriptors in /proc."""

    def __init__(self, record: Record[FdExhaustionParameters]) -> None:
        self._victims = {_key(victim): victim for victim in record.facts["victims"]}
        self._names = _names(record.facts)
        self._leave = record.parameters.leave
        self._samples = 0
        self._limited = 0
        self._free: list[int] = []
        """The most that any of them could still get, in each reading."""
        self._gone: dict[str, int] = {}

    def sample(self) -> None:
        self._samples += 1
        are_limited, free = True, 0
        for key, victim in self._victims.items():
            limit, taken = read_limit(key.pid), open_numbers(key.pid)
            if not is_alive(key) or limit is None:
                self._gone.setdefault(victim["name"], self._samples)
                are_limited = False
            else:
                are_limited &= 0 <= limit.soft <= victim["lowered"]
                free = max(free, free_below(limit.soft, taken))
        self._limited += are_limited
        if are_limited:
            self._free.append(free)

    def effect(self) -> Effect:
        if not self._samples:
            return Effect(100.0, None, "% of readings", False, "the processes were never looked at")
        limits = sorted({f"{victim['lowered']} instead of {victim['soft']}" for victim in self._victims.values()})
        text = (
            f"in {self._limited} of {self._samples} readings of /proc {self._names} had the lowered limit "
            f"({', '.join(limits)} descriptors)"
        )
        if self._free:
            text += f", and could get {min(self._free)} more at the fewest, {max(self._free)} at the most"
        text += "".join(f"; {name} was gone at reading {at}" for name, at in self._gone.items())
        is_proved = self._limited == self._samples and min(self._free) <= self._leave  # all limited: there is a minimum
        achieved = 100 * self._limited / self._samples
        return Effect(100.0, achieved, "% of readings", is_proved, text, samples=self._samples)


def _refuse_second(process: Process, host: Host) -> None:
    """Two of them could not both give back what was before."""
    for kind, facts in host.unfinished:
        if kind == ProcessFdExhaustion.kind and process.key in map(_key, facts["victims"]):
            raise Refusal(f"{process.text} has a {kind} already, or one that is not undone yet", "wait for its end")


def _victim(process: Process, leave: int) -> dict[str, Any]:
    """What undo and residue need to know of one process, as JSON."""
    pid = process.key.pid
    try:
        before, taken, is_ours = read_limit(pid), open_numbers(pid), may_set_limit(pid)
    except ProcessLookupError:
        before = None
    except PermissionError as error:
        raise Refusal(f"{process.text} belongs to another user: {error}", "run the injector as root") from error
    if before is None:
        raise Refusal(f"{process.text} ended while it was looked at", "try again")
    if not is_ours:
        reason = f"the limit of {process.text} takes CAP_SYS_RESOURCE: its real, effective and saved user differ"
        raise Refusal(reason, "choose another process, or let the injector have CAP_SYS_RESOURCE")
    lowered = limit_for(taken, leave)
    if before.soft != -1 and lowered >= before.soft:
        raise Refusal(
            f"{process.text} can get {free_below(before.soft, taken)} more descriptors; that is no more than `leave`",
            "ask for a smaller `leave`",
        )
    cgroups = (PROC / str(pid) / "cgroup").read_text()
    return {
        "key": process.key.as_json(), "name": process.text, "soft": before.soft, "hard": before.hard,
        "lowered": lowered, "cgroups": cgroups if _names_a_group(cgroups) else "",
    }  # fmt: skip


def _names_a_group(cgroups: str) -> bool:
    """Whether a /proc/PID/cgroup text has any group but roots, which tell nobody from anybody."""
    return any(not line.endswith(":/") for line in cgroups.splitlines())


def _limited(facts: Facts) -> list[tuple[ProcessKey, Limit]]:
    """Who still has a limit of ours, and what it should be instead: victims, and what they started since."""
    found = []
    for victim in facts["victims"]:
        key, limit = _key(victim), read_limit(_key(victim).pid)
        if is_alive(key) and limit is not None and limit.soft == victim["lowered"]:
            old = Limit(_least(victim["soft"], limit.hard), limit.hard)  # a process may have lowered its hard limit
            found += [(key, old)] if old != limit else []
    return found + _heirs(facts)


def _heirs(facts: Facts) -> list[tuple[ProcessKey, Limit]]:
    """Processes that were born with the limit of a victim: since the fault, of its descent or in its control groups.

    Descent ends where a parent has died; the groups go on. Neither alone would do.
    """
    found = []
    victims = {_key(victim): victim for victim in facts["victims"]}
    for pid in all_pids():
        stat = read_stat(pid)
        if stat is None or stat.state in "ZX" or stat.start_ticks < facts["since_ticks"]:
            continue
        key, limit = ProcessKey(pid, stat.start_ticks), read_limit(pid)
        born_of = (victim for victim in victims.values() if limit == _lowered(victim) and _is_of(victim, pid))
        if key not in victims and (parent := next(born_of, None)) is not None:
            found.append((key, _before(parent)))
    return found


def _least(soft: int, hard: int) -> int:
    """-1 is no limit."""
    return soft if hard == -1 else min(soft, hard) if soft != -1 else hard


def _set_limit(key: ProcessKey, limit: Limit) -> bool:
    """False when the process is gone.

    Raises:
        Refusal: it is not ours to limit.
    """
    if not is_alive(key):
        return False
    try:
        set_limit(key.pid, limit)
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise Refusal(f"the limit of process {key.pid} cannot be set: {error}") from error
    return True


def _is_of(victim: dict[str, Any], pid: int) -> bool:
    key = _key(victim)
    if key.pid in ancestors(pid) and is_alive(key):
        return True
    try:
        return bool(victim["cgroups"]) and (PROC / str(pid) / "cgroup").read_text() == victim["cgroups"]
    except (FileNotFoundError, ProcessLookupError):
        return False


def _key(victim: dict[str, Any]) -> ProcessKey:
    return ProcessKey.from_json(victim["key"])


def _before(victim: dict[str, Any]) -> Limit:
    return Limit(victim["soft"], victim["hard"])


def _lowered(victim: dict[str, Any]) -> Limit:
    return Limit(victim["lowered"], victim["hard"])


def _names(facts: Facts) -> str:
    return ", ".join(victim["name"] for victim in facts["victims"])
