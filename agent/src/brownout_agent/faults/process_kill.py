"""`process.kill`: processes end by a signal, as by a crash, the OOM killer or an operator's mistake.

Nothing keeps them dead: a supervisor that brings them back is what an experiment wants to see. With `restart` the end
of the fault starts again what nobody else has brought back, as it ran before: by its service where it belongs to one,
else with the same arguments, folder, environment, user and groups. What was only in its memory is lost.
"""

import json
import os
import signal
import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from brownout_agent.faults import process_cgroups, process_start
from brownout_agent.faults.contract import (
    ABLE,
    Capability,
    Effect,
    Facts,
    Fault,
    Hold,
    Host,
    Json,
    Meter,
    Record,
    Refusal,
)
from brownout_agent.faults.process_match import Process, ProcessParameters, match, read_processes
from brownout_agent.faults.process_start import Program, instances
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.processes import ProcessKey, is_alive, send_signal, wait_dead

SignalName = Literal["KILL", "TERM", "INT", "QUIT", "HUP", "ABRT", "SEGV", "BUS"]
"""Those that end a process which does not care for them (signal(7))."""
EndingSignal = Annotated[
    SignalName,
    BeforeValidator(lambda name: name.upper().removeprefix("SIG") if isinstance(name, str) else name),
    Field(description="with or without SIG; a process can catch all but KILL"),
]
_LARGEST_FACTS = 128 * 1024
"""The journal keeps the facts once for each mark of the fault, and must have room for all of them."""
_DYING_TIMEOUT_S = 0.5
_START_TIMEOUT_S = 3.0
"""A server that daemonizes is not itself until it has forked; so long may that take."""
_POLL_S = 0.02


class KillParameters(ProcessParameters):
    """Which processes end, how, and whether they come back."""

    signal: EndingSignal = "KILL"
    restart: bool = Field(False, description="at the end, start again what nobody else has brought back by then")


class ProcessKill(Fault[KillParameters]):
    """Signals the matched processes once, parents first."""

    kind = "process.kill"
    summary = "End processes by a signal; on request start them again afterwards."
    reverts = (
        "Nothing is left to undo without `restart`. With it, whoever undoes (the injector, the reaper, the injector's "
        "next start) starts again what is missing."
    )
    Parameters = KillParameters

    def detect(self, host: Host) -> Capability:
        return can_signal()

    def prepare(self, parameters: KillParameters, host: Host) -> Facts:
        chosen = match(parameters, host)
        if parameters.restart:
            process_start.refuse_where_nothing_starts()
        facts: Facts = {
            "processes": [process.key.as_json() for process in chosen],
            "names": [process.text for process in chosen],
            "comebacks": _comebacks(chosen, read_processes(), with_image=parameters.restart),
        }
        if len(json.dumps(facts)) > _LARGEST_FACTS:
            raise Refusal(
                f"what must be kept of the {len(chosen)} processes of {parameters.text} is more than {_LARGEST_FACTS} "
                "bytes (arguments and environments)",
                "match fewer processes, or leave `restart` out",
            )
        return facts

    def apply(self, parameters: KillParameters, facts: Facts, hold: Hold) -> None:
        number = signal.Signals[f"SIG{parameters.signal}"]
        hit: list[Json] = [list(key.as_json()) for key in _keys(facts) if send_signal(key, number)]
        if not hit:
            raise Refusal(f"{', '.join(facts['names'])} ended before it could be signalled", "try again")
        hold.ready(signalled=hit)
        hold.wait()

    def undo(self, record: Record[KillParameters]) -> None:
        """Start again what is missing; what runs again already, or never died, is left alone."""
        if not record.parameters.restart:
            return
        wait_dead(_keys(record.facts), _DYING_TIMEOUT_S)
        failures = [failure for comeback in record.facts["comebacks"] if (failure := _bring_back(comeback))]
        if failures:
            raise process_start.StartFailed("; ".join(failures))
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.residue(record) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def residue(self, record: Record[KillParameters]) -> list[str]:
        if not record.parameters.restart:
            return []
        missing = ((comeback, _missing(comeback)) for comeback in record.facts["comebacks"])
        return [
            # Not its arguments, which may hold secrets: this text leaves the host.
            f"{count} of {comeback['before']} {comeback['exe']} did not come back; next: start it by hand"
            for comeback, count in missing
            if count
        ]

    def measure(self, record: Record[KillParameters], host: Host) -> Meter:
        return _DeathMeter(record)


