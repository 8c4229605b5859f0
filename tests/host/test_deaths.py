"""A fault always ends: each column and phase of the death matrix once, every fault under every column, at a random
instant whose seed is printed.

All cells, many times over, with clocks stepped both ways: `make bench-death-matrix`.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench.death_matrix import read
from tests.support.deaths import COLUMNS, Column, Outcome, Phase

ROOT = Path(__file__).parents[2]
_MINUTES = 6
_HOSTS = 6
"""Few, since each joins first, and has five trials."""
_ONCE = [column for column in COLUMNS if not column.on_uml] + [
    column for column in COLUMNS if column.name in {"power cut", "clock -10 y"} and shutil.which("linux.uml")
]
pytestmark = [
    pytest.mark.alone,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(_MINUTES * 60 + 90),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, mounts, other users"),
]


@dataclass(frozen=True)
class Sitting:
    """What the bench said of itself."""

    code: int
    log: str
    outcomes: list[Outcome]


@pytest.fixture(scope="module")
def sitting(tmp_path_factory: pytest.TempPathFactory) -> Sitting:
    """All trials, many side by side: they mostly wait."""
    folder = tmp_path_factory.mktemp("deaths")
    results = folder / "results"
    argv = [sys.executable, "-m", "tests.bench.death_matrix", "--minutes", str(_MINUTES)]
    argv += ["--repeats", "1", "--machine-repeats", "1", "--hosts", str(_HOSTS)]
    argv += ["--results", str(results), "--document", str(folder / "matrix.md")]
    with (folder / "log").open("wb") as log:
        argv += ["--columns", *(column.name for column in _ONCE)]
        done = subprocess.run(argv, check=False, cwd=ROOT, stdout=log, stderr=log)
    said = (folder / "log").read_text(errors="replace")
    print(said)
    return Sitting(done.returncode, said, read(results))


@pytest.fixture(scope="module")
def outcomes(sitting: Sitting) -> list[Outcome]:
    return sitting.outcomes


def test_no_host_failed_otherwise_than_by_an_outcome(sitting: Sitting) -> None:
    """Its trial is taken up by another one, so its cells do not tell of it."""
    assert sitting.code == 0, sitting.log


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("column", _ONCE, ids=lambda column: column.name)
def test_every_fault_of_a_host_is_gone_in_time_and_leaves_nothing(
    outcomes: list[Outcome], column: Column, phase: Phase
) -> None:
    mine = [outcome for outcome in outcomes if (outcome.column, outcome.phase) == (column.name, phase)]
    told = [outcome for outcome in mine if outcome.judgement != "censored"]  # what told nothing was tried again
    bad = [outcome.as_line() for outcome in told if outcome.judgement != "good"]
    assert not bad, "".join(bad)
    silent = {outcome.censored for outcome in mine if outcome.censored}
    group = column.group(list(Phase).index(phase))
    assert {outcome.fault for outcome in told} == {fault.kind for fault in group}, silent


@pytest.mark.parametrize("column", _ONCE, ids=lambda column: column.name)
def test_every_fault_is_tried_under_every_column(column: Column) -> None:
    groups = [column.group(turn) for turn in range(len(Phase))]
    assert {fault for group in groups for fault in group} == set(column.faults)
