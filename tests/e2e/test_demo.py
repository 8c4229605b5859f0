"""`brownout demo` as its users start it: the story, the exit code, and that nothing stays behind."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brownout_controller.demo.leftovers import FOLDERS, leftovers
from brownout_controller.demo.network import NOBODY

BROWNOUT = Path(sys.executable).parent / "brownout"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
pytestmark = [pytest.mark.alone, pytest.mark.root, pytest.mark.slow]


@contextmanager
def started(argv: list[str | Path]) -> Iterator["subprocess.Popen[str]"]:
    demo = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, bufsize=1
    )
    try:
        yield demo
    finally:
        demo.kill()
        demo.wait()
        assert demo.stdout is not None
        demo.stdout.close()


def read_until(demo: "subprocess.Popen[str]", pattern: str, within_s: float) -> str:
    """What the demo says up to the first line in which `pattern` is found."""
    assert demo.stdout is not None
    said, deadline = "", time.monotonic() + within_s
    while not re.search(pattern, said):
        ready, _, _ = select.select([demo.stdout], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"`{pattern}` not within {within_s} s of:\n{said}"
        said += os.read(demo.stdout.fileno(), 65536).decode()
    return said


def network_of(demo: "subprocess.Popen[str]") -> str:
    """The name of its staging network, while it is up."""
    records = {path.parent.name: json.loads(path.read_text()) for path in FOLDERS.glob("*/owner.json")}
    (name,) = (name for name, record in records.items() if record["process"][0] == demo.pid)
    return name


@needs_root
def test_the_demo_holds_shows_the_failover_writes_the_report_and_leaves_nothing(tmp_path: Path) -> None:
    before = leftovers()
    begun = time.monotonic()
    with started([BROWNOUT, "demo", "--report-dir", tmp_path]) as demo:
        said = read_until(demo, "ACTIVE", 60)
        name = network_of(demo)
        said += demo.communicate(timeout=120)[0]
    assert demo.returncode == 0, said
    assert time.monotonic() - begun < 120
    for words in ("HAProxy 2.", "nginx 1.", "HELD", "failed back", "Everything is removed"):
        assert words in said
    assert {path.suffix for path in tmp_path.iterdir()} == {".html", ".md", ".json"}
    assert leftovers(name, before) == []


@needs_root
@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGINT, "ACTIVE"), (signal.SIGTERM, "An injector and an agent")]
)
def test_a_demo_that_is_interrupted_undoes_and_removes_everything(tmp_path: Path, number: int, moment: str) -> None:
    before = leftovers()
    with started([BROWNOUT, "demo", "--report-dir", tmp_path]) as demo:
        said = read_until(demo, moment, 60)
        name = network_of(demo)
        demo.send_signal(number)
        said += demo.communicate(timeout=60)[0]
    assert demo.returncode == 128 + number, said
    assert ("undone" in said) is (moment == "ACTIVE")
    assert "Everything is removed" in said
    assert leftovers(name, before) == []


@needs_root
def test_what_a_killed_demo_leaves_is_removed_by_the_next_one(tmp_path: Path) -> None:
    before = leftovers()
    argv: list[str | Path] = [BROWNOUT, "demo", "--report-dir", tmp_path]
    with started(argv) as killed:
        read_until(killed, "ACTIVE", 60)
        name = network_of(killed)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        left = leftovers(name, before)
        assert any(line.startswith("namespace ") for line in left)
        assert any(line.startswith("process ") and "brownout-injector" in line for line in left)
        with started(argv) as following:
            said = read_until(following, "An injector and an agent", 60)
            assert leftovers(name, before) == []
            following.send_signal(signal.SIGTERM)
            following.communicate(timeout=60)
    assert f"killed before its end, had left: {name}" in said


@pytest.fixture
def everybodys_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_an_ordinary_user_sees_what_needs_no_privilege_and_what_was_left_out(everybodys_folder: Path) -> None:
    argv: list[str | Path] = [BROWNOUT, "demo", "--report-dir", everybodys_folder]
    if os.geteuid() == 0:
        if not all(path.stat().st_mode & 0o001 for path in BROWNOUT.parents):
            pytest.skip("this checkout lies in a folder that is closed to ordinary users")
        # The one capability lets it run this Python, which may lie in root's closed home folder.
        reads = "-all,+dac_read_search"
        drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        argv = [*drop, f"--inh-caps={reads}", f"--ambient-caps={reads}", f"--bounding-set={reads}", *argv]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Left out: the staging network" in said
    assert "since it takes root" in said
    assert list(everybodys_folder.glob("*.html"))
