"""Control groups of our own: made below the one that the injector is in, so that what limits it limits them as well.

Version 1 has a tree for each controller, version 2 one for all; a group of ours has the same name in every tree that
counts for it. Below a systemd service this needs `Delegate=`; see `settle_in`.
"""

import errno
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from brownout_agent.kernel.cgroups import PREFIX, group_folders
from brownout_agent.kernel.processes import PROC

_LEAF = "injector"
"""Version 2 lets only the leaves of a tree have processes, so under systemd the injector moves into one."""
_CONTROLLERS = ("memory", "pids")
_REMOVE_WITHIN_S = 2.0
_POLL_S = 0.005


def parents() -> list[Path]:
    """Where a group of ours is made: the folder of this process's group in each tree. Empty where we may make none."""
    if os.geteuid() != 0:
        return []
    mountinfo, memberships = (PROC / "self/mountinfo").read_text(), (PROC / "self/cgroup").read_text()
    own = {next(group_folders(mountinfo, memberships, controller), None) for controller in (*_CONTROLLERS, "")}
    found = {folder.parent if folder.name == _LEAF else folder for folder in own if folder is not None}
    return sorted(folder for folder in found if os.access(folder, os.W_OK))


def group_name(fault_id: str) -> str:
    return PREFIX + fault_id


def enter(groups: Iterable[Path], memory_bytes: int, processes: int) -> None:
    """Make these groups, limited where their tree has the controller, and move this process there.

    Raises:
        OSError: the kernel refused.
    """
    for group in groups:
        group.mkdir(exist_ok=True)
        for name, limit in (
            ("memory.max", memory_bytes),
            ("memory.limit_in_bytes", memory_bytes),
            ("pids.max", processes),
        ):
            if (group / name).exists():
                (group / name).write_text(str(limit))
        (group / "cgroup.procs").write_text(str(os.getpid()))


def remove(groups: Iterable[Path]) -> None:
    """Kill what is in these groups and remove them. One that is gone is fine.

    Raises:
        OSError: one stays, since its processes do.
        ValueError: that is no group of ours.
    """
    deadline_s = time.monotonic() + _REMOVE_WITHIN_S
    for group in groups:
        if not group.name.startswith(PREFIX):
            raise ValueError(f"{group} is not a control group of ours")
        while group.exists():
            _kill_members(group)
            try:
                group.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline_s:
                    raise
                time.sleep(_POLL_S)


def _kill_members(group: Path) -> None:
    with suppress(FileNotFoundError, ProcessLookupError):
        for pid in map(int, (group / "cgroup.procs").read_text().split()):
            if pid > 0:  # 0 stands for a process of another pid namespace (cgroups(7))
                os.kill(pid, signal.SIGKILL)


def settle_in() -> bool:
    """Make room for groups of ours below the service that systemd has delegated to us: move into a leaf of it, and
    hand its controllers down. Call it before anything else is started. False where there is no such service: a
    container's whole tree may be delegated as well, and is not ours to rearrange.

    Raises:
        OSError: the kernel refused.
    """
    mountinfo, memberships = (PROC / "self/mountinfo").read_text(), (PROC / "self/cgroup").read_text()
    own = next(group_folders(mountinfo, memberships, ""), None)
    if own is None or own.suffix != ".service" or not _is_delegated(own):
        return False
    leaf = own / _LEAF
    leaf.mkdir(exist_ok=True)
    for pid in (own / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            (leaf / "cgroup.procs").write_text(pid)
    there = (own / "cgroup.controllers").read_text().split()
    for controller in set(_CONTROLLERS) & set(there):
        (own / "cgroup.subtree_control").write_text(f"+{controller}")
    return True


def _is_delegated(group: Path) -> bool:
    """Whether systemd (251 and later) says so: two managers must never share a part of the tree."""
    try:
        return os.getxattr(group, "user.delegate") == b"1"
    except OSError:
        return False
