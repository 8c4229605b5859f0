"""The injector is killed at any call that has an effect, in the life of any fault, and the kernel is watched.

A *point* is one call of one life: who makes it, which, on what, and the how-manieth of its like, killed before or
after. `trace` finds the points of a life, `strike` kills at one.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brownout_agent.frames import to_value
from brownout_agent.injector.journal import FINISHED, Contents, decode
from brownout_protos.v1 import fault_pb2, injector_pb2

from tests.support import syscall_tracer
from tests.support.undo_sequences import Host, undo_host

GONE_WITHIN_S = 30.0
STEP_WITHIN_S = 40.0
KILL_TOLD_WITHIN_S = 5.0
BEFORE, AFTER = "before", "after"
CALLER, INJECTOR = "caller", "injector"
_EXTENSIONS = 5
"""Settings of the holder's timer after which every kind has handled a renewal of its lease."""
_HEARINGS = 3
"""Of 20 s each."""

Label = tuple[str, str, str]
"""Who makes a call, which call, and on what."""


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """Where to kill, when, and whom: the process that makes the call, or the injector that it belongs to."""

    kind: str
    role: str
    call: str
    target: str
    nth: int
    when: str
    whom: str

    @property
    def label(self) -> Label:
        return self.role, self.call, self.target

    def __str__(self) -> str:
        call = f"{self.call}({self.target})" if self.target else self.call
        return f"{self.kind}: {self.whom} killed {self.when} {call} number {self.nth} of the {self.role}"


def points_of(kind: str, labels: list[Label]) -> list[Point]:
    """Every point of a life in which these calls were made."""
    made: Counter[Label] = Counter()
    points = []
    for label in labels:
        made[label] += 1
        for whom in (INJECTOR,) if label[0] in {"injector", "child"} else (CALLER, INJECTOR):
            points += [Point(kind, *label, made[label], when, whom) for when in (BEFORE, AFTER)]
    return points


def faults(host: Host) -> dict[str, dict[str, Any]]:
    """Every kind of fault as it is brought about on this host, by kind."""
    disk = {"path": str(host.disk)}
    return {
        "cpu.load": {"percent": 1, "of": "own", "cores": "0"},
        "disk.fill": {"size": "20MiB", **disk},
        "disk.io": {"write": "1MiB/s", "file_size": "4MiB", **disk},
        "memory.load": {"size": "16MiB"},
        "network.blackhole": {"to": "127.0.0.9", "port": 9999},
        "network.loss": {"to": "127.0.0.8", "percent": 20},
        "process.kill": {"command": host.tag, "restart": True},
        "process.pause": {"command": host.tag},
    }


class Trace:
    """What the tracer of a host's injector says of one life after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labels: list[Label] = []
        self.killed = asyncio.Event()
        self._fault_id = ""
        self._said = asyncio.Event()

    @property
    def under(self) -> tuple[str, ...]:
        """What an injector that is to be followed is started by."""
        return (sys.executable, "-S", syscall_tracer.__file__, str(self.folder))

    def order(self, fault_id: str, point: Point | None) -> None:
        """From now on follow this fault, and kill at the point, if there is one."""
        self.labels, self._fault_id = [], fault_id
        self.killed.clear()
        where = None if point is None else [*point.label, point.nth, point.when, point.whom]
        fresh = self.folder / "order.new"
        fresh.write_text(json.dumps({"fault_id": fault_id, "point": where}))
        fresh.rename(self.folder / "order")

    async def read(self, lines: asyncio.StreamReader) -> None:
        """Hear what is said, until cancelled."""
        while line := await lines.readline():
            fault_id, *words = json.loads(line)
            if fault_id != self._fault_id:
                continue  # of an injector before
            if words[0] == "killed":
                self.killed.set()
            else:
                self.labels.append((words[0], words[1], words[2]))
            self._said.set()

    async def until(self, enough: Callable[[list[Label]], bool]) -> None:
        while not enough(self.labels):
            self._said.clear()
            await self._said.wait()


@asynccontextmanager
async def traced_host(folder: Path) -> AsyncIterator[tuple[Host, Trace]]:
    """A host whose injector, each that is started there, is followed."""
    trace = Trace(folder)
    os.mkfifo(folder / "said")
    with os.fdopen(os.open(folder / "said", os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0) as pipe:
        lines = asyncio.StreamReader(2**20)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), pipe
        )
        reading = asyncio.create_task(trace.read(lines))
        try:
            async with undo_host(folder, trace.under) as host:
                yield host, trace
        finally:
            reading.cancel()
            transport.close()


async def _live(host: Host, kind: str, fault_id: str, trace: Trace) -> None:
    """One life: ordered, held while its lease is renewed, stopped, clean."""
    ended = {fault_pb2.CLEAN, fault_pb2.RESIDUE}
    parameters = {name: to_value(value) for name, value in faults(host)[kind].items()}
    host.client.inject(fault_id, kind=kind, parameters=parameters)
    await host.hear(lambda: fault_id in host.replies)
    assert host.replies[fault_id].outcome == fault_pb2.OrderReply.ACCEPTED, host.replies[fault_id]
    await host.hear(lambda: host.states.get(fault_id) in {fault_pb2.ACTIVE, *ended})
    for _ in range(2):
        host.client.send(renew=fault_pb2.RenewLease())
    extended = asyncio.create_task(trace.until(lambda said: said.count(("holder", "timer_settime", "")) >= _EXTENSIONS))
    killed = asyncio.create_task(trace.killed.wait())
    _, late = await asyncio.wait({extended, killed}, timeout=STEP_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
    for task in late:
        task.cancel()
    host.client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="enough"))
    for _ in range(_HEARINGS):
        with suppress(TimeoutError):  # what an undo that was itself killed has left is tried again after a while
            await host.hear(lambda: host.states.get(fault_id) == fault_pb2.CLEAN)
            return
        host.client.send(inspect=injector_pb2.Inspect())
    raise AssertionError(f"{kind} is in state {host.states.get(fault_id)}, and stays there")


async def trace(host: Host, seen: Trace, kind: str) -> list[Label]:
    """The calls of one life that have an effect, in their order."""
    fault_id = str(uuid.uuid4())
    seen.order(fault_id, None)
    await _live(host, kind, fault_id, seen)
    _renew_victims(host, kind)
    return seen.labels


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a strike. `is_reached`: the life had such a call, and somebody was killed at it."""

    is_reached: bool
    trouble: str = ""
    """What was on without a record, or what is left; empty when all is well."""
    clean_after_s: float = 0.0


