"""Locks of files: who holds a flock(2), by /proc/locks; and locks that outlive their taker in its forks."""

import errno
import fcntl
import os
import struct
from pathlib import Path

from brownout_agent.kernel.processes import PROC


def flock_holder(path: Path) -> int | None:
    """The pid that holds a flock on this file now, or None.

    /proc/locks names inodes by the number of their superblock's device, which on overlay and btrfs is not what stat(2)
    says; so it only names candidates, and one of their descriptors must lead to the file.
    """
    try:
        status = path.stat()
        lines = (PROC / "locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        # 1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF; a waiter's line has `->` after its number
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(status.st_ino):
            pid = int(fields[4])
            if _has_open(pid, status):
                return pid
    return None


def lock_byte(descriptor: int, position: int) -> bool:
    """Lock one byte of a file for this open file description (F_OFD_SETLK, fcntl(2)); False when another has it.

    The kernel holds the lock until the last copy of the descriptor is closed, those in forks included. The byte need
    not exist.

    Raises:
        OSError: the file cannot be locked.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, position, 1, 0))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def _has_open(pid: int, status: os.stat_result) -> bool:
    try:
        descriptors = list((PROC / str(pid) / "fd").iterdir())
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            found = descriptor.stat()
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
            return True
    return False
