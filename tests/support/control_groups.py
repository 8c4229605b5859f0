"""Control groups of a test's own: for its own process and so all that it starts, or for programs started there."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brownout_agent.kernel.cgroups import own_groups, trees
from brownout_agent.kernel.own_groups import parents

from tests.support.polling import wait_until

ROOT = Path("/sys/fs/cgroup")
LIMITS = {
    "pids": ("pids.max",),
    "cpu": ("cpu.cfs_quota_us", "cpu.max"),
    "memory": ("memory.limit_in_bytes", "memory.max", "memory.high"),
    "freezer": ("freezer.state", "cgroup.freeze"),
    "io": (
        *(f"blkio.throttle.{what}_device" for what in ("read_bps", "write_bps", "read_iops", "write_iops")),
        "io.max",
    ),
}
"""By controller, the files that faults limit a group by: in version 1, in version 2."""
JOIN = """import os, sys
end = sys.argv.index("--")
for procs in sys.argv[1:end]:
    open(procs, "w").write("0")
os.execvp(sys.argv[end + 1], sys.argv[end + 1:])
"""
"""Program text: `-c JOIN GROUP/cgroup.procs... -- ARGV...` runs ARGV in these groups."""


@contextmanager
def limited(controller: str, version_1: dict[str, str], version_2: dict[str, str]) -> Iterator[Path]:
    """Inside, this process runs in a new group with these control files written; skips where there is no such group.

    `controller` is `cpu`, `memory` or `io` (which version 1 calls `blkio`).
    """
    tree = ROOT / ("blkio" if controller == "io" else controller)
    unified = ROOT / "cgroup.subtree_control"
    if (tree / "cgroup.procs").exists():
        files = version_1
    elif unified.exists() and controller in unified.read_text().split():
        tree, files = ROOT, version_2
    else:
        pytest.skip(f"no {controller} controller for control groups here")
    before = _group_of_this_process(tree)
    group = tree / f"brownout-test-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        for name, text in files.items():
            (group / name).write_text(text)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield group
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()


@contextmanager
def new_group(controller: str, *files: str, name: str = "") -> Iterator[Path]:
    """A new group with one of these control files; skips where there is no such group. It must be empty in the end."""
    tree = next((tree for tree in trees(controller) if os.access(tree, os.W_OK)), None)
    if tree is None:
        pytest.skip(f"no control group here has the {controller} controller")
    group = tree / (name or f"brownout-test-{uuid.uuid4().hex[:8]}")
    group.mkdir()
    try:
        if not any((group / file).exists() for file in files):
            pytest.skip(f"{tree} hands the {controller} controller to none below it")
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        for one in (*group.glob("*/"), group):
            one.rmdir()


def thaw(group: Path) -> None:
    """Let a group go on that a fault has frozen: in version 1 its processes do not even die before."""
    state = group / "freezer.state"
    if state.exists():
        state.write_text("THAWED")


def _group_of_this_process(tree: Path) -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if (tree == ROOT and not controllers) or tree.name in controllers.split(","):
            return tree / path.strip("/")
    raise AssertionError(f"/proc/self/cgroup does not name {tree}")


def fault_parents() -> list[Path]:
    """This process's group in each tree that faults have to do with: where ours are made, and those of LIMITS."""
    return sorted({*parents(), *(group for controller in LIMITS for group in own_groups(os.getpid(), controller))})


def leave_own_trees() -> None:
    """In this mount namespace, which must be the caller's own, unmount each tree that no fault has to do with.

    Whoever starts a process again puts it into its group in every tree: what is done twelve times on a host of
    version 1 is then done as often as on most hosts.
    """
    ours = fault_parents()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, filesystem = line.partition(" - ")
        point = Path(place.split(" ")[4])
        if filesystem.startswith("cgroup") and not any(group.is_relative_to(point) for group in ours):
            subprocess.run(["umount", str(point)], check=True)
