"""1,000 hand-overs of a host from a stopped controller to another: whose orders the injector obeyed."""

import asyncio
import random
import tempfile
from pathlib import Path

from tests.support.handovers import Handovers, hand_over
from tests.support.postgres import postgres

TIMES, RESTART_EVERY = 1_000, 50


def main() -> None:
    seed = random.SystemRandom().getrandbits(32)
    with postgres() as server, tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(hand_over(server.make_database(), Path(folder), TIMES, RESTART_EVERY, seed))
    print(f"{TIMES} hand-overs, seed {seed}: {found.accepted} orders of owners accepted", end=", ")
    print(f"{found.refused} of former owners refused, {len(found.wrong)} otherwise")
    if found != Handovers(TIMES, TIMES):
        raise SystemExit(f"{found}")


if __name__ == "__main__":
    main()
