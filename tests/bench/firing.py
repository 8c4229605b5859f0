"""Two controllers with four schedulers on one PostgreSQL, 20,000 due times and 200 kills: what was doubled or lost."""

import random
import tempfile
from pathlib import Path

from tests.support.firing_storm import storm
from tests.support.postgres import postgres

SCHEDULES, DUE_EACH, KILLS, SPEED = 20, 1_000, 200, 20


def main() -> None:
    seed = random.SystemRandom().getrandbits(32)
    with postgres() as server, tempfile.TemporaryDirectory() as folder:
        figures = storm(server, Path(folder), SCHEDULES, DUE_EACH, KILLS, SPEED, seed)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(figures.outcomes.items()))
    print(
        f"{figures.due} due times, {figures.kills} SIGKILLs in {figures.took_s:.0f} s, seed {figures.seed}: {outcomes}"
    )
    print(f"doubled {len(figures.doubled)}, lost {len(figures.lost)}, unaccounted {len(figures.unaccounted)}", end=", ")
    print(f"without a reason {figures.missed_without_reason}; handed on more than once {figures.delivered_again}")
    if figures.doubled or figures.lost or figures.unaccounted or figures.missed_without_reason:
        raise SystemExit(f"{figures}")


if __name__ == "__main__":
    main()
