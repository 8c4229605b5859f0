"""A small file system of a test's own, on a loop device. Needs root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 2**20


@contextmanager
def ext4(folder: Path, size_bytes: int) -> Iterator[Path]:
    """An empty ext4 without reserved blocks, mounted below `folder` while inside."""
    image, mount_point = folder / "image", folder / "disk"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    mount_point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount_point)], check=True, capture_output=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True, capture_output=True)


def free_bytes(folder: Path) -> int:
    """What ordinary users may still write, as `df` has it."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize
