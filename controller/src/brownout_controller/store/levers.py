"""Halt levers: pulled by anybody on this database, obeyed by every controller on it, released by a person."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, insert, select, update

from brownout_controller.store.database import Database
from brownout_controller.store.owners import Owners
from brownout_controller.store.schema import identities, levers, runs
from brownout_controller.store.upsert import insert_into

_LEVERS, _ANSWERS, _AGENTS, _RUNS = levers.levers, levers.answers, identities.agents, runs.runs


class NoSuchRun(Exception):
    """There is no run of this number."""


@dataclass(frozen=True, slots=True)
class Lever:
    """One pull. `number` is 0 for one that could not be kept."""

    number: int
    run_number: int | None
    """None halts everything."""
    reason: str
    pulled_by: str
    pulled_ns: int

    def __str__(self) -> str:
        return f"{self.reason} ({self.pulled_by})" if self.reason else self.pulled_by


@dataclass(frozen=True, slots=True)
class Answer:
    """What a host said to a halt."""

    host: str
    clean: bool
    message: str = ""


class Levers:
    """Every method raises StoreError when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pull(self, reason: str, by: str, run_number: int | None = None) -> Lever:
        """Keep a pull, durably. One that halts everything already stands as it is.

        Raises:
            NoSuchRun: of the run that is to be halted.
        """
        with self._database.writing() as connection:
            if run_number is None:
                standing = connection.execute(_select(_STANDING)).first()
                if standing is not None:
                    return Lever(*standing)
            elif connection.execute(select(_RUNS.c.number).where(_RUNS.c.number == run_number)).first() is None:
                raise NoSuchRun(f"there is no run {run_number}; next: brownout runs list")
            fresh = Lever(0, run_number, reason, by, time.time_ns())
            row = {name: value for name, value in asdict(fresh).items() if name != "number"}
            key = connection.execute(insert(_LEVERS), row).inserted_primary_key
        assert key is not None
        return replace(fresh, number=int(key[0]))

    def release(self, by: str) -> Lever | None:
        """Let runs begin again; returns the lever that stood, None when there was none."""
        with self._database.writing() as connection:
            standing = connection.execute(_select(_STANDING)).first()
            values = {"released_by": by, "released_ns": time.time_ns()}
            connection.execute(update(_LEVERS).where(_STANDING).values(values))
        return None if standing is None else Lever(*standing)

    def standing(self) -> Lever | None:
        """The lever that halts everything now."""
        with self._database.reading() as connection:
            row = connection.execute(_select(_STANDING)).first()
        return None if row is None else Lever(*row)

    def of_runs(self, run_numbers: Iterable[int]) -> list[Lever]:
        """The levers that were pulled for these runs alone."""
        with self._database.reading() as connection:
            return [Lever(*row) for row in connection.execute(_select(_LEVERS.c.run_number.in_(list(run_numbers))))]

    def answer(self, lever_number: int, answer: Answer) -> None:
        """Keep what a host answered; a later answer takes an earlier one's place."""
        told = {"clean": answer.clean, "message": answer.message, "answered_ns": time.time_ns()}
        with self._database.writing() as connection:
            keeping = insert_into(connection, _ANSWERS).values(lever_number=lever_number, host=answer.host, **told)
            key = [_ANSWERS.c.lever_number, _ANSWERS.c.host]
            connection.execute(keeping.on_conflict_do_update(index_elements=key, set_=told))

    def answers(self, lever_number: int) -> dict[str, Answer]:
        """What hosts answered so far, by name."""
        columns = (_ANSWERS.c.host, _ANSWERS.c.clean, _ANSWERS.c.message)
        with self._database.reading() as connection:
            rows = connection.execute(select(*columns).where(_ANSWERS.c.lever_number == lever_number))
            return {row.host: Answer(*row) for row in rows}

    def known_hosts(self) -> frozenset[str]:
        """Every host that was here and was not turned out, and those of runs that go on and whose controller lives."""
        living = Owners(self._database).living()
        seen = select(_AGENTS.c.host).where(_AGENTS.c.host.is_not(None), _AGENTS.c.withdrawn_ns.is_(None))
        going_on = select(_RUNS.c.reach).where(_RUNS.c.ended_ns.is_(None), _RUNS.c.controller_id.in_(living))
        with self._database.reading() as connection:
            hosts = set(connection.execute(seen).scalars())
            for reach in connection.execute(going_on).scalars():
                hosts |= json.loads(reach)["hosts"].keys()
        return frozenset(hosts)

    def exit_code(self, run_number: int) -> int | None:
        """How a run ended; None while nobody has closed it."""
        with self._database.reading() as connection:
            chosen = select(_RUNS.c.exit_code).where(_RUNS.c.number == run_number, _RUNS.c.ended_ns.is_not(None))
            return connection.execute(chosen).scalar_one_or_none()


_STANDING = _LEVERS.c.run_number.is_(None) & _LEVERS.c.released_ns.is_(None)


def _select(which: ColumnElement[bool]) -> Select[Any]:
    return select(*(_LEVERS.c[name] for name in Lever.__slots__)).where(which).order_by(_LEVERS.c.number)
