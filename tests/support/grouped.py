"""Control groups of version 2 as systemd makes them for units, and programs in them that talk over the network."""

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.kernel.cgroups import unified_tree

from tests.support.control_groups import JOIN
from tests.support.polling import wait_until

TALKER = """
import errno, json, socket, sys, time

connections = {}

def connect(name, host, port):
    connections[name] = socket.create_connection((host, port), timeout=0.5)

def echo(name):
    connections[name].settimeout(0.5)
    connections[name].sendall(b"?")
    if connections[name].recv(9) != b"?":
        raise ConnectionError("closed")

def fresh(host, port):
    with socket.create_connection((host, port), timeout=0.5) as connection:
        connection.settimeout(0.5)
        connection.sendall(b"?")
        if connection.recv(9) != b"?":
            raise ConnectionError("closed")

def move(procs):
    open(procs, "w").write("0")

def udp(host, port):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        client.sendto(b"?", (host, port))
        client.recv(9)

work = {"connect": connect, "echo": echo, "fresh": fresh, "move": move, "udp": udp}
for line in sys.stdin:
    name, times, *given = json.loads(line)
    took_ms, error = [], ""
    try:
        for _ in range(times):
            begun_ns = time.monotonic_ns()
            work[name](*given)
            took_ms.append((time.monotonic_ns() - begun_ns) / 1e6)
    except OSError as raised:
        error = errno.errorcode.get(raised.errno, "") or str(raised)
    print(json.dumps([took_ms, error]), flush=True)
"""


class Talker:
    """A program that does what it is told: `connect` (a name), `echo` (over that), `fresh` (connect, echo, close),
    `udp`, and `move` (into another group).
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def error(self, name: str, *given: Any) -> str:
        """How it fails: `ECONNRESET`, `timed out`; "" when it works."""
        return self._ask(name, 1, *given)[1]

    def took_ms(self, name: str, *given: Any, times: int = 1) -> list[float]:
        """How long each time took. Fails when one does."""
        took_ms, error = self._ask(name, times, *given)
        assert not error, f"{name} {given}: {error}"
        return took_ms

    def _ask(self, name: str, times: int, *given: Any) -> tuple[list[float], str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, times, *given]) + "\n")
        self._process.stdin.flush()
        took_ms, error = json.loads(self._process.stdout.readline())
        return took_ms, error


def in_group(group: Path | None, *argv: str) -> list[str]:
    """The command that runs `argv` in this group; None is where the caller is."""
    return [sys.executable, "-I", "-c", JOIN, *([f"{group}/cgroup.procs"] if group else []), "--", *argv]


@contextmanager
def talking(group: Path | None) -> Iterator[Talker]:
    """A talker in this group."""
    pipe = subprocess.PIPE
    argv = in_group(group, sys.executable, "-I", "-c", TALKER)
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Talker(process)
        finally:
            process.send_signal(signal.SIGKILL)


@contextmanager
def serving(group: Path | None, program: str, *ports: int) -> Iterator[None]:
    """A server in this group: a program that takes ports and prints a line when it is ready."""
    argv = in_group(group, sys.executable, "-I", "-c", program, *map(str, ports))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield
        finally:
            server.kill()


def unit_name() -> str:
    """Of a unit that is nobody else's."""
    return f"brownout-test-{uuid.uuid4().hex[:8]}.service"


@contextmanager
def unit_group(unit: str, *below: str) -> Iterator[Path]:
    """The group that systemd would make for the unit, with groups below it; it must be empty in the end. Skips where
    there are no groups of version 2."""
    tree = unified_tree()
    if tree is None:
        pytest.skip("no control groups of version 2 here")
    group = tree / unit
    folders = [group, *(group / name for name in below)]
    for folder in folders:
        folder.mkdir()
    try:
        yield group
    finally:
        for folder in reversed(folders):
            wait_until(lambda folder=folder: not (folder / "cgroup.procs").read_text(), "the group is empty")
            folder.rmdir()
