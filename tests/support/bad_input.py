"""The catalogue of bad input: each case with its outcome and the tests that prove it, and the page that shows them."""

import ast
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CATALOGUE = ROOT / "tests/bad_input.toml"
DOCUMENT = ROOT / "docs/bad-input.md"


@dataclass(frozen=True)
class Case:
    """One thing that may be given, what comes of it, and by which tests that is known (`file::function`)."""

    number: int
    group: str
    given: str
    outcome: str
    tests: tuple[str, ...]


def read_cases() -> list[Case]:
    """The catalogue, in its order."""
    plain = tomllib.loads(CATALOGUE.read_text())["case"]
    return [Case(**{**one, "tests": tuple(one["tests"])}) for one in plain]


def is_a_test(name: str) -> bool:
    """Whether such a function stands in such a file."""
    path, _, function = name.partition("::")
    return function.startswith("test_") and function in _functions(ROOT / path)


@cache
def _functions(path: Path) -> frozenset[str]:
    found = ast.parse(path.read_text()).body if path.is_file() else ()
    return frozenset(one.name for one in found if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))


def document(cases: Sequence[Case], results: Mapping[str, str]) -> str:
    """The page; `results` has a word for each test that was run."""
    tests = dict.fromkeys(name for case in cases for name in case.tests)
    lines = [
        "# Bad input",
        "",
        "What may be given, what comes of it, and the tests that prove it. Written by `make bench-bad-input`, which",
        f"ran them: {len(cases)} cases, {len(tests)} tests, {sum(results[one] == 'passed' for one in tests)} passed.",
        "",
        "Everywhere: what is wrong is said in one line with its place and what is allowed, without a traceback, with",
        "no effect in part, and the process lives on.",
    ]
    for group in dict.fromkeys(case.group for case in cases):
        lines += ["", f"## {group}", "", "| # | given | outcome | proved by |", "|---:|---|---|---|"]
        lines += [_row(case, results) for case in cases if case.group == group]
    return "\n".join(lines) + "\n"


def _row(case: Case, results: Mapping[str, str]) -> str:
    proofs = "<br>".join(f"`{name.removeprefix('tests/')}` {_word(results[name])}".strip() for name in case.tests)
    return f"| {case.number} | {_cell(case.given)} | {_cell(case.outcome)} | {proofs} |"


def _word(result: str) -> str:
    return "" if result == "passed" else f"**{result}**"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
