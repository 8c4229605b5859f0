"""`brownout run FILE` on one machine with nothing set up: verdicts, exit codes, and what stays behind (nothing)."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.disks import MIB, ext4
from tests.support.polling import wait_until
from tests.support.services import app_server, free_port

BIN = Path(sys.executable).parent
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network faults")
pytestmark = pytest.mark.injects


class Sandbox:
    """A folder in which `brownout` is run, with a data directory of its own."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ, "BROWNOUT_DATA_DIR": str(folder / "data"), "COLUMNS": "120", "TMPDIR": str(scratch),
        }  # fmt: skip

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

    def record(self, number: int = 1) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run("runs", "show", number, "-o", "json").stdout)
        return document


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with tempfile.TemporaryDirectory(prefix="bo-") as scratch:  # short: a socket's path has 107 bytes at most
        made = Sandbox(tmp_path, Path(scratch))
        yield made
        assert _left(made) == set()


@pytest.fixture
def web() -> Iterator[str]:
    port = free_port()
    with app_server("here", port):
        yield f"http://127.0.0.1:{port}/"


def _left(sandbox: Sandbox) -> set[str]:
    """Brownout's temporary folders and processes of this sandbox."""
    scratch = sandbox.environment["TMPDIR"]
    found = {str(path) for path in Path(scratch).iterdir()}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{scratch}/".encode() in (entry / "cmdline").read_bytes():
                found.add(entry.name)
    return found


