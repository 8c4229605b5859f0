"""Undo is idempotent and touches only ours: random sequences of faults leave the kernel as it was, to the byte.

`python -m tests.bench.undo_sequences 200` plays many more.
"""

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.support.undo_sequences import play, undo_host

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
SEQUENCES = 30


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_thirty_random_sequences_leave_the_host_as_it_was_to_the_byte(tmp_path: Path) -> None:
    seed = int(os.environ.get("BROWNOUT_SEED", random.SystemRandom().getrandbits(32)))
    print(f"BROWNOUT_SEED={seed}")

    async def told() -> None:
        rng = random.Random(seed)
        async with undo_host(tmp_path) as host:
            for _ in range(SEQUENCES):
                await play(host, rng)

    asyncio.run(told())
