"""Kill at every call that has an effect, before and after it, in the life of every fault; writes docs/crash-points.md.

    make bench-crash-points                                     as root; goes on where it stopped
    .venv/bin/python -m tests.bench.crash_points --minutes 10   one sitting; its outcomes are appended to --results
    .venv/bin/python -m tests.bench.crash_points --minutes 0    the document alone, from the outcomes so far

Exits 1 when something was on without a record or stayed, or when points are left.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path

from tests.support.crash_points import CALLER, Outcome, Point, Trace, faults, points_of, strike, trace, traced_host
from tests.support.crash_points_document import document
from tests.support.undo_sequences import Host

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/crash-points.md"
RESULTS = ROOT / ".crash-points.jsonl"
_TRIES = 3
"""Lives do not all have as many calls: a point that none of so many has is given up."""


@dataclass
class Sitting:
    """What is still to do, and what came of the rest."""

    results: Path
    ends_s: float
    left: list[Point]
    outcomes: dict[Point, Outcome]
    _tries: Counter[Point] = field(default_factory=Counter)

    def take(self, point: Point, outcome: Outcome) -> None:
        """Keep what came of a strike, at once."""
        self.outcomes[point] = outcome
        with self.results.open("a") as file:
            file.write(json.dumps([astuple(point), astuple(outcome)]) + "\n")
        word = outcome.trouble or ("clean" if outcome.is_reached else "not reached")
        print(f"{len(self.left):5} to go; {point}: {word}, {outcome.clean_after_s:.1f} s", file=sys.stderr, flush=True)

    async def work(self) -> None:
        """Strike after strike on one host after the other: one on which something went wrong is not used again."""
        while self._is_open():
            with (
                tempfile.TemporaryDirectory(prefix="bo-crash-") as folder,
                suppress(TimeoutError),
            ):  # it did not come up
                async with traced_host(Path(folder)) as (host, seen):
                    while self._is_open() and await self._strike(host, seen, self.left.pop(0)):
                        pass

    async def _strike(self, host: Host, seen: Trace, point: Point) -> bool:
        """Whether the host may be used again. A life that itself came to nothing is lived again, on another."""
        self._tries[point] += 1
        try:
            outcome = await strike(host, seen, point)
        except (AssertionError, TimeoutError, ConnectionError) as error:
            words = "".join(traceback.format_exception(error)[-3:])[-500:]
            outcome = Outcome(True, f"it did not come to its end: {words}")
            if self._tries[point] < _TRIES:
                print(f"once more: {point}: {outcome.trouble}", file=sys.stderr, flush=True)
                self.left.append(point)
                return False
        if not outcome.is_reached and self._tries[point] < _TRIES:
            self.left.append(point)
        else:
            self.take(point, outcome)
        return not outcome.trouble

    def _is_open(self) -> bool:
        return bool(self.left) and time.monotonic() < self.ends_s


async def _find() -> list[Point]:
    """The points of one life of each kind."""
    points = []
    with tempfile.TemporaryDirectory(prefix="bo-crash-") as folder:
        async with traced_host(Path(folder)) as (host, seen):
            for kind in faults(host):
                points += points_of(kind, await trace(host, seen, kind))
    return points


def read(results: Path) -> dict[Point, Outcome]:
    """The outcomes so far, the latest of each point."""
    if not results.exists():
        return {}
    lines = map(json.loads, results.read_text().splitlines())
    return {Point(*point): Outcome(*outcome) for point, outcome in lines}


async def _sit(options: argparse.Namespace, outcomes: dict[Point, Outcome]) -> Sitting:
    sitting = Sitting(options.results, time.monotonic() + options.minutes * 60, [], outcomes)
    sitting.left = sorted({*await _find()} - {*outcomes})
    random.Random(options.seed).shuffle(sitting.left)
    sitting.left.sort(key=lambda point: (point.nth > 1, point.whom == CALLER))  # one of each first
    await asyncio.gather(*(sitting.work() for _ in range(options.hosts)))
    return sitting


def main() -> None:
    """One sitting, and the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--hosts", type=int, default=3, help="that are struck at the same time")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the points")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # an end in good order leaves nothing on the machine
        signal.signal(number, signal.default_int_handler)
    sitting = asyncio.run(_sit(options, read(options.results)))
    DOCUMENT.write_text(document(sitting.outcomes, len(sitting.left)))
    raise SystemExit(bool(sitting.left) or any(outcome.trouble for outcome in sitting.outcomes.values()))


if __name__ == "__main__":
    main()
