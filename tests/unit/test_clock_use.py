"""A step of the wall clock moves nothing that ends a fault: nothing that ends one reads it."""

import ast
from pathlib import Path

import brownout_agent
import pytest

ROOT = Path(brownout_agent.__file__).parent
WALL = {"time", "time_ns", "localtime", "gmtime", "strftime", "now", "utcnow", "today", "CLOCK_REALTIME", "CLOCK_TAI"}
"""Of the modules `time` and `datetime`."""
ENDS_FAULTS = sorted(
    path.relative_to(ROOT)
    for path in (
        *(ROOT / "faults").glob("*.py"),
        *(ROOT / "injector" / f"{name}.py" for name in (
            "deadlines", "holder", "journal", "lifecycle", "live", "measuring", "reaper", "supervisor", "threads",
            "trial", "undoing", "halting", "stop_file",
        )),
        *(ROOT / "kernel" / f"{name}.py" for name in ("death_timer", "limits", "nftables", "processes", "ptrace")),
    )
)  # fmt: skip


def wall_clock_uses(tree: ast.AST) -> list[str]:
    """`time.time`, `datetime.now` and their like; also `from time import time`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in {"time", "datetime", "date"} and node.attr in WALL:
                found.append(f"line {node.lineno}: {node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module in {"time", "datetime"}:
            found.append(f"line {node.lineno}: from {node.module} import")
    return found


@pytest.mark.parametrize("path", ENDS_FAULTS, ids=str)
def test_nothing_that_ends_a_fault_reads_the_wall_clock(path: Path) -> None:
    assert wall_clock_uses(ast.parse((ROOT / path).read_text())) == []


def test_the_search_finds_what_it_looks_for() -> None:
    code = "import time\nfrom datetime import datetime\ntime.time()\ntime.monotonic()\n"
    assert wall_clock_uses(ast.parse(code)) == ["line 2: from datetime import", "line 3: time.time"]
