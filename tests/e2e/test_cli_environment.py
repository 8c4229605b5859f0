"""The command line where little is there: no terminal, no home, ASCII alone, 20 columns, a full or closed output."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.services import free_port

BIN = Path(sys.executable).parent
BAD = "version: 1\nname: Größe\nfaults: []\n"
POOR = {"LC_ALL": "C", "LANG": "C", "COLUMNS": "20", "TERM": "dumb", "PATH": os.defpath}
RAW = {**POOR, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Without what Python does for a C locale by itself."""


def brownout(folder: Path, environment: dict[str, str], *argv: str) -> "subprocess.CompletedProcess[str]":
    more = {"BROWNOUT_DATA_DIR": str(folder / "data")}
    command = [str(BIN / "brownout"), *argv]
    done = subprocess.run(
        command, cwd=folder, env={**environment, **more}, stdin=subprocess.DEVNULL, capture_output=True,
        encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("environment", [POOR, RAW], ids=["poor", "raw"])
@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("faults", "list"), 0, "cpu"),
        (("explain", "cpu.load"), 0, "percent"),
        (("validate", "bad.yaml"), 3, "bad-name"),
        (("runs", "list"), 0, ""),
        (("--help",), 0, "validate"),
        (("runs", "show", "99"), 2, ""),
        (("nonsense",), 2, "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_poor_environment_changes_no_answer(
    tmp_path: Path, environment: dict[str, str], argv: tuple[str, ...], code: int, says: str
) -> None:
    (tmp_path / "bad.yaml").write_text(BAD, encoding="utf-8")
    assert "HOME" not in environment
    done = brownout(tmp_path, environment, *argv)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in "".join((done.stdout + done.stderr).split()), "words may be broken over lines"
    assert "\x1b" not in done.stdout + done.stderr, "no colours without a terminal"


@pytest.mark.parametrize("argv", [("faults", "list"), ("explain", "cpu.load"), ("--help",)], ids=" ".join)
def test_an_output_that_takes_nothing_is_an_error_and_no_traceback(tmp_path: Path, argv: tuple[str, ...]) -> None:
    command = [str(BIN / "brownout"), *argv]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        done = brownout(tmp_path, POOR, "server", "start", "--listen", f"127.0.0.1:{port}")
    assert done.returncode in {1, 4, 5}, done.stderr
    assert str(port) in done.stderr
    assert "in use" in done.stderr
