"""Kill at every call that has an effect, before and after it, in every scene; writes docs/crash-points.md.

    make bench-crash-points                                     as root; goes on where it stopped
    .venv/bin/python -m tests.bench.crash_points --minutes 10   one sitting; its outcomes are appended to --results
    .venv/bin/python -m tests.bench.crash_points --minutes 0    the document alone, from the outcomes so far

Exits 1 when something was on without a record or stayed, or when points are left. What was bad is struck again in the
next sitting, and remains in the document.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path

from tests.support import janitor
from tests.support.alone import be_alone, is_beside_others
from tests.support.control_groups import leave_own_trees
from tests.support.crash_points import CALLER, Label, Point, Trace, points_of, traced_host
from tests.support.crash_points_document import Strikes, document
from tests.support.crash_scenes import SCENES, Outcome, Shown, look, strike, trace
from tests.support.undo_sequences import Host

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/crash-points.md"
RESULTS = ROOT / ".crash-points.jsonl"
_CAME_TO_NOTHING = (AssertionError, TimeoutError, ConnectionError)
"""What a scene raises on a machine that has too much else to do."""
_TRIES = 3
"""Lives do not all have as many calls: a point that none of so many has is given up."""


@dataclass
class Sitting:
    """What is still to do, and what came of the rest."""

    results: Path
    ends_s: float
    strikes: Strikes
    left: list[Point] = field(default_factory=list)
    unplayed: list[Point] = field(default_factory=list)
    """Each of _TRIES scenes came to nothing before the kill: for another sitting."""
    _known: set[tuple[str, Label]] = field(default_factory=set)
    _tries: Counter[Point] = field(default_factory=Counter)

    @property
    def done(self) -> set[Point]:
        return {point for point, outcome in dict(self.strikes).items() if not outcome.trouble}

    def meet(self, scene: str, labels: list[Label]) -> None:
        """Calls were made: those that no such scene had before are to be struck as well."""
        fresh = [label for label in dict.fromkeys(labels) if (scene, label) not in self._known]
        if fresh:
            self._known |= {(scene, label) for label in fresh}
            self.left += {*points_of(scene, fresh)} - self.done - {*self.left}

    def take(self, point: Point, outcome: Outcome) -> None:
        """Keep what came of a strike, at once."""
        self.strikes.append((point, outcome))
        with self.results.open("a") as file:
            file.write(json.dumps([astuple(point), astuple(outcome)]) + "\n")
        word = outcome.trouble or ("clean" if outcome.is_reached else "not reached")
        print(f"{len(self.left):5} to go; {point}: {word}, {outcome.clean_after_s:.1f} s", file=sys.stderr, flush=True)

    async def find(self, scenes: list[str]) -> None:
        """The points of each of these scenes are to be struck; several may do this at a time."""
        while scenes:
            scene = scenes.pop(0)
            labels = await _heard_in(scene)
            self._known |= {(scene, label) for label in labels}
            self.left += {*points_of(scene, labels)} - self.done

    async def work(self) -> None:
        """Strike after strike on one host after the other: one on which something went wrong is not used again."""
        while self._is_open():
            with (
                tempfile.TemporaryDirectory(prefix="bo-crash-") as folder,
                suppress(TimeoutError),
            ):  # it did not come up
                async with traced_host(Path(folder)) as (host, seen):
                    before = await look(host)
                    while self._is_open() and await self._strike(host, seen, self.left.pop(0), before):
                        pass

    async def _strike(self, host: Host, seen: Trace, point: Point, before: Shown) -> bool:
        """Whether the host may be used again. A scene that came to nothing before the kill is played on another."""
        self._tries[point] += 1
        try:
            outcome, labels = await strike(host, seen, point, before)
        except _CAME_TO_NOTHING as error:
            print(f"no kill: {point}: {type(error).__name__} {error} {host.words}", file=sys.stderr, flush=True)
            (self.left if self._tries[point] < _TRIES else self.unplayed).append(point)
            return False
        self.meet(point.scene, labels)
        if not outcome.is_reached and self._tries[point] < _TRIES:
            self.left.append(point)
        else:
            self.take(point, outcome)
        return not outcome.trouble

    def _is_open(self) -> bool:
        return bool(self.left) and time.monotonic() < self.ends_s


async def _heard_in(scene: str) -> list[Label]:
    """The calls of one such scene; what it raises when it has come to nothing _TRIES times."""
    tries = 1
    while True:
        try:
            with tempfile.TemporaryDirectory(prefix="bo-crash-") as folder:
                async with traced_host(Path(folder)) as (host, seen):
                    return await trace(host, seen, scene)
        except _CAME_TO_NOTHING as error:
            print(f"not played: {scene}: {type(error).__name__} {error}", file=sys.stderr, flush=True)
            if tries == _TRIES:
                raise
            tries += 1


def read(results: Path) -> Strikes:
    """Every strike so far, in their order."""
    if not results.exists():
        return []
    lines = map(json.loads, results.read_text().splitlines())
    return [(Point(*point), Outcome(*outcome)) for point, outcome in lines]


async def _sit(options: argparse.Namespace) -> Sitting:
    sitting = Sitting(options.results, time.monotonic() + options.minutes * 60, read(options.results))
    scenes = [*options.scenes]
    await asyncio.gather(*(sitting.find(scenes) for _ in range(options.hosts)))
    sitting.left.sort()
    random.Random(options.seed).shuffle(sitting.left)
    sitting.left.sort(key=lambda point: (point.nth > 1, point.whom == CALLER))  # one of each first
    await asyncio.gather(*(sitting.work() for _ in range(options.hosts)))
    sitting.left += sitting.unplayed
    return sitting


def main() -> None:
    """One sitting, and the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--hosts", type=int, default=6, help="that are struck at the same time")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the points")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=SCENES, help="all when left out")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # an end in good order writes what is known by then
        signal.signal(number, signal.default_int_handler)
    sitting = asyncio.run(_sit(options))
    options.document.write_text(document(sitting.strikes, sitting.left))
    raise SystemExit(bool(sitting.left) or any(outcome.trouble for outcome in dict(sitting.strikes).values()))


if __name__ == "__main__":
    if is_beside_others():
        janitor.employ()
    be_alone("tests.bench.crash_points")
    leave_own_trees()
    main()
