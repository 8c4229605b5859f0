"""Small file systems of a test's own, on a loop device or in memory. Needs root."""

import ctypes
import os
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 2**20
_CLONE_NEWNS = 0x20000


@contextmanager
def ext4(folder: Path, size_bytes: int, inodes: int | None = None) -> Iterator[Path]:
    """An empty ext4 without reserved blocks, mounted below `folder` while inside; with about so many inodes."""
    count = ["-N", str(inodes)] if inodes else []
    with made_by(["mkfs.ext4", "-q", "-m", "0", *count], folder, size_bytes) as mount_point:
        yield mount_point


@contextmanager
def made_by(mkfs: list[str], folder: Path, size_bytes: int) -> Iterator[Path]:
    """An empty file system of this program, mounted below `folder` while inside."""
    image, mount_point = folder / "image", folder / "disk"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    mount_point.mkdir()
    subprocess.run([*mkfs, str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount_point)], check=True, capture_output=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True, capture_output=True)


def free_bytes(folder: Path) -> int:
    """What ordinary users may still write, as `df` has it."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def on_own_disk(folder: Path, work: Callable[[], None]) -> None:
    """Do `work` in a child, with an empty disk at `folder` that nobody else sees and that ends with the child.

    What `work` raises fails here.
    """
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "none", str(folder)], check=True)
            work()
        except BaseException:  # noqa: BLE001 - told to the parent, which fails by it
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        raised = said.read()
    os.waitpid(pid, 0)
    assert raised == "", raised
