"""A controller killed at 100 random instants of runs: how soon the next one ends each, and whether a row is lost."""

import asyncio
import random
import tempfile
from pathlib import Path

from tests.support.controller_deaths import die

DEATHS = 100


def main() -> None:
    seed = random.SystemRandom().getrandbits(32)
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(die(Path(folder), DEATHS, seed))
    endings = ", ".join(f"{count} {how}" for how, count in sorted(found.endings.items()))
    took = sorted(found.closed_after_s)
    print(f"{DEATHS} kills, seed {seed}: {endings} (verdict and exit code)")
    if took:
        print(
            f"{len(took)} left open; ended {took[len(took) // 2]:.1f} s (median), {took[-1]:.1f} s (most) after restart"
        )
    print(f"not ended {len(found.unclosed)}, rows lost {len(found.lost_rows)}", end=", ")
    print(f"without record {len(found.without_record)}, faults still on {len(found.holders_left)}")
    if found.unclosed or found.lost_rows or found.without_record or found.holders_left:
        raise SystemExit(f"{found}")


if __name__ == "__main__":
    main()
