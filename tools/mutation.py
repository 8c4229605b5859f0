"""How many small mistakes the tests notice: the mutation score of the modules that `mutation.toml` names.

    .venv/bin/python tools/mutation.py              all of them, written to docs/mutation.md
    .venv/bin/python tools/mutation.py journal      only modules of this name; nothing is written

What was found is kept in `.mutation.json` for as long as neither a module nor its tests change.

Each mutant (tools/mutants.py) is imported in a process of its own in the place of its module, and the module's tests
run until one fails. One that fails to be imported is no mutant: nobody could have shipped it. Exits with 1 where a
module by itself is below the goal, or a survivor has no reason.

mutmut is not used: of decorated functions it changes none, and of classes and modules no value (mutmut 3.8,
`mutation/file_mutation.py`), and those are where a policy's validators and limits are.
"""

import gc
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from mutants import mutants

ROOT = Path(__file__).parent.parent
SETTINGS = ROOT / "tools/mutation.toml"
DOCUMENT = ROOT / "docs/mutation.md"
KEPT = ROOT / ".mutation.json"
GOAL_PERCENT = 95.0
CPU_S_MAX = 30
"""What runs for longer than this by its own CPU time is taken for endless, and so noticed."""
WALL_S_MAX = 600
"""The same for what waits for ever; far more than a busy machine makes of the few seconds that these tests take."""
AT_ONCE = 2 * (os.cpu_count() or 1)
"""More than there are cores: they wait for disks as well."""
MEMORY_BYTES_MAX = 4 * 2**30
_SHARED = (
    "pytest", "pytest_timeout", "_hypothesis_pytestplugin", "hypothesis", "hypothesis.strategies", "pydantic", "yaml",
    "cryptography.hazmat.primitives.serialization", "brownout_protos.v1.fault_pb2", "brownout_protos.v1.injector_pb2",
    "pyroute2", "psutil", "sqlalchemy",
)  # fmt: skip
"""Slow to import, and none of them is ever mutated: imported once, before any process is made."""

_OPTIONS = (
    "-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", "-p", "_hypothesis_pytestplugin", "--noconftest",
    "-W", "ignore::pytest.PytestAssertRewriteWarning", "--hypothesis-seed=0",
)  # fmt: skip
"""Without the plugins and fixtures that take longer to import than these tests take to run."""


class Outcome(StrEnum):
    """What became of a mutant."""

    NOTICED = "noticed"
    SURVIVED = "survived"
    NO_MODULE = "no module"


_EXITS = {0: Outcome.SURVIVED, 1: Outcome.NOTICED, 2: Outcome.NO_MODULE}


@dataclass(frozen=True, slots=True)
class Module:
    """One module, its tests, and the survivors that have a reason."""

    path: Path
    tests: tuple[str, ...]
    reasons: dict[str, str]

    @property
    def name(self) -> str:
        """As it is imported."""
        return ".".join(self.path.relative_to(ROOT).with_suffix("").parts[2:])


@dataclass(frozen=True, slots=True)
class Result:
    """What became of every mutant of a module; `survivors` are those that no test noticed, by line and key."""

    module: Module
    noticed: int
    not_importable: int
    survivors: tuple[tuple[int, str], ...]

    @property
    def counted(self) -> int:
        """Those that could be imported."""
        return self.noticed + len(self.survivors)


def score_percent(results: Sequence[Result]) -> float:
    """Noticed ones of all that could be imported."""
    counted = sum(result.counted for result in results)
    return 100.0 * sum(result.noticed for result in results) / counted if counted else 100.0


def read_settings() -> list[Module]:
    """The modules of `mutation.toml`."""
    plain = tomllib.loads(SETTINGS.read_text())
    return [Module(ROOT / one["path"], tuple(one["tests"]), _reasons(one)) for one in plain["module"]]


def _reasons(plain: dict[str, Any]) -> dict[str, str]:
    return {kept["mutant"]: kept["reason"] for kept in plain.get("kept", ())}


# ---- one mutant ------------------------------------------------------------------------------------------------------


def outcomes_of(module: Module, sources: Sequence[str | None]) -> list[Outcome]:
    """Run a module's tests against other sources of it (None: its own), each in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="brownout-mutation-", ignore_cleanup_errors=True) as folder:
        return _outcomes_within(Path(folder), module, sources)


def _outcomes_within(folder: Path, module: Module, sources: Sequence[str | None]) -> list[Outcome]:
    found: dict[int, Outcome] = {}
    running: dict[int, tuple[int, float]] = {}
    waiting = deque(enumerate(sources))
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            number, source = waiting.popleft()
            if (pid := os.fork()) == 0:
                os._exit(_in_child(module, source, folder / str(number)))
            running[pid] = (number, time.monotonic() + WALL_S_MAX)
        for pid, (number, deadline_s) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                found[number] = Outcome.NOTICED if os.WIFSIGNALED(status) else _EXITS[os.WEXITSTATUS(status)]
                shutil.rmtree(folder / str(number), ignore_errors=True)
                del running[pid]
            elif time.monotonic() > deadline_s:
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [found[number] for number in range(len(sources))]


def _in_child(module: Module, source: str | None, folder: Path) -> int:
    """`folder` is for what its tests write: many that look for a folder at once find none, and fail by that."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S_MAX, CPU_S_MAX))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    try:
        if source is not None:
            _put_in_place(module, source)
        importlib.import_module(module.name)
    except BaseException:  # noqa: BLE001 - whatever a mutant does while it is imported
        return 2
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest  # noqa: PLC0415 - what it finds on being imported is shared already

    return 0 if pytest.main([*_OPTIONS, f"--basetemp={folder}", *module.tests]) == 0 else 1


