"""What was made, renamed or removed in a folder is so after a power failure as well."""

import os
from pathlib import Path


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
