"""A controller that is killed in mid-run leaves nothing behind: the next one ends the run, and no row is lost."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.support.controller_deaths import CLOSED_WITHIN_S, die

pytestmark = [
    pytest.mark.injects,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a real injector"),
]


def test_every_run_of_a_killed_controller_is_ended_by_the_next_one(tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    found = asyncio.run(die(tmp_path, 2, seed))
    log = (tmp_path / "controller.log").read_text()
    assert (found.unclosed, found.lost_rows, found.holders_left, found.without_record) == ([], [], [], []), log
    assert sum(found.endings.values()) == 2
    assert all(took_s < CLOSED_WITHIN_S for took_s in found.closed_after_s)
