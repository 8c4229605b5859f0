"""Locks of the operating system on a data folder. They end with their process, however it ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from brownout_controller.store.errors import StoreError

_POLL_S = 0.02


@contextmanager
def serving_lock(folder: Path) -> Iterator[None]:
    """Be the one controller that serves from `folder`.

    Raises:
        StoreError: another one does.
    """
    with lock_file(folder / "controller.lock") as descriptor:
        if not try_lock(descriptor, exclusive=True):
            raise StoreError(
                f"another controller{_pid_of(descriptor)} serves from {folder} already; "
                "one SQLite database has one controller. End that one, choose another --data-dir, "
                "or let both share a PostgreSQL database (--database)"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield


@contextmanager
def lock_file(path: Path) -> Iterator[int]:
    """A descriptor that locks can be taken on; they end with it.

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, *, exclusive: bool) -> bool:
    """Take a lock, or turn the one held into the other kind; False when somebody else's stands against it."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        return True
    return False


def wait_lock(descriptor: int, deadline_s: float, *, exclusive: bool) -> bool:
    """Take a lock by `deadline_s` of the monotonic clock; False when that has passed."""
    while not try_lock(descriptor, exclusive=exclusive):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def unlock(descriptor: int) -> None:
    """Give a lock back."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def _pid_of(descriptor: int) -> str:
    """Who wrote itself into a lock file; "" while it is just doing so."""
    pid = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
    return f" (pid {pid})" if pid.isdecimal() else ""
