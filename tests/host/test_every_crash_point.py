"""At calls that change something, chosen by a seed from the lives of every fault, the injector is killed.

`make bench-crash-points` kills at all of them and writes docs/crash-points.md.
"""

import asyncio
import os
import platform
import random
from pathlib import Path

import pytest

from tests.support.crash_points import points_of, strike, trace, traced_host

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="traces and kills programs of root"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the numbers of system calls on x86-64 only"),
]
KINDS = (
    "cpu.load", "disk.fill", "disk.io", "memory.load", "network.blackhole", "network.loss", "process.kill",
    "process.pause",
)  # fmt: skip
STRIKES = 2
TRIES = 5


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_killed_at_any_call_that_changes_something_is_recorded_and_undone(tmp_path: Path, kind: str) -> None:
    seed = int(os.environ.get("BROWNOUT_SEED", random.SystemRandom().getrandbits(32)))
    print(f"BROWNOUT_SEED={seed}")

    async def told() -> None:
        async with traced_host(tmp_path) as (host, seen):
            labels = await trace(host, seen, kind)
            points = points_of(kind, labels)
            random.Random(seed).shuffle(points)
            reached = 0
            for point in points[:TRIES]:
                outcome = await strike(host, seen, point)
                assert not outcome.trouble, f"{point}: {outcome.trouble}"
                reached += outcome.is_reached
                if reached == STRIKES:
                    break
            assert reached, f"none of {[*map(str, points[:TRIES])]} was there again"

    asyncio.run(told())
