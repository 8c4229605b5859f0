"""Controllers that fire are killed again and again, and nothing is fired twice or lost. The whole storm: make bench."""

import random
from pathlib import Path

from tests.support.firing_storm import storm
from tests.support.postgres import Postgres


def test_killed_controllers_fire_nothing_twice_and_lose_nothing(postgres_server: Postgres, tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    figures = storm(postgres_server, tmp_path, schedules=4, due_each=75, kills=6, speed=50, seed=seed)
    assert (figures.doubled, figures.lost, figures.unaccounted, figures.missed_without_reason) == ([], [], [], 0)
    assert sum(figures.outcomes.values()) == figures.due == 300
    assert figures.outcomes["fired"] > 0
    assert figures.outcomes["missed"] > 0, "nobody was awake for longer than what may be late"
