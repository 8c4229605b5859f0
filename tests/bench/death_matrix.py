"""The death matrix: every fault x what may die x when it strikes, many times over; writes docs/death-matrix.md.

    make bench-death-matrix                                     as root; goes on where it stopped
    .venv/bin/python -m tests.bench.death_matrix --minutes 10   one sitting; its outcomes are appended to --results
    .venv/bin/python -m tests.bench.death_matrix --minutes 0    the document alone, from the outcomes so far

Hosts are namespaces and user-mode Linux machines, several at a time, for most of a trial is waiting.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support import deaths_strikes, uml_strikes
from tests.support.alone import be_alone
from tests.support.deaths import BY_NAME, COLUMNS, FAULT_S, Column, FaultCase, Outcome, Phase
from tests.support.deaths_controller import ControllerLink
from tests.support.deaths_document import document
from tests.support.deaths_host import CONTROLLER_ADDRESS, Host, in_memory, make_bridge, run
from tests.support.deaths_strikes import SHORT_S, Watch, mend
from tests.support.deaths_trial import AnyHost, Scene, Turns, trial
from tests.support.uml import MODULES, UmlHost, make_share

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/death-matrix.md"
RESULTS = ROOT / ".death-matrix.jsonl"
CONTROLLER_PORT = 7700
_TURNS = 3
_CONTROLLER = {"controller KILL"}
_CONTROLLER_HOSTS = 2
"""Hosts with a controller of their own, which is killed."""


@dataclass(frozen=True)
class Chosen:
    """A trial to be made."""

    column: Column
    phase: Phase
    faults: tuple[FaultCase, ...]
    seed: int

    def scene(self, host: AnyHost, duration_s: float) -> Scene:
        """Its beginning."""
        return Scene(
            host, self.faults, self.column, self.phase, random.Random(self.seed), self.column.bound_s, duration_s
        )


class Matrix:
    """Which cells were tried how often, and what came of it."""

    def __init__(self, results: Path, repeats: dict[str, int], seed: int) -> None:
        """`repeats` says for each column how often each of its phases is to be tried."""
        self._results = results
        self._repeats = repeats
        self._random = random.Random(seed)
        self._commit = _commit()
        self.outcomes = read(results)
        self._tried = Counter({(column, phase): 0 for column in repeats for phase in Phase})
        censored = {_trial_of(outcome) for outcome in self.outcomes if outcome.censored}
        for column, phase, _ in {_trial_of(outcome) for outcome in self.outcomes} - censored:
            if column in repeats:
                self._tried[column, phase] += 1

    def next_for(self, columns: set[str]) -> Chosen | None:
        """The column and phase that was tried least; None when all are done.

        Each phase of a column begins with another group of faults, so that its first trials have had most of them.
        """
        open_ = [key for key, count in self._tried.items() if key[0] in columns and count < self._repeats[key[0]]]
        if not open_:
            return None
        fewest = min(self._tried[key] for key in open_)
        name, phase = self._random.choice([key for key in open_ if self._tried[key] == fewest])
        self._tried[name, phase] += 1
        faults = BY_NAME[name].group(fewest + list(Phase).index(phase))
        return Chosen(BY_NAME[name], phase, faults, self._random.getrandbits(48))

    def give_back(self, column: str, phase: Phase) -> None:
        """What was begun told nothing: to be tried again."""
        self._tried[column, phase] -= 1

    def take(self, outcomes: list[Outcome], logs: Callable[[], str]) -> bool:
        """Keep what came of a trial, at once; whether all of it is good."""
        outcomes = [replace(outcome, commit=self._commit) for outcome in outcomes]
        with self._results.open("a") as file:
            file.writelines(outcome.as_line() for outcome in outcomes)
        self.outcomes += outcomes
        if any(outcome.censored for outcome in outcomes):  # it told nothing, or not all: to be tried again
            self.give_back(outcomes[0].column, outcomes[0].phase)
        bad = [outcome for outcome in outcomes if outcome.judgement != "good"]
        first = outcomes[0]
        told = [(one.fault, one.gone_after_s) for one in bad]
        word = f"{bad[0].judgement} {told} {bad[0].censored or bad[0].leftovers} {bad[0].said!r}" if bad else "good"
        print(f"{len(self.outcomes):6} {first.column}, {first.phase}, seed {first.seed}: {word}", flush=True)
        if bad:
            print(logs(), file=sys.stderr, flush=True)
        return not bad


def _trial_of(outcome: Outcome) -> tuple[str, Phase, int]:
    return outcome.column, outcome.phase, outcome.seed


def read(results: Path) -> list[Outcome]:
    """The outcomes so far."""
    return [Outcome.from_line(line) for line in results.read_text().splitlines()] if results.exists() else []


@dataclass
class Sitting:
    """What the hosts of one sitting share."""

    matrix: Matrix
    ends_s: float
    folder: Path
    watch: Watch = field(default_factory=Watch)
    turns: Turns = field(default_factory=lambda: Turns(_TURNS))
    failed: list[Exception] = field(default_factory=list)
    """By which hosts ended before their time."""

    def choose(self, columns: set[str]) -> Chosen | None:
        """The next trial of a host that can stand for these columns; None when it is time to end."""
        return None if time.monotonic() > self.ends_s else self.matrix.next_for(columns)

    @contextlib.contextmanager
    def trying(self, name: str, chosen: Chosen) -> Iterator[None]:
        """While a host is tried: if that fails otherwise than by an outcome, another host takes the trial up."""
        try:
            yield
        except Exception:
            self.matrix.give_back(chosen.column.name, chosen.phase)
            print(f"{name} is given up, on {chosen.column.name}, {chosen.phase}", file=sys.stderr, flush=True)
            raise

    async def living(self, life: Awaitable[None]) -> None:
        """A host whose life ends by an error costs its one trial. The sitting fails in the end, not at once."""
        try:
            await life
        except Exception as error:  # noqa: BLE001 - printed at once; the sitting fails by it in the end
            traceback.print_exc()
            self.failed.append(error)

    async def namespace(self, number: int, controller: ControllerLink, columns: set[str]) -> None:
        """A host's life, from trial to trial."""
        host = Host(number, self.folder / "hosts", controller)
        await host.build()
        try:
            while chosen := self.choose(columns):
                is_short = chosen.column.name == "none" and chosen.phase is Phase.HOLD
                scene = chosen.scene(host, SHORT_S if is_short else FAULT_S)
                strike = deaths_strikes.strikes(host)[chosen.column.name]
                with self.trying(host.name, chosen):
                    outcomes = await trial(scene, strike, chosen.seed, self.watch.on(scene, host), self.turns)
                was_good = self.matrix.take(outcomes, host.logs)
                await mend(host, chosen.column, was_good=was_good)
        finally:
            await host.dismantle()

    async def machine(self, number: int, share: Path, controller: ControllerLink, columns: set[str]) -> None:
        """The same for a host with a kernel of its own."""
        host = UmlHost(number, self.folder, share, controller)
        await host.build()
        try:
            while chosen := self.choose(columns):
                column = chosen.column.name
                is_short = column != "power cut" and chosen.phase is not Phase.UNDO
                scene = chosen.scene(host, uml_strikes.CLOCK_FAULT_S if is_short else FAULT_S)
                strike = uml_strikes.strikes(host)[column]
                with self.trying(host.name, chosen):
                    outcomes = await trial(scene, strike, chosen.seed, uml_strikes.watched(scene, host), self.turns)
                if not self.matrix.take(outcomes, host.logs):
                    await host.power_cut()
                elif column in uml_strikes.STEPS_S:
                    host.step_clock(-uml_strikes.STEPS_S[column])
        finally:
            await host.dismantle()


