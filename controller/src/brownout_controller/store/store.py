"""Runs: begun, kept while they go on, closed; and taken over where their controller is gone."""

import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Connection, Row

from brownout_controller.record import Event, EventKind
from brownout_controller.store.database import Database, StoreError
from brownout_controller.store.schema import owners, runs
from brownout_controller.store.upsert import insert_into

_RUNS = runs.runs


class RunUnknown(Exception):
    """There is no such run, or no record of it; the text says which."""


class RunTaken(StoreError):
    """The run is another controller's now, which took this one for dead, or it is closed already."""


class RunExists(Exception):
    """A run with this key was begun before; `number` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"it is run {number}")
        self.number = number


@dataclass(frozen=True, slots=True)
class Carrier:
    """Who carries a run, and what somebody else needs to know to end its faults."""

    controller_id: str
    run_key: str
    """Makes the ids of its faults. A second run with the same key is not begun."""
    faults: tuple[str, ...]
    """Their names."""
    hosts: dict[str, str]
    """Where they may be: each host's name and its agent's id."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A run whose controller is gone; this one has taken it over and is to close it."""

    number: int
    name: str
    carrier: Carrier
    draft: dict[str, Any] | None
    """Its document as it stood when that was last kept."""
    events: tuple[Event, ...]
    """As they were kept, without what only their controller knew."""


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run as lists show it."""

    number: int
    name: str
    operator: str
    started_ns: int
    ended_ns: int | None
    verdict: str | None
    exit_code: int | None
    headline: str | None


class Store:
    """Runs and their events; `database` serves whatever else is kept there."""

    def __init__(self, folder: Path, url: str = "") -> None:
        """Open or make the store: in `folder`/brownout.db, or in the PostgreSQL database at `url`.

        Raises:
            StoreError: it cannot be used.
        """
        self.database = Database.open(folder, url)

    def close(self) -> None:
        """Close every connection."""
        self.database.close()

    def begin_run(
        self, name: str, operator: str, plan_digest: str, started_ns: int, carrier: Carrier | None = None
    ) -> int:
        """A new run's number. Without a carrier nobody's death can be told from its going on.

        Raises:
            RunExists: the carrier's run key was used before.
        """
        row: dict[str, Any] = {"name": name, "operator": operator, "plan_digest": plan_digest, "started_ns": started_ns}
        if carrier is not None:
            reach = json.dumps({"faults": carrier.faults, "hosts": carrier.hosts})
            row |= {"run_key": carrier.run_key, "controller_id": carrier.controller_id, "reach": reach}
        with self.database.writing() as connection:
            beginning = insert_into(connection, _RUNS).values(row).on_conflict_do_nothing(index_elements=["run_key"])
            number = connection.execute(beginning.returning(_RUNS.c.number)).scalar_one_or_none()
            if number is None:
                known = select(_RUNS.c.number).where(_RUNS.c.run_key == row["run_key"])
                raise RunExists(int(connection.execute(known).scalar_one()))
        return int(number)

    def append_events(
        self, number: int, first_position: int, events: Sequence[Event], controller_id: str | None = None
    ) -> None:
        """Keep events of a run as they happen, so that a killed controller leaves them behind.

        Raises:
            RunTaken: another controller closes this run.
        """
        rows = [
            {
                "run_number": number,
                "position": position,
                "at_ns": item.at_ns,
                "kind": item.kind,
                "subject": item.subject,
                "host": item.host,
                "message": item.message,
            }
            for position, item in enumerate(events, first_position)
        ]
        with self.database.writing() as connection:
            self._check_owner(connection, number, controller_id)
            if rows:
                connection.execute(insert(runs.events), rows)

    def keep_draft(self, number: int, document: dict[str, Any], controller_id: str) -> None:
        """Keep the run's document as it stands, for whoever must close the run if this controller dies.

        Raises:
            RunTaken: another controller closes this run.
        """
        with self.database.writing() as connection:
            self._check_owner(connection, number, controller_id)
            connection.execute(update(_RUNS).where(_RUNS.c.number == number).values(document=_pack(document)))

    def finish_run(
        self,
        number: int,
        document: dict[str, Any] | None,
        verdict: str,
        exit_code: int,
        headline: str,
        controller_id: str | None = None,
    ) -> None:
        """Close a run with everything that will ever be judged or drawn of it.

        Raises:
            RunTaken: another controller closes this run.
        """
        values = {"ended_ns": time.time_ns(), "verdict": verdict, "exit_code": exit_code, "headline": headline}
        with self.database.writing() as connection:
            self._check_owner(connection, number, controller_id)
            packed = None if document is None else _pack(document)
            connection.execute(update(_RUNS).where(_RUNS.c.number == number).values(document=packed, **values))

    @staticmethod
    def _check_owner(connection: Connection, number: int, controller_id: str | None) -> None:
        """Nobody writes to a run that somebody else has taken over; the row stays locked until the transaction ends."""
        owner = select(_RUNS.c.controller_id, _RUNS.c.verdict).where(_RUNS.c.number == number).with_for_update()
        found = connection.execute(owner).one()
        if found.controller_id != controller_id or found.verdict is not None:
            raise RunTaken(f"run {number} is closed, or another controller closes it, which took this one for dead")

    def adopt(self, controller_id: str, wanted: Callable[[Carrier], bool] = lambda _: True) -> list[Orphan]:
        """Take over every open run whose controller is forgotten, of those that are wanted; nobody else gets them."""
        alive = select(owners.controllers.c.controller_id)
        left = _RUNS.c.verdict.is_(None) & (_RUNS.c.controller_id.is_(None) | _RUNS.c.controller_id.not_in(alive))
        columns = [_RUNS.c[name] for name in ("number", "name", "run_key", "reach", "document")]
        with self.database.writing() as connection:
            rows = connection.execute(select(*columns).where(left).with_for_update(skip_locked=True)).all()
            orphans = [_orphan(controller_id, row, self._events(connection, row.number)) for row in rows]
            taken = [orphan for orphan in orphans if wanted(orphan.carrier)]
            mine = _RUNS.c.number.in_([orphan.number for orphan in taken])
            connection.execute(update(_RUNS).where(mine).values(controller_id=controller_id))
        return taken

    @staticmethod
    def _events(connection: Connection, number: int) -> tuple[Event, ...]:
        columns = [runs.events.c[name] for name in ("at_ns", "kind", "subject", "host", "message")]
        kept = select(*columns).where(runs.events.c.run_number == number).order_by(runs.events.c.position)
        return tuple(
            Event(at_ns, EventKind(kind), subject, host, message)
            for at_ns, kind, subject, host, message in connection.execute(kept).all()
        )

    def list_runs(self, limit: int = 50) -> list[RunLine]:
        """The latest runs, newest first. One without a verdict is running, or its controller died."""
        columns = [_RUNS.c[name] for name in RunLine.__slots__]
        with self.database.reading() as connection:
            rows = connection.execute(select(*columns).order_by(_RUNS.c.number.desc()).limit(limit))
            return [RunLine(*row) for row in rows]

    def load_document(self, number: int) -> dict[str, Any]:
        """A finished run's document.

        Raises:
            RunUnknown: no such run, or it never finished.
        """
        wanted = select(_RUNS.c.document, _RUNS.c.verdict, _RUNS.c.headline).where(_RUNS.c.number == number)
        with self.database.reading() as connection:
            row = connection.execute(wanted).first()
        if row is None:
            raise RunUnknown(f"there is no run {number}; next: brownout runs list")
        if row.verdict is None:
            raise RunUnknown(
                f"run {number} has no record yet: it is running, or its controller died and the next one will close it"
            )
        if row.document is None:
            raise RunUnknown(f"run {number} has no record: {row.headline}")
        return _unpack(row.document)


def _pack(document: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(document, separators=(",", ":")).encode())


def _unpack(packed: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(zlib.decompress(packed))
    return document


def _orphan(controller_id: str, row: Row[Any], events: tuple[Event, ...]) -> Orphan:
    reach = json.loads(row.reach or '{"faults": [], "hosts": {}}')
    carrier = Carrier(controller_id, row.run_key or "", tuple(reach["faults"]), reach["hosts"])
    draft = None if row.document is None else _unpack(row.document)
    return Orphan(row.number, row.name, carrier, draft, events)