# At 20 probes a second a busy machine leaves some out, and 99 % of a few seconds cannot be told with two missing.
def experiment(web: str, fault: str, expect: str = 'web: ["availability >= 90%"]', guards: str = "[]") -> str:
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
    assert record["residue"]["state"] == "clean", record["residue"]
    assert [host["unread"] for host in record["residue"]["hosts"]] == [[]] or os.geteuid() != 0
    assert "residue audit: clean on" in done.stdout
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
    process = sandbox.start("run", sandbox.write(experiment(web, SPIN % "60s")), "--label", "role=app")
    assert process.stderr is not None
    for line in process.stderr:
        if "ACTIVE" in line:
            break
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not any(entry.isdigit() for entry in _left(sandbox)), "agent and injector are gone", 20)
    for folder in _left(sandbox):  # the temporary folder of a killed program stays: no secret in it lives any more
        shutil.rmtree(folder)
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
    argv = [BIN / "brownout", "explain", "experiment"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as explaining:
        assert explaining.stdout is not None
        assert explaining.stderr is not None
        explaining.stdout.close()
        said = explaining.stderr.read()
    assert (explaining.returncode, said) == (0, b"")


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


@root_only
@pytest.mark.root
def test_a_store_without_room_refuses_the_run_before_anything_is_injected(sandbox: Sandbox, web: str) -> None:
    path = sandbox.write(experiment(web, SPIN % "3s"))
    with ext4(sandbox.folder, 4 * MIB) as disk:
        _fill(disk)
        done = sandbox.run("run", path, "--label", "role=app", "--data-dir", disk)
    assert done.returncode == 4, done.stderr
    assert "error[store]: cannot keep runs in" in done.stderr
    assert "--data-dir" in done.stderr
    assert "ordered" not in done.stderr


@root_only
@pytest.mark.root
def test_a_store_that_fills_up_in_mid_run_costs_the_record_and_not_the_report(sandbox: Sandbox, web: str) -> None:
    path = sandbox.write(experiment(web, SPIN % "4s"))
    with ext4(sandbox.folder, 4 * MIB) as disk:
        process = sandbox.start("run", path, "--label", "role=app", "--data-dir", disk, "--report-dir", "reports")
        assert process.stderr is not None
        for line in process.stderr:
            if "ACTIVE" in line:
                break
        _fill(disk)
        out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    assert "HELD" in out
    assert "1 of 1 fault undone and verified" in out
    assert "the run's record is not kept" in err
    assert process.returncode == 1, "held, but not kept: never a plain 0"
    assert (sandbox.folder / "reports" / "brownout-1.html").exists()


def test_a_report_that_has_no_place_refuses_the_run(sandbox: Sandbox, web: str) -> None:
    path = sandbox.write(experiment(web, SPIN % "3s"))
    done = sandbox.run("run", path, "--label", "role=app", "--report-dir", "/proc/nowhere")
    assert done.returncode == 4
    assert "reports cannot be written to /proc/nowhere" in done.stderr


def test_a_second_ctrl_c_lets_go_and_never_says_that_all_is_undone(sandbox: Sandbox, web: str) -> None:
    process = sandbox.start("run", sandbox.write(experiment(web, SPIN % "60s")), "--label", "role=app")
    assert process.stderr is not None
    for line in process.stderr:
        if "ACTIVE" in line:
            break
    _stop_injectors(process.pid)
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "HALT" in line:
            break
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "let go" in line:
            break
    _stop_injectors(process.pid, signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 13, out + err
    assert "UNDO NOT CONFIRMED" in " ".join(out.split())
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "more", [{"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}]
)
def test_without_a_terminal_progress_is_whole_lines_that_move_no_cursor(
    sandbox: Sandbox, web: str, more: dict[str, str]
) -> None:
    sandbox.environment |= more
    done = sandbox.run("run", sandbox.write(experiment(web, SPIN % "3s")), "--label", "role=app")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"\x1b\[\??\d*[A-HJKhl]", done.stderr), "a cursor was moved"
    assert re.search(r"^\S+  ACTIVE  cpu-load on \S+$", done.stderr, re.MULTILINE), done.stderr
    if "LC_ALL" in more:
        assert (done.stdout + done.stderr).isascii()


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_on_a_terminal_the_status_goes_away_and_the_events_stay(sandbox: Sandbox, web: str, term: str) -> None:
    path = sandbox.write(experiment(web, SPIN % "3s"))
    shown = _on_a_terminal(sandbox, {"TERM": term}, "run", path, "--label", "role=app")
    lines = _screen(shown)
    assert sum("ACTIVE  cpu-load" in line for line in lines) == 1, "\n".join(lines)
    assert not any("of about" in line for line in lines), "the status is gone at the end"
    assert any("HELD" in line for line in lines)
    assert ("of about" in shown) == (term != "dumb")
    assert all(len(line) <= 80 for line in lines if "experiment.yaml" not in line)


def _fill(disk: Path) -> None:
    """Leave no room at all."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 1024)


def _stop_injectors(pid: int, number: int = signal.SIGSTOP) -> None:
    """Signal the injector that `brownout run` has started: halted, it cannot undo what the test lets go of."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if b"brownout_agent.injector.main\0serve" in line and f"--parent\0{pid}".encode() in line:
                os.kill(int(entry.name), number)


def _on_a_terminal(sandbox: Sandbox, more: dict[str, str], *argv: object) -> str:
    """What a terminal of 80 columns and 24 lines was sent."""
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, 80))
    environment = {name: value for name, value in sandbox.environment.items() if name not in {"COLUMNS", "LINES"}}
    process = subprocess.Popen(
        [str(BIN / "brownout"), *map(str, argv)],
        cwd=sandbox.folder, env={**environment, **more}, stdin=its, stdout=its, stderr=its,
    )  # fmt: skip
    os.close(its)
    sent = b""
    with contextlib.suppress(OSError):  # EIO: the program has closed the terminal
        while chunk := os.read(ours, 65_536):
            sent += chunk
    os.close(ours)
    assert process.wait(60) == 0, sent.decode()
    return sent.decode()


def _screen(sent: str) -> list[str]:
    """The lines that are left of it, as a terminal draws them: of what moves the cursor, only what the view uses."""
    lines, row, column = [""], 0, 0
    for mark in re.finditer(r"\x1b\[([?;\d]*)([A-Za-z])|(.)", sent, re.DOTALL):
        number, code, letter = mark[1], mark[2], mark[3]
        if code == "A":
            row = max(0, row - int(number or 1))
        elif code == "K":
            lines[row] = "" if number == "2" else lines[row][:column]
        elif code is not None:
            assert code in "mhl", f"the view moves the cursor by {mark[0]!r}"
        elif letter == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif letter == "\r":
            column = 0
        else:
            lines[row] = lines[row].ljust(column)[:column] + letter + lines[row][column + 1 :]
            column += 1
    return lines
