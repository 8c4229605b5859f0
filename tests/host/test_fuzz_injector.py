"""Ten thousand hostile inputs at the injector's socket: it lives, applies nothing, and keeps nothing of them.

`make bench-fuzz` sends a million.
"""

import asyncio
import os
import random

import pytest

from tests.support.fuzz_injector import JOURNAL_IN_MEMORY_BYTES, storm_at

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
INPUTS = 10_000
KINDS_OF_INPUT = 6


@pytest.mark.slow
def test_ten_thousand_hostile_inputs_apply_nothing_and_leave_memory_and_descriptors_as_they_were() -> None:
    seed = int(os.environ.get("BROWNOUT_SEED", random.SystemRandom().getrandbits(32)))
    print(f"BROWNOUT_SEED={seed}")
    storm = asyncio.run(storm_at(INPUTS, seed))
    assert INPUTS <= storm.total <= INPUTS + 2, "what is sent last may have been a stop and two starts"
    assert len(storm.inputs) == KINDS_OF_INPUT, "every kind of input was among them"
    assert storm.answers["refused"] > INPUTS // 10, "orders were read to their end, and refused"
    assert "accepted" in storm.answers, "stops are obeyed all the same"
    assert storm.growth_bytes() < JOURNAL_IN_MEMORY_BYTES, storm.resident_bytes
    assert storm.descriptors[-1] <= storm.descriptors[0]
