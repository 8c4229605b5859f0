"""Unnamed files for disk load, opened past the page cache where the file system allows it; what a process has read
and written at the storage layer."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from brownout_agent.kernel.folders import opened
from brownout_agent.kernel.processes import PROC, ProcessKey, is_alive

ALIGNMENT_BYTES = 4096
"""Direct I/O wants offsets, lengths and buffers in multiples of the logical block, which is 512 or 4096 bytes."""
IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})


@dataclass(frozen=True, slots=True)
class ScratchFile:
    """A file without a name (O_TMPFILE): the kernel frees it when the last process that has it open is gone."""

    descriptor: int
    is_direct: bool


def open_scratch(folder: str) -> ScratchFile:
    """A fresh unnamed file in `folder` (see `open_unnamed`), by O_DIRECT where the file system has it.

    Raises:
        OSError: no such folder, no permission, or a file system without unnamed files.
    """
    try:
        return ScratchFile(open_unnamed(folder, os.O_DIRECT), is_direct=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return ScratchFile(open_unnamed(folder), is_direct=False)


def open_unnamed(folder: str, more_flags: int = 0) -> int:
    """A fresh unnamed file in a folder whose path has no link in it.

    Raises:
        OSError: no such folder, a link on the way, no permission, or a file system without unnamed files.
    """
    with opened(folder) as descriptor:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | more_flags, 0o600, dir_fd=descriptor)


def remedy_for(error: OSError, otherwise: str) -> str:
    """What helps when a folder takes no file of ours. Under systemd only some folders may be written at all."""
    if error.errno == errno.EROFS:
        return "name a folder that is not read-only; under systemd, one of the injector's `ReadWritePaths=`"
    return otherwise


def filesystem_of(folder: str) -> str:
    """The type of the file system that `folder` is on, like `ext4`; "" where /proc/self/mountinfo does not tell."""
    device = Path(folder).stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in (PROC / "self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0]
    return ""


def whole_disk(folder: str) -> str | None:
    """The numbers of the disk that `folder` is on, like 254:0, of which it may be a partition; None where it is on no
    single one (btrfs, overlay, memory, network)."""
    device = Path(folder).stat().st_dev
    place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    disk = place.parent if (place / "partition").exists() else place
    return (disk / "dev").read_text().strip() if (disk / "dev").exists() else None


@dataclass(frozen=True, slots=True)
class StorageBytes:
    """What a process has caused to be read from and written to storage so far."""

    read: int
    write: int


def storage_bytes(key: ProcessKey) -> StorageBytes | None:
    """`read_bytes` and `write_bytes` of /proc/PID/io (proc(5)), or None when this process is gone.

    Raises:
        PermissionError: another user's process.
    """
    try:
        text = (PROC / str(key.pid) / "io").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    counts = dict(line.split(": ") for line in text.splitlines())
    return StorageBytes(int(counts["read_bytes"]), int(counts["write_bytes"])) if is_alive(key) else None
