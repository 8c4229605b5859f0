"""Two controllers with four schedulers on one PostgreSQL, killed again and again; and who checks afterwards.

The checker reads the tables and what the controllers have written to their logs, and computes due times by itself.
"""

import random
import subprocess
import sys
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
    controllers = [_start(url, folder, n, speed) for n in range(CONTROLLERS)]
    try:
        for kill in range(kills):
            _sleep_until(begun_s + lasts_s * (kill + chance.random()) / kills)
            victim = kill % CONTROLLERS
            _kill(controllers[victim])
            if kill == kills // 2:  # once nobody is awake for longer than what may be late
                for other in controllers:
                    _kill(other)
                _sleep_until(time.monotonic() + 1.5 * GRACE_S / speed)
                controllers = [_start(url, folder, n, speed) for n in range(CONTROLLERS)]
            else:
                controllers[victim] = _start(url, folder, victim, speed)
        with psycopg.connect(url, autocommit=True) as connection:
            wait_until(lambda: _count(connection, end_ns) >= schedules * due_each, "every due time", 300)
            wait_until(lambda: _waiting(connection) == 0, "an empty outbox", 120)
            return _check(connection, folder, ids, began_ns, due_each, Figures(
                seed, schedules * due_each, kills, {}, [], [], [], 0, 0, time.monotonic() - begun_s,
            ))  # fmt: skip
    finally:
        for controller in controllers:
            _kill(controller)
        database.close()


def _sleep_until(moment_s: float) -> None:
    """The storm's own clock: nothing is waited for but time."""
    time.sleep(max(0.0, moment_s - time.monotonic()))


def _start(url: str, folder: Path, number: int, speed: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "tests.support.firing_controller", url, str(folder)]
    argv += [str(folder / f"{number}.log"), str(speed)]
    with (folder / f"{number}.err").open("ab") as errors:
        return subprocess.Popen(argv, stderr=errors)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _count(connection: psycopg.Connection, end_ns: int) -> int:
    row = connection.execute("SELECT count(*) FROM occurrence WHERE due_ns <= %s", [end_ns]).fetchone()
    assert row is not None
    return int(row[0])


def _waiting(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT count(*) FROM outbox WHERE delivered_ns IS NULL").fetchone()
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