async def sit(sitting: Sitting, columns: list[Column], hosts: int, machines: int) -> None:
    """Try cells until the time is up or all are done."""
    await make_bridge()
    in_memory(sitting.folder / "hosts")
    on_uml = {column.name for column in columns if column.on_uml}
    rest = {column.name for column in columns} - on_uml
    shared = _controller(sitting.folder, 0)
    own = [_controller(sitting.folder, number) for number in range(1, _CONTROLLER_HOSTS + 1)]
    lives = [(shared, rest - _CONTROLLER)] * (hosts if rest - _CONTROLLER else 0)
    lives += [(controller, _CONTROLLER) for controller in own if rest & _CONTROLLER]
    share = await asyncio.to_thread(make_share, sitting.folder) if on_uml else sitting.folder
    try:
        for controller in {id(one): one for one, _ in lives}.values() if lives else ():
            await controller.start()
        if on_uml and not lives:
            await shared.start()
        async with asyncio.TaskGroup() as watching:  # a watch that fails ends the sitting
            watch = watching.create_task(sitting.watch.run())
            async with asyncio.TaskGroup() as group:
                for number, (controller, mine) in enumerate(lives, 1):
                    group.create_task(sitting.living(sitting.namespace(number, controller, mine)))
                for number in range(1, machines + 1 if on_uml else 1):
                    group.create_task(sitting.living(sitting.machine(number, share, shared, on_uml)))
            watch.cancel()
    finally:
        for controller in (shared, *own):
            await controller.kill()
        await run("umount", sitting.folder / "hosts")


