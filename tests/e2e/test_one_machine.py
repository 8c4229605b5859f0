"""`brownout run FILE` on one machine with nothing set up: verdicts, exit codes, and what stays behind (nothing)."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services import app_server, free_port

BIN = Path(sys.executable).parent
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network faults")


class Sandbox:
    """A folder in which `brownout` is run, with a data directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "BROWNOUT_DATA_DIR": str(folder / "data"), "COLUMNS": "120"}

    def write(self, text: str, name: str = "experiment.yaml") -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def start(self, *argv: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(BIN / "brownout"), *map(str, argv)],
            cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *argv: object) -> "subprocess.CompletedProcess[str]":
        with self.start(*argv) as process:
            out, err = process.communicate(timeout=120)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def record(self, number: int = 1) -> dict[str, object]:
        document: dict[str, object] = json.loads(self.run("runs", "show", number, "-o", "json").stdout)
        return document


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    before = _ours()
    yield Sandbox(tmp_path)
    assert _ours() == before


@pytest.fixture
def web() -> Iterator[str]:
    port = free_port()
    with app_server("here", port):
        yield f"http://127.0.0.1:{port}/"


def _ours() -> set[str]:
    """Brownout's processes and temporary folders on this machine."""
    found = {str(path) for path in Path("/tmp").glob("brownout-[a-z0-9_]*") if (path / "injector.sock").exists()}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if entry.name.isdigit() and b"brownout_agent.injector" in line and b"--embedded" in line:
                found.add(entry.name)
    return found


def experiment(web: str, fault: str, expect: str = 'web: ["availability >= 99%"]', guards: str = "[]") -> str:
    return f"""
version: 1
name: one-machine
hypothesis: The service answers.
steady_state: {{before: 1s, after: 1s}}
probes: {{web: {{http: "{web}", every: 50ms}}}}
expect: {{{expect}}}
guards: {guards}
faults:
  - {fault}
"""


PAUSE = '{inject: process.pause, target: "role=app", with: {pid: %d}, for: 2s}'
SPIN = '{inject: cpu.load, target: "role=app", with: {percent: 1, of: own, cores: "0"}, for: %s}'


def test_a_run_that_held_exits_0_and_leaves_a_report_and_a_record(sandbox: Sandbox, web: str) -> None:
    path = sandbox.write(experiment(web, SPIN % "3s"))
    done = sandbox.run("run", path, "--label", "role=app", "--report", "html,md,json", "--report-dir", "reports")

    assert (done.returncode, "HELD" in done.stdout) == (0, True), done.stdout + done.stderr
    assert sorted(report.name for report in (sandbox.folder / "reports").iterdir()) == [
        "brownout-1.html", "brownout-1.json", "brownout-1.md",
    ]  # fmt: skip
    record = sandbox.record()
    assert record["verdict"] == "held"
    assert {"anatomy", "effects", "residue"} <= record.keys()
    assert "one-machine" in sandbox.run("runs", "list").stdout
    assert "<svg" in sandbox.run("report", 1, "-o", "html").stdout


def test_a_missed_expectation_deviates_and_exits_10(sandbox: Sandbox, web: str) -> None:
    with _python_server() as (pid, url):
        text = experiment(url, PAUSE % pid, 'web: ["outage < 500ms"]').replace(
            f'http: "{url}"', f'http: {{url: "{url}", timeout: 300ms}}'
        )
        done = sandbox.run("run", sandbox.write(text), "--label", "role=app")
    assert done.returncode == 10, done.stdout + done.stderr
    assert "DEVIATED" in done.stdout


def test_a_system_that_is_not_steady_is_left_alone(sandbox: Sandbox) -> None:
    text = experiment(f"http://127.0.0.1:{free_port()}/", SPIN % "3s")
    done = sandbox.run("run", sandbox.write(text), "--label", "role=app")
    assert done.returncode == 4
    assert "error[not-steady]" in done.stderr
    assert "fails now: refused" in done.stderr


def test_a_target_that_matches_nobody_names_the_label_to_give(sandbox: Sandbox, web: str) -> None:
    done = sandbox.run("run", sandbox.write(experiment(web, SPIN % "3s")))
    assert done.returncode == 4
    assert "matches 0 hosts, so nothing was injected" in done.stderr.replace("\n", " ")
    assert "--label role=app" in done.stderr


@root_only
@pytest.mark.root
def test_a_blackhole_of_a_peer_that_nobody_talks_to_proves_nothing(sandbox: Sandbox, web: str) -> None:
    fault = '{inject: network.blackhole, target: "role=app", with: {to: 127.0.0.77, port: 9}, for: 2s}'
    done = sandbox.run("run", sandbox.write(experiment(web, fault)), "--label", "role=app")
    assert done.returncode == 14, done.stdout + done.stderr
    assert "INCONCLUSIVE" in done.stdout
    assert "nobody talked to 127.0.0.77" in " ".join(done.stdout.split())


