"""What is on disk to stay: names in a folder after a power failure, and room for what is written later."""

import ctypes
import os
from pathlib import Path

_FALLOC_FL_KEEP_SIZE = 1
_libc = ctypes.CDLL(None)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def reserve(descriptor: int, offset: int, size_bytes: int) -> bool:
    """Have the file system set blocks aside beyond the end of a file (fallocate(2)); False where it does not."""
    return bool(_libc.fallocate(descriptor, _FALLOC_FL_KEEP_SIZE, offset, size_bytes) == 0)


def sync_folder(folder: Path) -> None:
    """Return when every entry of a folder is on disk as it is now: fsync(2) of a file leaves out its name.

    Raises:
        OSError: it cannot be synced, or is no folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
