"""A Python in pid, mount, network, IPC and control group namespaces of its own: for the workers of pytest.

    pytest -d --tx "3*popen//python=.venv/bin/python -m tests.support.apart" -m "not alone"

Whoever injects judges what is on the whole machine, as the residue audit does: what the worker beside it does is not on
its machine. They share its cores, its disk and its memory, so what measures those is no work for them.
"""

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.alone import alone_argv, be_alone, is_beside_others

_MODULE = "tests.support.apart"
_EMPTY_WITHIN_S = 10.0
_HANDED_DOWN = ("cpuset.cpus", "cpuset.mems")
"""Version 1 lets no process into a group that has none of these."""
_MOUNT_POINT = 4
"""A field of /proc/self/mountinfo (proc_pid_mountinfo(5))."""


@dataclass(frozen=True)
class Tree:
    """A mounted hierarchy of control groups."""

    mount_point: Path
    kind: str
    options: str

    @property
    def group(self) -> Path:
        """The one that this process is in, as seen from its own control group namespace, or without one."""
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if (number == "0") if self.kind == "cgroup2" else set(controllers.split(",")) <= set(self.names):
                return self.mount_point / path.lstrip("/")
        raise LookupError(f"no control group of this process at {self.mount_point}")

    @property
    def names(self) -> list[str]:
        """What a hierarchy of version 1 is mounted with: its controllers, or its name."""
        return [one for one in self.options.split(",") if one not in {"rw", "ro", "xattr"} and "agent=" not in one]


def trees() -> list[Tree]:
    """Those that are mounted writable, each once."""
    found: dict[Path, Tree] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, behind = line.partition(" - ")
        kind, _, options = behind.split(" ", 2)
        point = Path(fields.split()[_MOUNT_POINT])
        if kind in {"cgroup", "cgroup2"} and os.access(point, os.W_OK):
            found[point] = Tree(point, kind, options)
    return list(found.values())


@contextlib.contextmanager
def _in_groups_of_our_own() -> Iterator[None]:
    """While inside, what this process starts begins in new groups, one in each tree."""
    before = {tree.mount_point: tree.group for tree in trees()}
    made = [group / f"apart-{os.getpid()}" for group in before.values()]
    try:
        for group in made:
            group.mkdir()
            for name in _HANDED_DOWN:
                if (group / name).exists():
                    (group / name).write_text((group.parent / name).read_text())
            (group / "cgroup.procs").write_text("0")
        yield
    finally:
        for old in before.values():
            (old / "cgroup.procs").write_text("0")
        deadline_s = time.monotonic() + _EMPTY_WITHIN_S
        for group in made:
            _remove(group, deadline_s)


def _remove(group: Path, deadline_s: float) -> None:
    """With what is below. The kernel is a moment behind the last process."""
    folders = [Path(root) for root, _, _ in os.walk(group, topdown=False)]
    while folders:
        try:
            folders[0].rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
        else:
            del folders[0]


def _mount_own_groups() -> None:
    """What is mounted shows the trees of the machine; mounted anew they begin with our own groups."""
    for tree in trees():
        options = ("-o", ",".join(tree.names)) if tree.kind == "cgroup" else ()
        subprocess.run(["umount", tree.mount_point], check=True)
        subprocess.run(["mount", "-t", tree.kind, *options, "none", tree.mount_point], check=True)


def main() -> None:
    """Become the Python that is asked for, with its arguments."""
    if os.geteuid() != 0:  # what needs root is skipped there
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    if is_beside_others():
        with _in_groups_of_our_own():
            code = subprocess.run(alone_argv(_MODULE, "--cgroup"), check=False).returncode
        sys.exit(code)
    be_alone(_MODULE)
    _mount_own_groups()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    main()
