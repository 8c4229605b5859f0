"""A host that goes to another controller obeys it alone, whatever the former one orders. 1,000 times: make bench."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.support.handovers import Handovers, hand_over
from tests.support.postgres import Postgres

pytestmark = [
    pytest.mark.injects,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a real injector"),
]


def test_a_controller_that_slept_through_a_hand_over_is_refused(postgres_server: Postgres, tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    found = asyncio.run(hand_over(postgres_server.make_database(), tmp_path, 20, 5, seed))
    assert found == Handovers(accepted=20, refused=20)
