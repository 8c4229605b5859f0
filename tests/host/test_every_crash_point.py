"""Each call that changes something is one that was killed at, by docs/crash-points.md; at one of them we kill again.

`make bench-crash-points` kills at all of them and writes that page.
"""

import asyncio
import os
import platform
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from brownout_agent.kernel.cgroups import PREFIX

from tests.support.control_groups import fault_parents
from tests.support.crash_points import points_of, traced_host
from tests.support.crash_points_document import missing
from tests.support.crash_scenes import SCENES, look, strike, trace
from tests.support.janitor import GROUP
from tests.support.polling import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="traces and kills programs of root"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the numbers of system calls on x86-64 only"),
]
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/crash-points.md"
TRIES = 5
BEGUN_WITHIN_S = 120.0
GONE_WITHIN_S = 20.0


@pytest.mark.parametrize("scene", SCENES)
def test_every_call_of_a_scene_was_struck_and_one_struck_again_is_recorded_and_undone(
    tmp_path: Path, scene: str
) -> None:
    seed = int(os.environ.get("BROWNOUT_SEED", random.SystemRandom().getrandbits(32)))
    print(f"BROWNOUT_SEED={seed}")

    async def told() -> None:
        async with traced_host(tmp_path) as (host, seen):
            before = await look(host)
            labels = await trace(host, seen, scene)
            never = missing(scene, labels, PAGE.read_text())
            assert not never, f"nobody was ever killed at {never}; next: make bench-crash-points"
            points = random.Random(seed).sample(points_of(scene, labels), TRIES)
            for point in points:
                outcome, _ = await strike(host, seen, point, before)
                assert not outcome.trouble, f"{point}: {outcome.trouble}"
                if outcome.is_reached:
                    return
            raise AssertionError(f"none of {[*map(str, points)]} was there again")

    asyncio.run(told())


def test_a_killed_bench_leaves_no_process_no_control_group_and_no_file(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.bench.crash_points", "--hosts", "1"]
    argv += ["--results", str(tmp_path / "results"), "--document", str(tmp_path / "page.md")]
    with (tmp_path / "said").open("wb") as said:
        bench = subprocess.Popen(argv, cwd=ROOT, stderr=said)
    try:
        wait_until(lambda: any(_faults_in(group) for group in _groups_of(bench.pid)), "a fault is on", BEGUN_WITHIN_S)
        (folder,) = _temporary_folders_of(bench.pid)
        assert any(str(folder) in file.read_text() for file in _loop_devices())
    finally:
        bench.send_signal(signal.SIGKILL)
        bench.wait()
    wait_until(lambda: not _groups_of(bench.pid), "its control groups, and so its processes, are gone", GONE_WITHIN_S)
    wait_until(lambda: not folder.exists(), "its files are gone", GONE_WITHIN_S)
    assert not any(str(folder) in file.read_text() for file in _loop_devices())


def _groups_of(pid: int) -> list[Path]:
    groups = (parent / f"{GROUP}{pid}" for parent in fault_parents())
    return [group for group in groups if group.exists()]


def _faults_in(group: Path) -> list[Path]:
    return [*group.glob(f"{PREFIX}*")]


def _temporary_folders_of(pid: int) -> list[Path]:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return [Path(os.fsdecode(one[7:])) for one in variables if one.startswith(b"TMPDIR=")]


def _loop_devices() -> list[Path]:
    return [*Path("/sys/block").glob("loop*/loop/backing_file")]
