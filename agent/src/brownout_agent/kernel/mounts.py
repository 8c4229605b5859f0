"""What is mounted, device-mapper devices, and how much room there is."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from brownout_agent.kernel.folders import opened
from brownout_agent.kernel.processes import PROC

_BLOCK = Path("/sys/block")


def read_mounts() -> list[str]:
    """One line a mount of this mount namespace: point, kind, source, root within it, options (proc(5), mountinfo).

    Raises:
        OSError: /proc is not there.
    """
    return [_mount_line(line) for line in (PROC / "self/mountinfo").read_text(errors="replace").splitlines()]


def _mount_line(line: str) -> str:
    left, _, right = line.partition(" - ")
    root, point, options = left.split()[3:6]
    kind, source, super_options = right.split(" ", 2)
    return f"{point} {kind} {source} {root} {options} {super_options}"


def read_device_mapper() -> list[str]:
    """One line a device-mapper device: its name and whether it is suspended (sysfs-block-dm).

    Raises:
        OSError: /sys is not there, or not readable.
    """
    return [
        f"{device.name} {(device / 'dm/name').read_text().strip()} suspended {(device / 'dm/suspended').read_text()[0]}"
        for device in _BLOCK.iterdir()
        if (device / "dm").is_dir()
    ]


def read_space(folders: Iterable[str]) -> list[str]:
    """`FREE_BYTES TOTAL_BYTES FOLDER` for each folder that there is. Free is what ordinary users may still write.

    Their paths have no links; one that has become a link is not there.

    Raises:
        OSError: one of them cannot be asked.
    """
    lines = []
    for folder in sorted(set(folders)):
        with suppress(FileNotFoundError, NotADirectoryError), opened(folder) as descriptor:
            space = os.statvfs(descriptor)
            lines.append(f"{space.f_bavail * space.f_frsize} {space.f_blocks * space.f_frsize} {folder}")
    return lines