def can_signal() -> Capability:
    """By the way in which faults do it, with the signal that does nothing."""
    try:
        descriptor = os.pidfd_open(os.getpid())
        signal.pidfd_send_signal(descriptor, 0)
        os.close(descriptor)
    except OSError as error:
        return Capability(False, f"signals by pidfd are refused: {error}", "use Linux 5.3 or later, or allow them")
    return ABLE


class _DeathMeter(Meter):
    """Looks in /proc for the killed and for equals that took their place."""

    def __init__(self, record: Record[KillParameters]) -> None:
        self._signal = record.parameters.signal
        self._names = dict(zip(_keys(record.facts), record.facts["names"], strict=True))
        self._programs = [(_program(comeback), comeback["before"]) for comeback in record.facts["comebacks"]]
        self._began_ns = boottime_ns()
        self._samples = 0
        self._alive: list[ProcessKey] = list(self._names)
        self._back_after_s: float | None = None

    def sample(self) -> None:
        self._samples += 1
        self._alive = [key for key in self._names if is_alive(key)]
        if self._programs and self._back_after_s is None and not self._alive and self._all_are_back():
            self._back_after_s = (boottime_ns() - self._began_ns) / 1e9

    def _all_are_back(self) -> bool:
        everyone = read_processes()
        return all(len(instances(program, everyone)) >= before for program, before in self._programs)

    def effect(self) -> Effect:
        asked, gone = len(self._names), len(self._names) - len(self._alive)
        if not self._samples:
            return Effect(asked, None, "processes", False, "the processes were never looked at")
        explanation = f"{gone} of {asked} processes were gone from /proc after SIG{self._signal}"
        if self._alive:
            left = ", ".join(self._names[key] for key in self._alive)
            explanation += f"; still running: {left} (a process may catch every signal but KILL)"
        if self._back_after_s is not None:
            explanation += f"; somebody had started as many again within {self._back_after_s:.1f} s"
        return Effect(asked, gone, "processes", gone == asked, explanation, samples=self._samples)


def _comebacks(chosen: list[Process], everyone: list[Process], *, with_image: bool) -> list[dict[str, Any]]:
    """For each program of the *roots*: how to tell that it is back, and how to bring it back. A root is a chosen one
    that neither a chosen parent nor a parent of the same program brings back.

    Raises:
        Refusal: one of them is no more what it was when it was chosen, so nobody would know what is to be brought back.
    """
    now = {process.key: process for process in everyone}
    for process in chosen:
        seen = now.get(process.key)
        # One that begins has no arguments for a moment (execve(2)); later it may change them as it likes (its title).
        if seen is None or (seen.exe, bool(seen.argv)) != (process.exe, bool(process.argv)):
            raise Refusal(f"{process.text} ended, or became another program, while it was looked at", "try again")
    as_chosen = {process.key: process for process in chosen}
    everyone = [as_chosen.get(process.key, process) for process in everyone]
    pids = {process.key.pid for process in chosen}
    roots: dict[Program, list[Process]] = {}
    for process in chosen:
        program = Program.of(process)
        if process.parent_pid not in pids and process.key in _keys_of(instances(program, everyone)):
            roots.setdefault(program, []).append(process)
    comebacks = []
    for program, members in roots.items():
        unit = process_cgroups.systemd_unit(members[0].key.pid) if with_image else ""
        images = [process_start.record_image(member).as_json() for member in members] if with_image and not unit else []
        before = len(instances(program, everyone))
        comebacks.append({**asdict(program), "before": before, "unit": unit, "images": images})
    return comebacks


def _keys_of(processes: list[Process]) -> set[ProcessKey]:
    return {process.key for process in processes}


def _bring_back(comeback: dict[str, Any]) -> str:
    """Start what is missing; returns why that failed, "" when it did not. One failure must not keep the others down."""
    missing = _missing(comeback)
    try:
        if missing and comeback["unit"]:
            process_start.restart_unit(comeback["unit"])
        elif missing:
            process_start.start(_program(comeback), int(comeback["before"]), comeback["images"])
    except process_start.StartFailed as error:
        return str(error)
    return ""


def _program(comeback: dict[str, Any]) -> Program:
    return Program(comeback["exe"], tuple(comeback["argv"]), bool(comeback["own_network"]))


def _missing(comeback: dict[str, Any]) -> int:
    """How many instances fewer than before the kill run now."""
    return max(0, int(comeback["before"]) - process_start.count_running(_program(comeback)))


def _keys(facts: Facts) -> list[ProcessKey]:
    return [ProcessKey.from_json(pair) for pair in facts["processes"]]
