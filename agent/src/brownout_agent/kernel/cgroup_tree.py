"""Control groups by their names, in every hierarchy that is mounted, version 1 and version 2."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from brownout_agent.kernel.cgroups import group_folders
from brownout_agent.kernel.processes import PROC


def read_cgroups(prefix: str) -> dict[Path, tuple[int, ...]]:
    """The processes of each group whose name begins with `prefix`, and of those below it, by pid.

    Looked for where a process of ours could make one: beside this process's own group and all above it.

    Raises:
        OSError: /proc is not there.
    """
    found = {group for parent in _parents() for named in _named(parent, prefix) for group in _tree(named)}
    return {group: _members(group) for group in sorted(found)}


def members_below(group: Path) -> set[int]:
    """The processes of a group and of all groups below it. 0 is one of another pid namespace (cgroups(7)).

    Raises:
        OSError: one cannot be read, so that nobody knows.
    """
    found: set[int] = set()
    for folder in _tree(group):
        try:
            found |= set(map(int, (folder / "cgroup.procs").read_text().split()))
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # a threaded group: its processes are listed in the one above it
                raise
    return found


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


def _members(group: Path) -> tuple[int, ...]:
    try:
        return tuple(map(int, (group / "cgroup.procs").read_text().split()))
    except OSError:  # a threaded group, or one that is just going
        return ()
