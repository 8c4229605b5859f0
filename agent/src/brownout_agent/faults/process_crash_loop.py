"""`process.crash_loop`: a program ends again and again, as one does that dies soon after each start.

Whenever it is back it is killed at the next beat, by whomever it was started. Nothing is started here: that is the work
of the supervisor (systemd, a container runtime) whose patience is to be seen.
"""

import os
import signal
import time
from contextlib import suppress
from typing import Annotated

from pydantic import Field, model_validator

from brownout_agent.faults.contract import (
    Capability,
    DurationMs,
    Effect,
    Facts,
    Fault,
    Hold,
    Host,
    Meter,
    Record,
    Refusal,
)
from brownout_agent.faults.process_kill import EndingSignal, can_signal
from brownout_agent.faults.process_match import (
    Process,
    ProcessParameters,
    Untouchable,
    match,
    placed,
    read_process,
    read_processes,
    select,
    uid_of,
)
from brownout_agent.faults.process_places import NobodyMatches
from brownout_agent.faults.process_start import Program
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.processes import ProcessKey, is_alive, send_signal

_EVERY_S = 5.0
_DYING_S = 1.5
"""What a reading once a second and the death itself may add to the age of a process that is killed in time."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CrashLoopParameters(ProcessParameters):
    """Which program ends again and again. Not by pid: what comes back has another."""

    pid: Annotated[int | None, Field(ge=1, description="not for this fault: what comes back has another pid")] = None
    signal: EndingSignal = "KILL"
    every: DurationMs | None = Field(
        default=None, ge=1_000, le=3_600_000, description="the beat, at least 1s; 5s when left out"
    )

    @property
    def every_s(self) -> float:
        return _EVERY_S if self.every is None else self.every / 1_000

    @model_validator(mode="after")
    def _comes_back(self) -> "CrashLoopParameters":
        if self.pid is not None:
            raise ValueError("what comes back has another pid: give `process`, `command`, `user`, `port` or `unit`")
        return self


class ProcessCrashLoop(Fault[CrashLoopParameters]):
    """Signals all that match, at the start and at every beat."""

    kind = "process.crash_loop"
    summary = "Kill a program again whenever somebody has started it again."
    reverts = (
        "The kernel: whoever kills dies with the injector or by its timer. The program is not started here; its "
        "supervisor does that, or has given it up."
    )
    Parameters = CrashLoopParameters

    def detect(self, host: Host) -> Capability:
        return can_signal()

    def prepare(self, parameters: CrashLoopParameters, host: Host) -> Facts:
        chosen = match(parameters, host)
        spared = Untouchable.of(host)
        programs = [Program.of(one) for pid in spared.own_pids if (one := read_process(pid)) is not None]
        for process in chosen:
            if Program.of(process) in programs:
                raise Refusal(
                    f"{process.text} runs what a part of Brownout or an ancestor of it runs, with the same arguments",
                    "narrow the match with `process`, `command`, `user` or `unit`",
                )
        return {
            "processes": [process.key.as_json() for process in chosen],
            "names": sorted({process.comm for process in chosen}),
            "injector_pid": os.getpid(),
            "spared_pids": sorted(spared.own_pids),
            "spared_names": sorted(spared.names),
            "spared_programs": sorted({program.digest for program in programs}),
        }

    def apply(self, parameters: CrashLoopParameters, facts: Facts, hold: Hold) -> None:
        number, uid = signal.Signals[f"SIG{parameters.signal}"], uid_of(parameters)
        if not _strike(_running(parameters, uid, facts), number):
            raise Refusal(f"{', '.join(facts['names'])} ended before it could be signalled", "try again")
        hold.ready()
        due_s = time.monotonic()
        while True:
            due_s += parameters.every_s
            time.sleep(max(0.0, due_s - time.monotonic()))
            _strike(_running(parameters, uid, facts), number)

    def measure(self, record: Record[CrashLoopParameters], host: Host) -> Meter:
        return _LoopMeter(record)


class _LoopMeter(Meter):
    """Follows each life of the program in /proc: whether it has ended, and how old it became."""

    def __init__(self, record: Record[CrashLoopParameters]) -> None:
        self._parameters = record.parameters
        self._facts = record.facts
        self._uid = uid_of(record.parameters)
        self._began_s = boottime_ns() / 1e9
        self._longest_s = record.parameters.every_s + _DYING_S
        self._first = {ProcessKey.from_json(pair) for pair in record.facts["processes"]}
        self._lives = set(self._first)
        self._outlived: set[ProcessKey] = set()
        self._ended: set[ProcessKey] = set()
        self._samples = 0

    def sample(self) -> None:
        self._samples += 1
        now_s = boottime_ns() / 1e9
        with suppress(Refusal):  # a protected command matches now, upon which the holder ends
            self._lives |= {process.key for process in _running(self._parameters, self._uid, self._facts)}
        alive = {key for key in self._lives if is_alive(key)}
        self._ended = self._lives - alive
        self._outlived |= {key for key in alive if now_s - self._seen_from_s(key) > self._longest_s}

    def _seen_from_s(self, key: ProcessKey) -> float:
        return max(self._began_s, key.start_ticks / _TICKS_PER_S)

    def effect(self) -> Effect:
        due = self._ended | self._outlived
        again = self._lives - self._first
        looped = len(self._ended & again)
        names = ", ".join(self._facts["names"])
        if not self._samples:
            return Effect(0.0, None, "processes ended", False, "the processes were never looked at")
        text = (
            f"{len(self._ended)} processes of {names} ended under SIG{self._parameters.signal}, {looped} of them after "
            f"they had been started again; a reading a second may miss some"
        )
        if not again:
            text += "; nobody has started it again so far, so there is no loop"
        if self._outlived:
            text += f"; {len(self._outlived)} lived beyond the beat (a process may catch every signal but KILL)"
        is_proved = looped > 0 and not self._outlived
        return Effect(len(due), len(due - self._outlived), "processes ended", is_proved, text, samples=self._samples)


def _running(parameters: CrashLoopParameters, uid: int | None, facts: Facts) -> list[Process]:
    """All that match now, but what must be spared: it may have been started again since as well.

    Raises:
        Refusal: a protected command matches now.
    """
    everyone = read_processes()
    spared = Untouchable(_spared_pids(facts, everyone), frozenset(facts["spared_names"]))
    try:
        meant = select(parameters, uid, everyone, spared, placed(parameters, everyone))
    except NobodyMatches:
        return []
    programs = set(facts["spared_programs"])
    return [process for process in meant if Program.of(process).digest not in programs]


def _spared_pids(facts: Facts, everyone: list[Process]) -> frozenset[int]:
    """Those who were ours at the start, and all that the injector has started since: holders of other faults."""
    started = {int(facts["injector_pid"])}
    while more := {one.key.pid for one in everyone if one.parent_pid in started} - started:
        started |= more
    return frozenset(started.union(facts["spared_pids"]))


def _strike(processes: list[Process], number: signal.Signals) -> int:
    return sum(send_signal(process.key, number) for process in processes)
