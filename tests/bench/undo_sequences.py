"""Many random sequences of faults, each undone in a random way: is the host as it was, to the byte?

.venv/bin/python -m tests.bench.undo_sequences [SEQUENCES [SEED]]        as root; exits 1 at the first that is not
"""

import asyncio
import collections
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.support.undo_sequences import play, undo_host

SEQUENCES = 200


async def _play_all(sequences: int, seed: int) -> collections.Counter[str]:
    rng = random.Random(seed)
    ends: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="bo-undo-") as folder:
        async with undo_host(Path(folder)) as host:
            for number in range(sequences):
                told = await play(host, rng)
                print(f"{number + 1} of {sequences}: {told}", file=sys.stderr)
                ends[told.partition(" ended by ")[2]] += 1
    return ends


def main() -> None:
    """Play, and say what was played."""
    sequences = int(sys.argv[1]) if len(sys.argv) > 1 else SEQUENCES
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", file=sys.stderr)
    begun_s = time.monotonic()
    ends = asyncio.run(_play_all(sequences, seed))
    for end, count in sorted(ends.items()):
        print(f"{count:5}  {end}")
    print(
        f"{sequences} sequences, seed {seed}: equal before and after in all of them; {time.monotonic() - begun_s:.0f} s"
    )


if __name__ == "__main__":
    main()
