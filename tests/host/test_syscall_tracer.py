"""The instrument of the crash points: it hears calls that nobody has listed, and kills before or after them."""

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import syscall_tracer

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="knows system calls by their x86-64 numbers")

MKNODAT = 259
"""In neither of the tracer's tables, and what os.mkfifo is made of."""
LABEL = ["injector", f"call {MKNODAT}", ""]
_PROGRAM = "import os, sys; os.mkfifo(sys.argv[1]); os.mkdir(sys.argv[1] + '-after')"


def follow(folder: Path, when: str = "") -> tuple[int, list[list[object]], list[str]]:
    """Run the program followed; its exit code, what the tracer says, and which files there are then."""
    point = [*LABEL, 1, when, "injector"] if when else None
    (folder / "order").write_text(json.dumps({"scene": "a-scene", "point": point}))
    os.mkfifo(folder / "said")
    with os.fdopen(os.open(folder / "said", os.O_RDWR | os.O_NONBLOCK), "rb") as pipe:
        argv = [sys.executable, "-S", syscall_tracer.__file__, str(folder)]
        done = subprocess.run([*argv, sys.executable, "-S", "-c", _PROGRAM, str(folder / "made")], check=False)
        said = [json.loads(line) for line in pipe.read().splitlines()]
    return done.returncode, said, sorted(path.name for path in folder.glob("made*"))


def test_a_call_that_nobody_listed_is_heard(tmp_path: Path) -> None:
    assert MKNODAT not in syscall_tracer.EFFECTS
    code, said, made = follow(tmp_path)
    assert code == 0
    assert ["a-scene", *LABEL] in said
    assert ["a-scene", "injector", "mkdir", "made-after"] in said
    assert made == ["made", "made-after"]


@pytest.mark.parametrize(("when", "made"), [("before", []), ("after", ["made"])])
def test_death_comes_before_the_call_or_after_it_and_never_further(tmp_path: Path, when: str, made: list[str]) -> None:
    code, said, found = follow(tmp_path, when)
    assert code == -signal.SIGKILL
    assert [words[1] for words in said][-1] == "killed"
    assert found == made
