"""The store on SQLite, fully synced. In rollback-journal mode, which SQLite's WAL-reset bug (< 3.51.3) cannot touch."""

import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update

from brownout_controller.record import Event
from brownout_controller.store.database import Database
from brownout_controller.store.schema import runs


class RunUnknown(Exception):
    """There is no such run, or no record of it; the text says which."""


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
    """Runs and their events, in `folder`/brownout.db; `database` serves whatever else is kept there."""

    def __init__(self, folder: Path) -> None:
        """Open or make the store.

        Raises:
            StoreError: the folder cannot be written.
        """
        self.database = Database.in_folder(folder)

    def close(self) -> None:
        """Close every connection."""
        self.database.close()

    def begin_run(self, name: str, operator: str, plan_digest: str, started_ns: int) -> int:
        """A new run's number."""
        row = {"name": name, "operator": operator, "plan_digest": plan_digest, "started_ns": started_ns}
        with self.database.writing() as connection:
            key = connection.execute(insert(runs.runs), row).inserted_primary_key
        assert key is not None
        return int(key[0])

    def append_events(self, number: int, first_position: int, events: Sequence[Event]) -> None:
        """Keep events of a run as they happen, so that a killed controller leaves them behind."""
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
        if rows:
            with self.database.writing() as connection:
                connection.execute(insert(runs.events), rows)

    def finish_run(self, number: int, document: dict[str, Any], verdict: str, exit_code: int, headline: str) -> None:
        """Close a run with everything that will ever be judged or drawn of it."""
        packed = zlib.compress(json.dumps(document, separators=(",", ":")).encode())
        values = {
            "ended_ns": time.time_ns(),
            "verdict": verdict,
            "exit_code": exit_code,
            "headline": headline,
            "document": packed,
        }
        with self.database.writing() as connection:
            connection.execute(update(runs.runs).where(runs.runs.c.number == number).values(values))

    def list_runs(self, limit: int = 50) -> list[RunLine]:
        """The latest runs, newest first. One without a verdict is running, or its controller died."""
        table = runs.runs
        columns = [table.c[name] for name in RunLine.__slots__]
        with self.database.reading() as connection:
            rows = connection.execute(select(*columns).order_by(table.c.number.desc()).limit(limit))
            return [RunLine(*row) for row in rows]

    def load_document(self, number: int) -> dict[str, Any]:
        """A finished run's document.

        Raises:
            RunUnknown: no such run, or it never finished.
        """
        with self.database.reading() as connection:
            row = connection.execute(select(runs.runs.c.document).where(runs.runs.c.number == number)).first()
        if row is None:
            raise RunUnknown(f"there is no run {number}; next: brownout runs list")
        if row[0] is None:
            raise RunUnknown(f"run {number} has no record: it is running, or its controller died before the end")
        document: dict[str, Any] = json.loads(zlib.decompress(row[0]))
        return document
