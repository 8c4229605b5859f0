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
GROUP_NAME = r"[A-Za-z0-9:_.\\@-]+"
UNIT_PATTERN = rf"^{GROUP_NAME}\.(service|scope|slice)$"
GROUP_PATTERN = rf"^(/{GROUP_NAME})+$"
"""How a group, a systemd unit that has one, and a path of groups are written in an experiment."""
_IN_VERSION_1 = {"io": "blkio"}
"""Controllers that had another name there."""


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
class MemoryUse:
    """What a group and those below it use, and how much of that is page cache that can be dropped."""

    used_bytes: int
    droppable_bytes: int


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


def memory_use(group: Path) -> MemoryUse | None:
    """None where the group does not count memory, or is gone."""
    used = read_control(group / "memory.current") or read_control(group / "memory.usage_in_bytes")
    if used is None:
        return None
    stat = read_keyed(group / "memory.stat")
    return MemoryUse(int(used), stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def cpu_quota_over(group: Path) -> CpuQuota | None:
    """The tightest CPU quota of this group and those above it, or None."""
    quotas = [quota for folder in (group, *group.parents) if (quota := _quota_of(folder))]
    return min(quotas, key=lambda quota: quota.cores, default=None)


def pids_group(pid: int) -> Path | None:
    """The nearest group over this process that can limit how many processes there are; None under roots alone.

    Raises:
        OSError: there is no such process.
    """
    return next((group for group in _groups(pid, "pids") if (group / "pids.max").exists()), None)


def own_groups(pid: int, controller: str) -> list[Path]:
    """The group that this process itself is in, in the controller's tree of version 1 and in that of version 2, as far
    as they are mounted here.

    Raises:
        OSError: there is no such process.
    """
    memberships = (PROC / str(pid) / "cgroup").read_text()
    return [group for group, _ in _own_folders((PROC / "self/mountinfo").read_text(), memberships, controller)]


def trees(controller: str) -> list[Path]:
    """Where trees of groups with this controller are mounted."""
    mounts = _mounts((PROC / "self/mountinfo").read_text())
    return [mount.point for mount in mounts if _offers(mount, controller)]


def unified_tree() -> Path | None:
    """Where the tree of version 2 is mounted here; None where it is not, or only a part of it."""
    mounts = _mounts((PROC / "self/mountinfo").read_text())
    return next((mount.point for mount in mounts if mount.version == 2 and mount.root == "/"), None)


def _offers(mount: _Mount, controller: str) -> bool:
    if mount.version == 1:
        return _IN_VERSION_1.get(controller, controller) in mount.controllers
    if controller == "freezer":  # since Linux 5.2 of every group but the root, without being listed
        return any(True for _ in mount.point.glob("*/cgroup.freeze"))
    return controller in (read_control(mount.point / "cgroup.controllers") or "").split()


def _quota_of(group: Path) -> CpuQuota | None:
    if (text := read_control(group / "cpu.max")) is not None:
        quota, _, period = text.partition(" ")
        throttled_s = read_keyed(group / "cpu.stat").get("throttled_usec", 0) / 1e6
    else:
        quota = read_control(group / "cpu.cfs_quota_us") or "-1"
        period = read_control(group / "cpu.cfs_period_us") or "100000"
        throttled_s = read_keyed(group / "cpu.stat").get("throttled_time", 0) / 1e9
    if quota in ("max", "-1"):
        return None
    return CpuQuota(group, int(quota) / int(period), throttled_s)


def _limit_of(group: Path) -> MemoryLimit | None:
    limit = read_control(group / "memory.max") or read_control(group / "memory.limit_in_bytes")
    use = memory_use(group)
    # Version 1 says "no limit" with the largest page-aligned number.
    if limit is None or use is None or limit == "max" or int(limit) >= 2**62:
        return None
    return MemoryLimit(group, int(limit), max(int(limit) - use.used_bytes + use.droppable_bytes, 0))


def _groups(pid: int, controller: str) -> Iterator[Path]:
    memberships = (PROC / str(pid) / "cgroup").read_text()
    return group_folders((PROC / "self/mountinfo").read_text(), memberships, controller)


def group_folders(mountinfo: str, memberships: str, controller: str) -> Iterator[Path]:
    """The folders of the group that governs a process and of its ancestors, as far as they are mounted here.

    Args:
        mountinfo: the text of /proc/self/mountinfo.
        memberships: the text of the process's /proc/PID/cgroup.
        controller: `cpu`, `memory`, `io`; on version 2 every controller has the same folders. "" is version 2 alone.
    """
    for group, top in _own_folders(mountinfo, memberships, controller):
        yield group
        yield from group.parents[: len(group.parts) - len(top.parts)]


def _own_folders(mountinfo: str, memberships: str, controller: str) -> Iterator[tuple[Path, Path]]:
    """As `group_folders`, the group itself alone, with the mount that it is seen by."""
    mounts = _mounts(mountinfo)
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        for mount in mounts:
            named = {_IN_VERSION_1.get(controller, controller)} & mount.controllers & set(controllers.split(","))
            if not (named if mount.version == 1 else not controllers):
                continue
            # In a container the mount shows a part of the tree only: `root` is where that part begins.
            inside = path if mount.root == "/" else path.removeprefix(mount.root)
            yield mount.point / inside.strip("/"), mount.point


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


def read_control(path: Path) -> str | None:
    """The text of a control file, or None where the group has no such file (or is gone)."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as error:
        if error.errno != errno.ENODEV:  # the group was removed after its file was opened
            raise
        return None


def read_keyed(path: Path) -> dict[str, int]:
    """The numbers of a control file of lines like `nr_periods 9`; empty where the group has no such file."""
    return {
        key: int(value) for key, _, value in (line.partition(" ") for line in (read_control(path) or "").splitlines())
    }