def _controller(folder: Path, number: int) -> ControllerLink:
    own = folder / f"controller-{number}"
    own.mkdir()
    return ControllerLink(own, f"{CONTROLLER_ADDRESS}:{CONTROLLER_PORT + 10 * number}")


def _commit() -> str:
    argv = ["git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"]
    found = subprocess.run(argv, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _machine() -> str:
    uml = sorted(path.name for path in MODULES.glob("*")) if MODULES.exists() else []
    return f"Linux {platform.release()} with {os.cpu_count()} cores; user-mode Linux {', '.join(uml) or 'not here'}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40, help="of this sitting")
    parser.add_argument("--repeats", type=int, default=39, help="of each column and phase, earlier sittings counted")
    parser.add_argument("--machine-repeats", type=int, default=8, help="the same for columns of user-mode Linux hosts")
    parser.add_argument("--hosts", type=int, default=12, help="namespaces at a time")
    parser.add_argument("--machines", type=int, default=2, help="user-mode Linux hosts at a time")
    parser.add_argument("--columns", nargs="*", default=[column.name for column in COLUMNS], choices=list(BY_NAME))
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines, appended to")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    return parser.parse_args()


def main() -> None:
    """One sitting, then the document."""
    options = _options()
    columns = [BY_NAME[name] for name in options.columns]
    repeats = {one.name: options.machine_repeats if one.on_uml else options.repeats for one in columns}
    matrix = Matrix(options.results, repeats, options.seed)
    print(f"seed {options.seed}, {os.cpu_count()} cores", flush=True)
    failed = 0
    if options.minutes:
        with tempfile.TemporaryDirectory(prefix="deaths-") as folder:
            ends_s = time.monotonic() + options.minutes * 60
            sitting = Sitting(matrix, ends_s, Path(folder))
            asyncio.run(sit(sitting, columns, options.hosts, options.machines))
            failed = len(sitting.failed)
    options.document.write_text(document(matrix.outcomes, _machine(), "make bench-death-matrix"), encoding="utf-8")
    judged = Counter(outcome.judgement for outcome in matrix.outcomes)
    print(dict(judged), f"{failed} hosts given up", flush=True)
    raise SystemExit(1 if judged["late"] or judged["left"] or failed else 0)


if __name__ == "__main__":
    be_alone("tests.bench.death_matrix")
    main()
