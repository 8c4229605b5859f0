"""One database: SQLite in a folder, fully synced. The only place that knows an engine.

SQLite is kept in rollback-journal mode, which its WAL-reset bug (< 3.51.3) cannot touch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DatabaseError

from brownout_controller.store import schema

_BUSY_TIMEOUT_S = 10


class StoreError(Exception):
    """The store cannot be used; the text says why and what to do."""


class Database:
    """Transactions on everything that is kept."""

    def __init__(self, engine: Engine, place: str) -> None:
        """Take an engine; `place` is what errors call it."""
        self.engine = engine
        self.place = place

    @classmethod
    def in_folder(cls, folder: Path) -> "Database":
        """Open or make `folder`/brownout.db.

        Raises:
            StoreError: the folder cannot be written.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            engine = _sqlite(folder / "brownout.db")
            schema.metadata.create_all(engine)
        except (OSError, DatabaseError) as error:
            raise _trouble(error, str(folder)) from error
        return cls(engine, str(folder))

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that only reads.

        Raises:
            StoreError: the database does not answer.
        """
        try:
            with self.engine.connect() as connection:
                yield connection
        except DatabaseError as error:
            raise _trouble(error, self.place) from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction: kept as a whole when the block ends, or not at all.

        Raises:
            StoreError: it could not be kept: no space, not writable, locked for too long, or damaged.
        """
        try:
            with self.engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            raise _trouble(error, self.place) from error


def _trouble(error: OSError | DatabaseError, place: str) -> StoreError:
    why = error.orig if isinstance(error, DatabaseError) else error.strerror
    return StoreError(f"cannot keep runs in {place}: {why}")


def _sqlite(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    path.touch(mode=0o600, exist_ok=True)
    return engine
