"""Copies of an SQLite database: made while it is in use, verified by reading them, put back in its place."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from brownout_controller.store import migrating
from brownout_controller.store.errors import StoreError, trouble
from brownout_controller.store.locks import lock_file, serving_lock, try_lock
from brownout_controller.store.sqlite import BUSY_TIMEOUT_S, FILE

_BESIDE = ("-journal", "-wal", "-shm")
"""What SQLite may keep beside a database. Left behind, it would be played into the one that takes its place."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a database was found to hold, by reading all of it."""

    version: str
    runs: int
    size_bytes: int


def back_up(folder: Path, target: Path) -> Contents:
    """Copy the database of `folder` into the new file `target`, as it stands at one moment, and read the copy through.

    It may be in use: writers wait while it is copied, which is a matter of the disk's speed.

    Raises:
        StoreError: there is none, it is damaged, or the copy cannot be kept.
    """
    source = folder / FILE
    if not source.is_file():
        raise StoreError(f"there is no database in {folder}")
    if target.exists():
        raise StoreError(f"{target} is there already, and a backup overwrites nothing; choose another name")
    unfinished = target.with_name(target.name + ".unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _copy(source, unfinished, "rw")  # whatever a dead process left half done is rolled back first
        contents = inspect_file(unfinished)
        _settle(unfinished, target)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot back up {source} to {target}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return contents


def back_up_before_migration(folder: Path, version: str) -> Path:
    """Keep the database as an older version left it, beside itself.

    Raises:
        StoreError: that cannot be done, and so the tables stay as they are.
    """
    target = folder / f"{FILE}.version-{version}.{time.strftime('%Y%m%dT%H%M%S')}"
    back_up(folder, target)
    return target


def restore(folder: Path, backup: Path) -> tuple[Contents, Path | None]:
    """Put a backup in the place of the database of `folder`. Returns what it holds and where the old one is kept.

    Raises:
        StoreError: the backup is not whole, not ours, or of a newer version; or something uses the database.
    """
    if not backup.is_file():
        raise StoreError(f"there is no file {backup}")
    contents = inspect_file(backup)
    fresh = folder / f"{FILE}.unfinished"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with serving_lock(folder), _nobody_else(folder):
            try:
                fresh.unlink(missing_ok=True)
                os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                _copy(backup, fresh, "ro")
                inspect_file(fresh)
                replaced = _put_aside(folder)
                _settle(fresh, folder / FILE)
            finally:
                fresh.unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot restore {backup} into {folder}: {error}") from error
    return contents, replaced


def inspect_file(path: Path) -> Contents:
    """Read a whole SQLite file of ours, without changing it.

    Raises:
        StoreError: damaged, of something else, or of a newer version.
    """
    engine = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
    try:
        with engine.connect() as connection:
            said = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(5)")]
            if said != ["ok"]:
                raise StoreError(f"{path} is damaged: {'; '.join(said)}")
            version = migrating.version_of(connection)
            if version is None:
                raise StoreError(f"{path} is no database of Brownout: it has no table of runs")
            migrating.refuse_newer(version, str(path))
            runs = connection.exec_driver_sql("SELECT count(*) FROM run").scalar_one()
    except DBAPIError as error:
        raise trouble(error, str(path)) from error
    finally:
        engine.dispose()
    return Contents(version, int(runs), path.stat().st_size)


def _copy(source: Path, target: Path, mode: str) -> None:
    """By SQLite's online backup, in one step: with several, every commit of another process begins the copy anew."""
    with (
        closing(sqlite3.connect(f"file:{source}?mode={mode}", uri=True, timeout=BUSY_TIMEOUT_S)) as reading,
        closing(sqlite3.connect(target)) as writing,
    ):
        reading.backup(writing)


def _settle(unfinished: Path, target: Path) -> None:
    """Give a complete file its name, durably."""
    for path, then in ((unfinished, target), (target.parent, None)):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if then is not None:
            unfinished.replace(then)


def _put_aside(folder: Path) -> Path | None:
    """The database that stood here until now is kept, whatever state it is in, with what SQLite kept beside it."""
    current = folder / FILE
    if not current.exists():
        return None
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(current, timeout=BUSY_TIMEOUT_S)) as connection:
        connection.execute("BEGIN EXCLUSIVE")  # rolls back what a dead process left half done, where it is whole
    aside = folder / f"{FILE}.replaced.{time.strftime('%Y%m%dT%H%M%S')}.{os.getpid()}"
    for suffix in _BESIDE:
        beside = current.with_name(current.name + suffix)
        if beside.exists():
            beside.replace(aside.with_name(aside.name + suffix))
    current.replace(aside)
    return aside


@contextmanager
def _nobody_else(folder: Path) -> Iterator[None]:
    """Every command that works on the database holds `in-use.lock`, shared."""
    with lock_file(folder / "in-use.lock") as descriptor:
        if not try_lock(descriptor, exclusive=True):
            raise StoreError(
                f"a brownout command works on the database in {folder}; wait for it, or end it. Who it is: "
                f"fuser {folder / 'in-use.lock'}"
            )
        yield
