"""Who holds a flock(2), by /proc/locks."""

import os
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