def test_a_fault_that_the_host_refuses_proves_nothing(sandbox: Sandbox, web: str) -> None:
    fault = '{inject: process.pause, target: "role=app", with: {process: no-such-program}, for: 2s}'
    done = sandbox.run("run", sandbox.write(experiment(web, fault)), "--label", "role=app")
    assert done.returncode == 14, done.stdout + done.stderr
    assert "the host refused" in " ".join(done.stdout.split())


def test_a_guard_aborts_the_run_and_undoes_the_fault(sandbox: Sandbox) -> None:
    with _python_server() as (pid, url):
        text = experiment(
            url, PAUSE.replace("2s", "60s") % pid,
            guards='[{probe: web, abort_if: "outage > 700ms"}]',
        ).replace(f'http: "{url}"', f'http: {{url: "{url}", timeout: 300ms}}')  # fmt: skip
        done = sandbox.run("run", sandbox.write(text), "--label", "role=app")
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"S", "R"}
    assert done.returncode == 11, done.stdout + done.stderr
    assert "ABORTED" in done.stdout
    assert "1 of 1 fault undone and verified" in done.stdout


def test_ctrl_c_halts_and_undoes(sandbox: Sandbox, web: str) -> None:
    process = sandbox.start("run", sandbox.write(experiment(web, SPIN % "60s")), "--label", "role=app")
    assert process.stderr is not None
    for line in process.stderr:
        if "ACTIVE" in line:
            break
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 12, out + err
    assert "HALTED" in out
    assert "1 of 1 fault undone and verified" in out
    assert time.monotonic() - begun < 20


def test_a_killed_controller_takes_agent_injector_and_fault_with_it(sandbox: Sandbox, web: str) -> None:
    before = _ours()
    process = sandbox.start("run", sandbox.write(experiment(web, SPIN % "60s")), "--label", "role=app")
    assert process.stderr is not None
    for line in process.stderr:
        if "ACTIVE" in line:
            break
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while {entry for entry in _ours() - before if entry.isdigit()} and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {entry for entry in _ours() - before if entry.isdigit()} == set()
    for folder in _ours() - before:  # the temporary folder of a killed program stays: it is empty of secrets that live
        subprocess.run(["rm", "-r", folder], check=True)
    listed = sandbox.run("runs", "list")
    assert "its controller died" in " ".join(listed.stdout.split())


@pytest.mark.parametrize(
    ("text", "code", "line_and_column"),
    [
        ("", "empty", None),
        ("version: 1\nname: a\n---\nversion: 1\n", None, "3:1"),
        ("version: 1\nname: a\nfaults: []\ndurration: 3\n", None, "4:1"),
        ("version: 1\nname: a\nname: b\n", None, "3:1"),
        ("version: 1\nname: &a x\n", None, "2:7"),
        ("[" * 50_000, None, "1:33"),
        ("version: 1\nname: !!python/name:os.system x\n", None, "2:7"),
    ],
)
def test_bad_files_are_refused_with_their_place_and_nothing_is_sent(
    sandbox: Sandbox, text: str, code: str | None, line_and_column: str | None
) -> None:
    done = sandbox.run("run", sandbox.write(text))
    assert done.returncode == 3
    assert "error[" in done.stderr
    assert "Nothing was sent." in done.stderr
    if line_and_column is not None:
        assert re.search(rf"experiment\.yaml:{line_and_column}\b", done.stderr), done.stderr
    assert not (sandbox.folder / "data").exists()


def test_a_missing_file_and_a_folder_are_refused(sandbox: Sandbox) -> None:
    for path in ("none.yaml", "."):
        done = sandbox.run("run", path)
        assert done.returncode == 3, done.stderr


def test_usage_errors_exit_2(sandbox: Sandbox) -> None:
    assert sandbox.run("rum").returncode == 2
    assert sandbox.run("run").returncode == 2
    assert sandbox.run("runs", "show", "77").returncode == 2


def test_a_closed_pipe_is_no_error(sandbox: Sandbox) -> None:
    command = f"{BIN}/brownout explain experiment | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@contextlib.contextmanager
def _python_server() -> Iterator[tuple[int, str]]:
    """A server that a test may pause: its pid and URL."""
    argv = [
        sys.executable,
        "-u",
        "-m",
        "http.server",
        "0",
        "--bind",
        "127.0.0.1",
        "--directory",
        "/usr/share/common-licenses",
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().partition("(")[2].partition(")")[0]
    finally:
        process.kill()
        process.communicate()