def _put_in_place(module: Module, source: str) -> None:
    original = SourceFileLoader.get_code
    mutated = compile(source, str(module.path), "exec")

    def get_code(self: SourceFileLoader, fullname: str) -> CodeType | None:
        return mutated if fullname == module.name else original(self, fullname)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]


# ---- all of them -----------------------------------------------------------------------------------------------------


def run(module: Module) -> Result:
    """Every mutant of a module.

    Raises:
        SystemExit: its tests fail as it is, before the mutants or after them, so they tell nothing.
    """
    made = mutants(module.path.read_text())
    _control(module)
    outcomes = outcomes_of(module, [mutant.source for mutant in made])
    _control(module)
    counts = Counter(outcomes)
    survivors = (
        (one.line, one.key) for one, outcome in zip(made, outcomes, strict=True) if outcome is Outcome.SURVIVED
    )
    return Result(module, counts[Outcome.NOTICED], counts[Outcome.NO_MODULE], tuple(survivors))


def _control(module: Module) -> None:
    """Unchanged ones, as many side by side as mutants are: only where all survive does a failed test tell anything."""
    if set(outcomes_of(module, [None] * AT_ONCE)) != {Outcome.SURVIVED}:
        raise SystemExit(
            f"the tests of {module.name} fail without any mutant, or this machine is too busy for them; "
            f"next: pytest {' '.join(module.tests)}"
        )


def result_of(module: Module) -> Result:
    """What was found before, while neither the module nor its tests have changed; else what is found now."""
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    files = (module.path, *(ROOT / test for test in module.tests), Path(__file__).with_name("mutants.py"))
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
    found = kept.get(module.name, {})
    if found.get("digest") == digest:
        return Result(module, found["noticed"], found["not_importable"], tuple(map(tuple, found["survivors"])))
    result = run(module)
    kept[module.name] = {
        "digest": digest, "noticed": result.noticed, "not_importable": result.not_importable,
        "survivors": result.survivors,
    }  # fmt: skip
    KEPT.write_text(json.dumps(kept, indent=1))
    return result


def document(results: Sequence[Result]) -> str:
    """The page that tells what was found."""
    lines = [
        "# Mutation score",
        "",
        "<!-- written by `make bench-mutation`; edits are lost -->",
        "",
        "Each mutant is one small mistake in a module: a comparison turned round, a limit off by one, a `raise` left",
        "out, a decorator or an argument dropped ([tools/mutants.py](../tools/mutants.py)). It is noticed when a test",
        "fails. Those that cannot even be imported are left out of the score.",
        "",
        f"**{score_percent(results):.1f} %** of {sum(result.counted for result in results)} mutants are noticed;"
        f" the goal is {GOAL_PERCENT:g} % for every module by itself.",
        "",
        "| module | score | noticed | survived | not importable |",
        "|---|---:|---:|---:|---:|",
    ]
    for one in results:
        figures = f"{one.noticed} | {len(one.survivors)} | {one.not_importable}"
        lines.append(f"| `{one.module.name}` | {score_percent([one]):.1f} % | {figures} |")
    lines += ["", "## Survivors", ""]
    lines += [line for result in results for line in _survivors(result)] or ["None."]
    return "\n".join(lines).rstrip() + "\n"


def _survivors(result: Result) -> Iterator[str]:
    if not result.survivors:
        return
    yield from (f"### `{result.module.name}`", "", "| line | mutant | why it may live |", "|---:|---|---|")
    for line, key in result.survivors:
        shown = key.replace("|", "\\|")
        yield f"| {line} | `` {shown} `` | {result.module.reasons.get(key, '**no reason**')} |"
    yield ""


def main() -> int:
    """Run what was asked for; see the module's text."""
    for name in _SHARED:
        importlib.import_module(name)
    gc.freeze()  # else each child copies all of it when it collects its garbage: a fifth of its time
    wanted = sys.argv[1:]
    modules = [one for one in read_settings() if not wanted or one.path.stem in wanted]
    results = []
    all_good = True
    for module in modules:
        result = result_of(module)
        results.append(result)
        all_good = _told(result) and all_good
    if not wanted:
        DOCUMENT.write_text(document(results))
    return 0 if all_good else 1


def _told(result: Result) -> bool:
    """Print a result; whether it is good enough, every survivor has a reason, and every reason a survivor."""
    module = result.module
    print(f"{module.name}: {score_percent([result]):.1f} % of {result.counted}", flush=True)
    for line, key in result.survivors:
        print(f"  {module.path.name}:{line} {key}  ({module.reasons.get(key, 'no reason')})")
    survivors = {key for _, key in result.survivors}
    for key in module.reasons.keys() - survivors:
        print(f"  no survivor any more, take it out of {SETTINGS.name}: {key}")
    return survivors == module.reasons.keys() and score_percent([result]) >= GOAL_PERCENT


if __name__ == "__main__":
    sys.exit(main())
