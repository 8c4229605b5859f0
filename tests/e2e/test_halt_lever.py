"""`brownout halt` and `brownout resume`, typed beside the process that runs: on one machine, and in a small fleet."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.polling import wait_until
from tests.support.small_fleet import SmallFleet, small_fleet

BIN = Path(sys.executable).parent
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")
HALTED, REFUSED, NOT_CONFIRMED = 12, 4, 13
LOADED = """
version: 1
name: loaded
hypothesis: It is halted.
steady_state: {before: 100ms, after: 100ms}
faults:
  - {inject: memory.load, target: "role=app", with: {size: 16MiB}, for: %s}
"""
pytestmark = pytest.mark.injects


class Machine:
    """One machine with nothing set up, and a data directory of its own."""

    def __init__(self, folder: Path, scratch: str) -> None:
        self.folder = folder
        self.runs: list[subprocess.Popen[bytes]] = []
        self._environment = {**os.environ, "BROWNOUT_DATA_DIR": str(folder / "data"), "TMPDIR": scratch}
        for name, text in (("long", LOADED % "5m"), ("short", LOADED % "2s")):
            (folder / f"{name}.yaml").write_text(text)

    def run(self, *argv: object) -> "subprocess.CompletedProcess[str]":
        command = [str(BIN / "brownout"), *map(str, argv)]
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False, timeout=90
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def begin(self, name: str) -> "subprocess.Popen[bytes]":
        """A run in the background whose fault is on when this returns."""
        path = self.folder / "run.log"
        command = [BIN / "brownout", "run", f"{name}.yaml", "--label", "role=app", "--report", "json"]
        with path.open("wb") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=self._environment, stdout=log, stderr=log)
        self.runs.append(process)
        wait_until(lambda: "ACTIVE" in path.read_text() or process.poll() is not None, "the fault is on", 60)
        assert process.poll() is None, path.read_text()
        return process

    def log(self) -> str:
        return (self.folder / "run.log").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="bo-") as scratch:  # short: a socket's path has 107 bytes at most
        made = Machine(tmp_path, scratch)
        yield made
        for process in made.runs:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            process.wait(60)


def test_a_halt_ends_what_another_process_runs_and_nothing_begins_until_it_is_released(machine: Machine) -> None:
    process = machine.begin("long")
    halted = machine.run("halt", "--all", "--reason", "the shop is on fire")
    assert halted.returncode == 0, halted.stdout + halted.stderr + machine.log()
    assert halted.stdout.startswith("clean          "), "by the host's own word"
    assert process.wait(30) == HALTED, machine.log()
    assert "everything is halted: the shop is on fire" in machine.log()

    refused = machine.run("run", "short.yaml", "--label", "role=app")
    assert refused.returncode == REFUSED
    assert "everything is halted: the shop is on fire (local:" in refused.stderr
    assert "brownout resume" in refused.stderr
    assert machine.run("halt", "--all", "--reason", "again").stdout.endswith(
        "the shop is on fire (local:root); no run begins until: brownout resume\n"
    )

    assert machine.run("resume").stdout.startswith("released: the shop is on fire")
    assert machine.run("resume").stdout == "nothing was halted\n"
    done = machine.run("run", "short.yaml", "--label", "role=app")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_halt_of_one_run_waits_for_its_end_and_lets_others_begin(machine: Machine) -> None:
    process = machine.begin("long")
    halted = machine.run("halt", 1)
    assert halted.returncode == 0, halted.stderr
    assert halted.stdout == "run 1 is over, and everything of it is undone\n"
    assert process.wait(10) == HALTED
    assert machine.run("halt", 1).returncode == 0
    assert machine.run("run", "short.yaml", "--label", "role=app").returncode == 0


def test_a_run_whose_controller_was_killed_is_not_waited_for(machine: Machine) -> None:
    process = machine.begin("long")
    process.kill()
    process.wait()
    halted = machine.run("halt", "--all")
    assert halted.returncode == 0, halted.stdout + halted.stderr
    assert halted.stdout.startswith("halted ")


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ((), 2, "say which"),
        ((1, "--all"), 2, "say which"),
        ((7,), 2, "there is no run 7"),
    ],
)
def test_a_halt_that_names_nothing_is_a_usage_error(
    machine: Machine, argv: tuple[object, ...], code: int, says: str
) -> None:
    done = machine.run("halt", *argv)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def test_a_halt_without_a_database_names_what_works_without_one(machine: Machine) -> None:
    (machine.folder / "data").write_text("no folder")
    for argv in (("halt", "--all"), ("halt", "1")):
        done = machine.run(*argv)
        assert done.returncode == NOT_CONFIRMED
        assert "brownout-injector halt" in done.stderr


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[SmallFleet]:
    with small_fleet(tmp_path, "app-1", "app-2") as made:
        yield made


@pytest.mark.root
@root_only
@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft")
def test_hosts_that_cannot_be_reached_are_named_and_the_others_are_clean(fleet: SmallFleet) -> None:
    faults = "".join(
        f'  - {{inject: process.pause, target: "host={host}", with: {{command: {fleet.victim(host)}}}, for: 5m}}\n'
        for host in fleet.hosts
    )
    fleet.run(
        f"version: 1\nname: two\nhypothesis: Halted.\nsteady_state: {{before: 100ms, after: 100ms}}\nfaults:\n{faults}"
    )
    wait_until(lambda: fleet.log().count("ACTIVE") == 2, "both faults are on", 60)
    fleet.kill("agent-app-2")
    halting = subprocess.run(
        [BIN / "brownout", "halt", "--all", "--data-dir", fleet.folder / "data"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert halting.returncode == NOT_CONFIRMED, halting.stdout + halting.stderr
    assert "clean          app-1\n" in halting.stdout
    assert "NOT CONFIRMED  app-2: no controller reached it" in halting.stdout
    assert "brownout-injector halt" in halting.stderr
    assert not fleet.stands_still("app-1")
    assert not fleet.stands_still("app-2"), "by now its lease has run out"
    fleet.start_agent("app-2")  # told when it comes back, and the run can end
    assert fleet.ended() == HALTED, fleet.log()
