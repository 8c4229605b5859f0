"""Two controllers with four schedulers on one PostgreSQL, killed again and again; and who checks afterwards.

The checker reads the tables and what the controllers have written to their logs, and computes due times by itself.
"""

import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psycopg
from brownout_controller.firing.firing import Firing
from brownout_controller.firing.schedule import NS_PER_S, interval_schedule
from brownout_controller.store.database import Database

from tests.support.polling import wait_until
from tests.support.postgres import Postgres

CONTROLLERS = 2
EVERY_S = 10
GRACE_S = 600


@dataclass
class Figures:
    """What was found; everything that must be 0 is a list, so that a failure shows what it was."""

    seed: int
    due: int
    kills: int
    outcomes: dict[str, int]
    doubled: list[str]
    lost: list[str]
    unaccounted: list[tuple[str, int]]
    missed_without_reason: int
    delivered_again: int
    took_s: float


def storm(server: Postgres, folder: Path, schedules: int, due_each: int, kills: int, speed: int, seed: int) -> Figures:
    """Let `schedules` x `due_each` due times pass while controllers are killed, then wait until all is carried out."""
    chance, begun_s = random.Random(seed), time.monotonic()
    url = server.make_database()
    database = Database.at(url)
    firing = Firing(database, "nobody")
    began_ns = firing.now_ns()
    (folder / "began").write_text(str(began_ns))
    ids = [str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(schedules)]
    for schedule_id in ids:
        firing.add(interval_schedule(schedule_id, EVERY_S * NS_PER_S, began_ns, GRACE_S * NS_PER_S, "storm"))
    end_ns = began_ns + due_each * EVERY_S * NS_PER_S
    lasts_s = (end_ns - began_ns) / NS_PER_S / speed
    everybody = threading.Barrier(CONTROLLERS)
    lives = [random.Random(chance.random()) for _ in range(CONTROLLERS)]
    stormy = [
        _Stormy(url, folder, n, speed, kills // CONTROLLERS, lasts_s, one, everybody) for n, one in enumerate(lives)
    ]
    try:
        for one in stormy:
            one.start()
        for one in stormy:
            one.join()
            assert one.controller is not None, "it failed; its error stands above"
        with psycopg.connect(url, autocommit=True) as connection:
            wait_until(lambda: _count(connection, end_ns) >= schedules * due_each, "every due time", 300)
            wait_until(lambda: _waiting(connection, end_ns) == 0, "an empty outbox", 600)
            return _check(connection, folder, ids, began_ns, due_each, Figures(
                seed, schedules * due_each, kills, {}, [], [], [], 0, 0, time.monotonic() - begun_s,
            ))  # fmt: skip
    finally:
        for one in stormy:
            one.end()
        database.close()


class _Stormy(threading.Thread):
    """One controller after another: each is killed at a random instant once it fires, the last one stays."""

    def __init__(
        self, url: str, folder: Path, number: int, speed: int, kills: int, lasts_s: float, chance: random.Random,
        everybody: threading.Barrier,
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self._argv = [sys.executable, "-m", "tests.support.firing_controller", url, str(folder)]
        self._argv += [str(folder / f"{number}.log"), str(speed)]
        self._errors = folder / f"{number}.err"
        self._kills, self._life_s, self._chance, self._everybody = kills, lasts_s / kills, chance, everybody
        self._dark_s = 1.5 * GRACE_S / speed
        self.controller: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        controller = self._start()
        for kill in range(self._kills):
            time.sleep(self._chance.uniform(0, self._life_s))  # the instant is what is drawn
            _kill(controller)
            if kill == self._kills // 2:  # once nobody is awake for longer than what may be late
                self._everybody.wait(120)
                time.sleep(self._dark_s)
            controller = self._start()
        self.controller = controller

    def _start(self) -> subprocess.Popen[bytes]:
        with self._errors.open("ab") as errors:
            process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        assert process.stdout.readline() == b"firing\n", self._errors.read_text()
        return process

    def end(self) -> None:
        if self.controller is not None:
            _kill(self.controller)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.kill()


def _count(connection: psycopg.Connection, end_ns: int) -> int:
    row = connection.execute("SELECT count(*) FROM occurrence WHERE due_ns <= %s", [end_ns]).fetchone()
    assert row is not None
    return int(row[0])


def _waiting(connection: psycopg.Connection, end_ns: int) -> int:
    """Of the storm's own orders: the schedules go on after it."""
    still = "SELECT count(*) FROM outbox WHERE delivered_ns IS NULL AND due_ns <= %s"
    row = connection.execute(still, [end_ns]).fetchone()
    assert row is not None
    return int(row[0])


def _check(
    connection: psycopg.Connection, folder: Path, ids: list[str], began_ns: int, due_each: int, figures: Figures
) -> Figures:
    last_ns = began_ns + due_each * EVERY_S * NS_PER_S
    wanted = {(one, began_ns + n * EVERY_S * NS_PER_S) for one in ids for n in range(1, due_each + 1)}
    rows = connection.execute(
        "SELECT schedule_id, due_ns, outcome, why FROM occurrence WHERE due_ns <= %s", [last_ns]
    ).fetchall()
    figures.unaccounted = sorted(wanted ^ {(row[0], row[1]) for row in rows})
    figures.outcomes = dict(Counter(row[2] for row in rows))
    figures.missed_without_reason = sum(not row[3] for row in rows if row[2] != "fired")
    fired = {(row[0], row[1]) for row in rows if row[2] == "fired"}
    keys = {str(uuid.uuid5(uuid.UUID(one), str(due_ns))) for one, due_ns in fired}
    runs = Counter(
        row[0]
        for row in connection.execute(
            "SELECT run_key FROM run LEFT JOIN outbox USING (run_key) WHERE due_ns <= %s OR due_ns IS NULL", [last_ns]
        )
    )
    logs = [line.split()[0] for path in sorted(folder.glob("*.log")) for line in path.read_text().splitlines()]
    begun = Counter(logs)
    figures.doubled = sorted([key for key, times in (runs + begun).items() if runs[key] > 1 or begun[key] > 1])
    figures.lost = sorted(keys - runs.keys()) + sorted(runs.keys() - keys)
    again = connection.execute("SELECT count(*) FROM outbox WHERE attempts > 1").fetchone()
    assert again is not None
    figures.delivered_again = int(again[0])
    return figures
