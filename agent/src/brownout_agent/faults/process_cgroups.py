"""To which cgroups and systemd service a process belongs, and how a new process joins them (cgroups(7))."""

import errno
import os
import re
from pathlib import Path

from brownout_agent.kernel.processes import PROC

_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.service")


def systemd_unit(pid: int) -> str:
    """The system service that a process belongs to, "" where there is none or systemd does not run this host."""
    if not Path("/run/systemd/system").is_dir():  # sd_booted(3)
        return ""
    return unit_named_in((PROC / str(pid) / "cgroup").read_text())


def unit_named_in(cgroup_text: str) -> str:
    """The service named in a /proc/PID/cgroup. A service of a user's own manager is none of the system's. Pure."""
    for line in cgroup_text.splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        names = [name for name in path.split("/") if _UNIT.fullmatch(name)]
        if (hierarchy == "0" or controllers == "name=systemd") and names and not names[0].startswith("user@"):
            return names[0]
    return ""


def is_in_unit(cgroup_text: str, unit: str) -> bool:
    """Whether the process of a /proc/PID/cgroup belongs to this unit of the system's own manager. Pure.

    The system's own units are in slices only; one below a service or a scope is a user's or a container's.
    """
    for line in cgroup_text.splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        above, found, _ = f"{path}/".partition(f"/{unit}/")
        if (hierarchy == "0" or controllers == "name=systemd") and found:
            return all(name.endswith(".slice") for name in above.split("/") if name)
    return False


def is_in_group(cgroup_text: str, path: str) -> bool:
    """Whether the process of a /proc/PID/cgroup is in the group of this path, or below it, in some hierarchy. Pure."""
    return any(f"{line.split(':', 2)[2]}/".startswith(f"{path}/") for line in cgroup_text.splitlines())


def folders(pid: int) -> list[str]:
    """The folder of the process's cgroup in every hierarchy that is mounted here."""
    mounts = Path("/proc/self/mountinfo").read_text()
    return folders_named_in((PROC / str(pid) / "cgroup").read_text(), mounts)


def folders_named_in(cgroup_text: str, mountinfo: str) -> list[str]:
    """As `folders`, from the texts of /proc/PID/cgroup and /proc/self/mountinfo (proc(5)). Pure."""
    found = []
    for line in cgroup_text.splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        for mount in mountinfo.splitlines():
            place, _, filesystem = mount.partition(" - ")
            kind, _, options = filesystem.split(" ", 2)
            root, mount_point = place.split(" ")[3:5]
            is_v2 = hierarchy == "0" and kind == "cgroup2"
            is_v1 = kind == "cgroup" and controllers and set(controllers.split(",")) <= set(options.split(","))
            if root == "/" and (is_v2 or is_v1):
                found.append(mount_point + path.rstrip("/"))
                break
    return found


def join(cgroup_folders: list[str]) -> None:
    """Move the calling process into these cgroups. One that is gone meanwhile is replaced by its nearest parent.

    Raises:
        OSError: the kernel refused.
    """
    for folder in map(Path, cgroup_folders):
        for place in (folder, *folder.parents):
            try:
                (place / "cgroup.procs").write_text(str(os.getpid()))
                break
            except OSError as error:
                # ENOENT: gone. EBUSY: it has controllers for its children and takes no processes itself.
                if error.errno not in (errno.ENOENT, errno.EBUSY):
                    raise
