"""One database: SQLite in a folder, or PostgreSQL by its address. The same transactions on both."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from brownout_controller.store import migrating, postgresql, sqlite
from brownout_controller.store.errors import StoreError, trouble
from brownout_controller.store.locks import serving_lock

__all__ = ["DATABASE_URL", "Database", "StoreError"]

DATABASE_URL = "BROWNOUT_DATABASE_URL"
"""The environment variable that names a PostgreSQL database; it may hold a password, which a command line shows."""


@dataclass(frozen=True, slots=True)
class Database:
    """Transactions on everything that is kept. SQLite has one connection that writes, whoever asks."""

    place: str
    """What errors call it: a folder, or an address without its password."""
    folder: Path | None
    """Where the SQLite file lies; None on PostgreSQL."""
    reader: Engine
    writer: Engine
    _held: ExitStack = field(repr=False)

    @classmethod
    def open(cls, folder: Path, url: str = "") -> "Database":
        """The PostgreSQL database at `url`, or the SQLite file in `folder` where there is no url.

        Raises:
            StoreError: it cannot be used.
        """
        return cls.at(url) if url else cls.in_folder(folder)

    @classmethod
    def in_folder(cls, folder: Path) -> "Database":
        """Open or make `folder`/brownout.db; one of an older version is backed up and brought up to date.

        Raises:
            StoreError: a folder of another owner or on a network file system, no space, damaged, of a newer version.
        """
        with ExitStack() as held:
            try:
                sqlite.check_folder(folder)
                writer = sqlite.writing_engine(folder)
                held.callback(writer.dispose)
                held.enter_context(sqlite.in_use_and_current(folder, writer))
                reader = sqlite.reading_engine(folder)
                held.callback(reader.dispose)
            except (OSError, DBAPIError) as error:
                raise trouble(error, str(folder)) from error
            return cls(str(folder), folder, reader, writer, held.pop_all())

    @classmethod
    def at(cls, url: str) -> "Database":
        """Open the PostgreSQL database at `url`, make its tables or bring them up to date.

        Raises:
            StoreError: no address of PostgreSQL, not reachable, older than 15, without fsync, or of a newer version.
        """
        place, engine = postgresql.engine_at(url)
        with ExitStack() as held:
            held.callback(engine.dispose)
            try:
                postgresql.check_server(engine, place)
                with engine.begin() as connection:
                    postgresql.lock_migrations(connection)
                    migrating.bring_up_to_date(connection, place)
            except DBAPIError as error:
                raise trouble(error, place) from error
            return cls(place, None, engine, engine, held.pop_all())

    def close(self) -> None:
        """Close every connection."""
        self._held.close()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Be the one controller that serves from this folder. On PostgreSQL there may be several.

        Raises:
            StoreError: another one serves; its pid is named.
        """
        with ExitStack() as held:
            if self.folder is not None:
                held.enter_context(serving_lock(self.folder))
                try:
                    sqlite.check_whole(self.reader, self.place)
                except DBAPIError as error:
                    raise trouble(error, self.place) from error
            yield

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that only reads.

        Raises:
            StoreError: the database does not answer.
        """
        try:
            with self.reader.connect() as connection:
                yield connection
        except (DBAPIError, PoolTimeout) as error:
            raise trouble(error, self.place) from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction: kept as a whole when the block ends, or not at all. Not to be nested.

        Raises:
            StoreError: it could not be kept: no space, not writable, locked for too long, or damaged.
        """
        try:
            with self.writer.begin() as connection:
                yield connection
        except (DBAPIError, PoolTimeout) as error:
            raise trouble(error, self.place) from error

    def now_ns(self, connection: Connection) -> int:
        """The database's own clock, in ns since the Unix epoch: one for every controller, however theirs differ."""
        if self.folder is not None:
            return time.time_ns()
        seconds = connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one()
        return int(seconds * 1_000_000_000)
