"""SQLite as we use it: rollback journal, every commit synced, one writing connection, a folder that is only ours.

Not WAL: several programs write (a controller, and commands beside it), and up to 3.51.2 two of them that write or
checkpoint a WAL at the same moment can damage the file (sqlite.org/wal.html, "The WAL-reset bug"). EXTRA syncs the
folder as well after the journal is unlinked: with FULL a power cut right after a commit may bring the journal back, and
with it the state before (sqlite.org/pragma.html#pragma_synchronous). It costs 12 % of the commits a second: 1,520
against 1,725 of FULL and 9,330 of WAL on the machine this was written on, where a run needs about one.
"""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brownout_agent.kernel.disks import filesystem_of
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection, Engine

from brownout_controller.store import migrating
from brownout_controller.store.errors import StoreError, damaged
from brownout_controller.store.locks import lock_file, try_lock, unlock, wait_lock

FILE = "brownout.db"
BUSY_TIMEOUT_S = 30
"""SQLite's waiting is not fair: on a disk that a fault keeps busy, whoever waits may lose many times to who comes next.
"""
NETWORK_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "fuse.sshfs", "fuse.glusterfs"})
"""Their locks do not hold what SQLite needs of them (sqlite.org/faq.html#q5)."""
_POLL_S = 0.02


def check_folder(folder: Path) -> None:
    """Make the folder, or see that nobody else can write to it.

    Raises:
        OSError: it cannot be made.
        StoreError: another owner, others may write, or a network file system.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (kind := filesystem_of(str(folder))) in NETWORK_FILESYSTEMS:
        raise StoreError(f"{folder} is on {kind}, whose locks protect no database; choose a folder on a local disk")
    _check_private(folder, stat.S_IWGRP | stat.S_IWOTH, "go-w")
    if (folder / FILE).exists():
        _check_private(folder / FILE, stat.S_IRWXG | stat.S_IRWXO, "600")


def _check_private(path: Path, forbidden: int, remedy: str) -> None:
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise StoreError(
            f"{path} belongs to uid {found.st_uid}, and this is uid {os.geteuid()}; "
            "run the command as its owner, or choose another --data-dir"
        )
    if found.st_mode & forbidden:
        mode = stat.S_IMODE(found.st_mode)
        raise StoreError(f"{path} is open to other users (mode {mode:04o}); next: chmod {remedy} {path}")


def writing_engine(folder: Path) -> Engine:
    """The one connection that writes; the file is made when it is not there."""
    path = folder / FILE
    path.touch(mode=0o600, exist_ok=True)
    engine = _engine(path, pool_size=1, max_overflow=0, pool_timeout=BUSY_TIMEOUT_S)

    @event.listens_for(engine, "begin")
    def take_the_write_lock_first(connection: Connection) -> None:
        # A transaction that reads first and writes then may find that another one came between, and must give up.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def reading_engine(folder: Path) -> Engine:
    """Connections that cannot write."""
    engine = _engine(folder / FILE)

    @event.listens_for(engine, "connect")
    def only_read(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _engine(path: Path, **pool: Any) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S}, **pool)

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, and the driver begins none
        (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
        if mode != "delete":
            raise StoreError(f"{path} is in journal mode {mode}, which another program holds it in; end that program")
        connection.execute("PRAGMA synchronous=EXTRA")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


@contextmanager
def in_use_and_current(folder: Path, writer: Engine) -> Iterator[None]:
    """Hold a shared lock that says the file is in use, after it was made or brought up to date by whoever came first.

    Raises:
        StoreError: restored or migrated for too long, in use by an older version, damaged, or of a newer version.
    """
    with lock_file(folder / "in-use.lock") as descriptor:
        deadline_s = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            if not wait_lock(descriptor, deadline_s, exclusive=False):
                raise StoreError(f"the database in {folder} is being restored or brought up to date; try again")
            with writer.connect() as connection:
                version = migrating.version_of(connection)
            if version == migrating.newest():
                break
            migrating.refuse_newer(version, str(folder))
            unlock(descriptor)
            if try_lock(descriptor, exclusive=True):
                _bring_up_to_date(folder, writer)
            elif time.monotonic() > deadline_s:
                raise StoreError(
                    f"the database in {folder} is at version {version}, this Brownout wants {migrating.newest()}, and "
                    f"another Brownout uses it; end that one first. Who it is: fuser {folder / FILE}"
                )
            else:
                time.sleep(_POLL_S)
        yield


def _bring_up_to_date(folder: Path, writer: Engine) -> None:
    from brownout_controller.store.backup import back_up_before_migration  # noqa: PLC0415 - it opens databases itself

    with writer.connect() as connection:
        version = migrating.version_of(connection)
    if version is not None and version != migrating.newest():
        back_up_before_migration(folder, version)
    with writer.connect() as connection:
        # Batch migrations make a table anew, which foreign keys would forbid; inside a transaction it cannot be set.
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                migrating.bring_up_to_date(connection, str(folder))
                if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall():
                    raise StoreError(f"the database in {folder} could not be brought up to date: {len(broken)} rows")
        finally:
            driver.execute("PRAGMA foreign_keys=ON")


def check_whole(reader: Engine, place: str) -> None:
    """Read the whole file.

    Raises:
        DBAPIError: it cannot be read.
        StoreError: it is damaged.
    """
    with reader.connect() as connection:
        said = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA quick_check(5)")]
    if said != ["ok"]:
        raise damaged(place, "; ".join(said))
