"""A controller is killed at random instants of its runs and started again; a real agent and injector live through it.

What is judged: the tables as the killed controller left them, the tables after the next one has closed the run, and
the kernel's processes.
"""

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brownout_controller.running.machine import fault_id

from tests.support.fleets import agent, controller, injector, joined
from tests.support.injectors import holders
from tests.support.polling import wait_until
from tests.support.services import free_port

FAULT, HOST = "busy", "app-1"
RUN_S = 5.5
"""About how long a run lasts that nobody kills."""
CLOSED_WITHIN_S = 60.0
_EXPERIMENT = f"""version: 1
name: killed
hypothesis: It ends in good order, whoever dies.
steady_state: {{before: 500ms, after: 500ms}}
faults:
  - {{name: {FAULT}, inject: cpu.load, target: "role=app", with: {{percent: 5}}, for: 3s}}
"""


@dataclass
class Deaths:
    """What was found; the lists are empty when all is well."""

    closed_after_s: list[float] = field(default_factory=list)
    """From the next controller's start to the end of the run that its predecessor had left open."""
    endings: Counter[str] = field(default_factory=Counter)
    """Runs by verdict and exit code."""
    unclosed: list[int] = field(default_factory=list)
    lost_rows: list[str] = field(default_factory=list)
    holders_left: list[int] = field(default_factory=list)
    without_record: list[int] = field(default_factory=list)
    """Runs that had begun to order faults and of which no record was kept."""


async def die(folder: Path, deaths: int, seed: int) -> Deaths:
    """Kill a controller `deaths` times, each at another instant of a run."""
    chance, found = random.Random(seed), Deaths()
    (folder / "experiment.yaml").write_text(_EXPERIMENT)
    port = free_port()
    async with controller(folder / "data", port) as serving:
        await joined(serving, folder / HOST, HOST)
    door = folder / "injector.sock"
    async with injector(door, folder / "injector"), agent(folder / HOST, door):
        for _ in range(deaths):
            await asyncio.to_thread(_one_death, folder, port, chance.uniform(0, RUN_S), found)
    return found


def _one_death(folder: Path, port: int, after_s: float, found: Deaths) -> None:
    with _started(folder, port) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdin.write(b"\n")
        first.stdin.flush()
        told = first.stdout.readline()
        assert told, (folder / "controller.log").read_text()
        number = int(told)
        time.sleep(after_s)  # the instant is what is drawn
    before, events = _run(folder, number), _events(folder, number)
    begun_s = time.monotonic()
    with _started(folder, port):
        try:
            wait_until(lambda: _run(folder, number)["verdict"] is not None, "the run's end", CLOSED_WITHIN_S)
        except AssertionError:
            found.unclosed.append(number)
            return
        if before["verdict"] is None:
            found.closed_after_s.append(time.monotonic() - begun_s)
    after = _run(folder, number)
    found.endings[f"{after['verdict']} {after['exit_code']}"] += 1
    found.lost_rows += [f"run {number}: {row}" for row in events if row not in _events(folder, number)]
    found.lost_rows += [
        f"run {number}: {name}" for name in ("name", "started_ns", "run_key") if before[name] != after[name]
    ]
    if after["document"] is None and any(kind == "fault_ordered" for _, _, kind in events):
        found.without_record.append(number)
    if holders(fault_id(after["run_key"], FAULT, HOST)):
        found.holders_left.append(number)


@contextmanager
def _started(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A controller, killed when the block ends."""
    argv = [sys.executable, "-m", "tests.support.run_controller", str(folder), str(port)]
    with (folder / "controller.log").open("ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    with process:
        try:
            yield process
        finally:
            process.kill()


def _run(folder: Path, number: int) -> Any:
    with closing(sqlite3.connect(folder / "data/brownout.db", timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute("SELECT * FROM run WHERE number = ?", [number]).fetchone()


def _events(folder: Path, number: int) -> list[tuple[int, int, str]]:
    with closing(sqlite3.connect(folder / "data/brownout.db", timeout=10)) as connection:
        rows = connection.execute("SELECT position, at_ns, kind FROM run_event WHERE run_number = ?", [number])
        return [(position, at_ns, kind) for position, at_ns, kind in rows]