async def strike(host: Host, seen: Trace, point: Point) -> Outcome:
    """Live a life up to the point, kill there, and see that everything is recorded, undone and noted."""
    fault_id = str(uuid.uuid4())
    before = _look(host)
    seen.order(fault_id, point)
    living = asyncio.create_task(_live(host, point.kind, fault_id, seen))
    killed = asyncio.create_task(seen.killed.wait())
    try:
        await asyncio.wait({living, killed}, timeout=STEP_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        struck_s = time.monotonic()
        if living.done() and living.exception() is not None:  # the injector was heard to die before its killer was
            await asyncio.wait({killed}, timeout=KILL_TOLD_WITHIN_S)
        if not seen.killed.is_set():
            await living  # says what went wrong, if something did
            _renew_victims(host, point.kind)
            return Outcome(is_reached=False)
        trouble = await _see_recorded(host, point, before, fault_id)
        if host.injector.returncode is None:
            await living
    finally:
        for task in (living, killed):
            task.cancel()
        await asyncio.gather(living, killed, return_exceptions=True)
    trouble = trouble or await _see_clean(host, before)
    clean_s = time.monotonic() - struck_s
    if host.injector.returncode is not None:
        await host.end()
        seen.order(fault_id, None)  # the next one makes such calls as well, when it starts
        await host.start()
    _renew_victims(host, point.kind)
    return Outcome(True, trouble, clean_s)


def _look(host: Host) -> dict[str, str]:
    """What the kernel shows, without the temporary mounts of others: they come and go in every namespace."""
    shown = host.kernel()
    theirs = f" {tempfile.gettempdir()}/"
    lines = shown["mounts"].splitlines()
    ours = (line.split(" ", 2)[2] for line in lines if theirs not in line or f" {host.folder}/" in line)
    return {**shown, "mounts": "\n".join(ours)}


def _renew_victims(host: Host, kind: str) -> None:
    """Those that an undo has started again are followed as well, and nobody could pause them."""
    if kind == "process.kill":
        host.end_victims()
        host.spawn_victims()


async def _see_recorded(host: Host, point: Point, before: dict[str, str], fault_id: str) -> str:
    if point.whom == INJECTOR:
        async with asyncio.timeout(STEP_WITHIN_S):
            assert await host.injector.wait() == -signal.SIGKILL
    shown = _look(host)  # first: the journal that is read after it can only know more
    changed = [f"{name}: {before[name]!r} -> {shown[name]!r}" for name in before if before[name] != shown[name]]
    is_recorded = fault_id in _journal(host).entries
    return "" if is_recorded or not changed else f"without a record: {changed}"


async def _see_clean(host: Host, before: dict[str, str]) -> str:
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while True:
        after = _look(host)
        left = [f"{name}: {before[name]!r} -> {after[name]!r}" for name in before if before[name] != after[name]]
        left += [
            f"{entry.kind} is {entry.mark}" for entry in _journal(host).entries.values() if entry.mark not in FINISHED
        ]
        if not left:
            return ""
        if time.monotonic() > deadline_s:
            return f"left after {GONE_WITHIN_S:g} s: {left}"
        await asyncio.sleep(0.02)


def _journal(host: Host) -> Contents:
    return decode((host.folder / "state/journal").read_bytes())
