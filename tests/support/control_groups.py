"""Puts the test's own process, and so all that it starts, under a real limit of a control group for a while."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brownout_agent.kernel.own_groups import parents

from tests.support.polling import wait_until

ROOT = Path("/sys/fs/cgroup")


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


def _group_of_this_process(tree: Path) -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if (tree == ROOT and not controllers) or tree.name in controllers.split(","):
            return tree / path.strip("/")
    raise AssertionError(f"/proc/self/cgroup does not name {tree}")


def leave_own_trees() -> None:
    """In this mount namespace, which must be the caller's own, unmount each tree in which no group of ours is made.

    Whoever starts a process again puts it into its group in every tree: what is done twelve times on a host of
    version 1 is then done as often as on most hosts.
    """
    ours = parents()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, filesystem = line.partition(" - ")
        point = Path(place.split(" ")[4])
        if filesystem.startswith("cgroup") and not any(group.is_relative_to(point) for group in ours):
            subprocess.run(["umount", str(point)], check=True)
