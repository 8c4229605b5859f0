"""The limits that the control groups of a process set for it, version 1 and version 2, itself and every ancestor.

A limit counts wherever it stands on the way up: a service in a slice obeys both.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brownout_agent.kernel.processes import PROC

PREFIX = "brownout-fault-"
"""How the names of our own groups begin (`own_groups.py`)."""


@dataclass(frozen=True, slots=True)
class CpuQuota:
    """At most `cores` cores' worth of CPU time. `throttled_s` is how long the kernel has held the group back so far."""

    group: Path
    cores: float
    throttled_s: float


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """At most `limit_bytes`, of which `room_bytes` are left; page cache that can be dropped counts as left."""

    group: Path
    limit_bytes: int
    room_bytes: int


@dataclass(frozen=True, slots=True)
class _Mount:
    version: int
    controllers: frozenset[str]
    root: str
    point: Path


def cpu_quota(pid: int) -> CpuQuota | None:
    """The tightest CPU quota over this process, or None.

    Raises:
        OSError: there is no such process.
    """
    quotas = [quota for group in _groups(pid, "cpu") if (quota := _quota_of(group))]
    return min(quotas, key=lambda quota: quota.cores, default=None)


def memory_limit(pid: int) -> MemoryLimit | None:
    """The memory limit with the least room left over this process, or None. Those that we set ourselves do not count.

    Raises:
        OSError: there is no such process.
    """
    groups = (group for group in _groups(pid, "memory") if not group.name.startswith(PREFIX))
    limits = [limit for group in groups if (limit := _limit_of(group))]
    return min(limits, key=lambda limit: limit.room_bytes, default=None)


def pids_group(pid: int) -> Path | None:
    """The nearest group over this process that can limit how many processes there are; None under roots alone.

    Raises:
        OSError: there is no such process.
    """
    return next((group for group in _groups(pid, "pids") if (group / "pids.max").exists()), None)


def pids_trees() -> list[Path]:
    """Where trees of groups that count processes are mounted."""
    mounts = _mounts((PROC / "self/mountinfo").read_text())
    return [mount.point for mount in mounts if "pids" in mount.controllers or _counts_processes(mount)]


def _counts_processes(mount: _Mount) -> bool:
    return mount.version == 2 and "pids" in (_read(mount.point / "cgroup.controllers") or "").split()


def _quota_of(group: Path) -> CpuQuota | None:
    if (text := _read(group / "cpu.max")) is not None:
        quota, _, period = text.partition(" ")
        throttled_s = _keyed(group / "cpu.stat").get("throttled_usec", 0) / 1e6
    else:
        quota = _read(group / "cpu.cfs_quota_us") or "-1"
        period = _read(group / "cpu.cfs_period_us") or "100000"
        throttled_s = _keyed(group / "cpu.stat").get("throttled_time", 0) / 1e9
    if quota in ("max", "-1"):
        return None
    return CpuQuota(group, int(quota) / int(period), throttled_s)


def _limit_of(group: Path) -> MemoryLimit | None:
    limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
    used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
    # Version 1 says "no limit" with the largest page-aligned number.
    if limit is None or used is None or limit == "max" or int(limit) >= 2**62:
        return None
    stat = _keyed(group / "memory.stat")
    droppable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
    return MemoryLimit(group, int(limit), max(int(limit) - int(used) + droppable, 0))


def _groups(pid: int, controller: str) -> Iterator[Path]:
    memberships = (PROC / str(pid) / "cgroup").read_text()
    return group_folders((PROC / "self/mountinfo").read_text(), memberships, controller)


def group_folders(mountinfo: str, memberships: str, controller: str) -> Iterator[Path]:
    """The folders of the group that governs a process and of its ancestors, as far as they are mounted here.

    Args:
        mountinfo: the text of /proc/self/mountinfo.
        memberships: the text of the process's /proc/PID/cgroup.
        controller: `cpu`, `memory`; on version 2 every controller has the same folders. "" is version 2 alone.
    """
    mounts = _mounts(mountinfo)
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        for mount in mounts:
            named = {controller} & mount.controllers & set(controllers.split(","))
            if not (named if mount.version == 1 else not controllers):
                continue
            # In a container the mount shows a part of the tree only: `root` is where that part begins.
            inside = path if mount.root == "/" else path.removeprefix(mount.root)
            group = mount.point / inside.strip("/")
            yield group
            while group != mount.point:
                group = group.parent
                yield group


def _mounts(mountinfo: str) -> list[_Mount]:
    mounts = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, point = left.split()[3:5]
        kind, _, options = right.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            version = 2 if kind == "cgroup2" else 1
            mounts.append(_Mount(version, frozenset(options.split(",")), root, Path(point)))
    return mounts


def _read(path: Path) -> str | None:
    """The text of a control file, or None where the group has no such file (or is gone)."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as error:
        if error.errno != errno.ENODEV:  # the group was removed after its file was opened
            raise
        return None


def _keyed(path: Path) -> dict[str, int]:
    return {key: int(value) for key, _, value in (line.partition(" ") for line in (_read(path) or "").splitlines())}
