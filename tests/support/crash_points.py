"""Every call that has an effect is a place to kill at: what such a point is, and the host on which calls are heard.

A *point* is one call of one scene: who makes it, which, on what, and the how-manieth of its like, killed before or
after. `crash_scenes.py` plays the scenes and kills.
"""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import syscall_tracer
from tests.support.undo_sequences import Host, undo_host

START, REAP = "start", "reap"
"""Scenes beside the lives of the faults, which bear their kinds' names: the injector starts and undoes what a dead one
left; the watchdog of a dead injector undoes."""
BEFORE, AFTER = "before", "after"
CALLER, INJECTOR, WATCHDOG = "caller", "injector", "watchdog"

Label = tuple[str, str, str]
"""Who makes a call, which call, and on what."""


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """Where to kill, when, and whom: the process that makes the call, or the one that it works for."""

    scene: str
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
        return f"{self.scene}: {self.whom} killed {self.when} {call} number {self.nth} of the {self.role}"


def points_of(scene: str, labels: list[Label]) -> list[Point]:
    """Every point of a scene in which these calls were made."""
    chief = WATCHDOG if scene == REAP else INJECTOR
    made: Counter[Label] = Counter()
    points = []
    for label in labels:
        made[label] += 1
        for whom in (chief,) if label[0] in {chief, "child"} else (CALLER, chief):
            points += [Point(scene, *label, made[label], when, whom) for when in (BEFORE, AFTER)]
    return points


class Trace:
    """What the tracers of a host's injectors say, each scene under a name of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labels: list[Label] = []
        self.killed = asyncio.Event()
        self.killed_pid = 0
        self._name = ""
        self._said = asyncio.Event()

    @property
    def under(self) -> tuple[str, ...]:
        """What an injector that is to be followed is started by."""
        return (sys.executable, "-S", syscall_tracer.__file__, str(self.folder))

    def order(self, name: str, point: Point | None) -> None:
        """From now on listen to what is said under this name, and kill at the point, if there is one."""
        self.labels, self._name = [], name
        self.killed.clear()
        where = None if point is None else [*point.label, point.nth, point.when, point.whom]
        fresh = self.folder / "order.new"
        fresh.write_text(json.dumps({"scene": name, "point": where}))
        fresh.rename(self.folder / "order")

    async def read(self, lines: asyncio.StreamReader) -> None:
        """Hear what is said, until cancelled."""
        while line := await lines.readline():
            name, *words = json.loads(line)
            if name != self._name:
                continue  # of an injector before
            if words[0] == "killed":
                self.killed_pid = words[1]
                self.killed.set()
            elif not self.killed.is_set():  # what undoes a kill is not what happens without one
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
