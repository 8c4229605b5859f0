"""Control groups by their names, in every hierarchy that is mounted, version 1 and version 2."""

import os
from collections.abc import Iterator
from pathlib import Path

from brownout_agent.kernel.cgroups import group_folders
from brownout_agent.kernel.processes import PROC


def read_cgroups(prefix: str) -> list[str]:
    """One line for each group whose name begins with `prefix`, and for those below it, with how many processes it has.

    Looked for where a process of ours could make one: beside this process's own group and all above it.

    Raises:
        OSError: /proc is not there.
    """
    found = {group for parent in _parents() for named in _named(parent, prefix) for group in _tree(named)}
    return [_line(group) for group in sorted(found)]


def _parents() -> set[Path]:
    """This process's group in each hierarchy, and every group above it up to the mount."""
    mountinfo = (PROC / "self/mountinfo").read_text()
    memberships = (PROC / "self/cgroup").read_text()
    names = {name for line in memberships.splitlines() for name in line.split(":", 2)[1].split(",")}
    return {folder for name in names for folder in group_folders(mountinfo, memberships, name)}


def _named(parent: Path, prefix: str) -> Iterator[Path]:
    try:
        for entry in os.scandir(parent):
            if entry.name.startswith(prefix) and entry.is_dir():
                yield Path(entry.path)
    except FileNotFoundError:
        return  # gone meanwhile, or outside of what is mounted here


def _tree(group: Path) -> Iterator[Path]:
    return (Path(folder) for folder, _, _ in os.walk(group))


def _line(group: Path) -> str:
    try:
        count = len((group / "cgroup.procs").read_text().split())
    except OSError:  # a threaded group, or one that is just going
        return str(group)
    return f"{group} with {count} processes"
