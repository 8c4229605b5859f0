"""Several controllers on one PostgreSQL, and hosts with agent and injector: every program as it is shipped.

Everything is on loopback; what ends here is killed by its pid.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from brownout_agent.injector.journal import Mark, decode
from brownout_controller.cli.remote import Remote, Server, connect
from brownout_controller.running.machine import fault_id

from tests.support.injectors import holders
from tests.support.polling import wait_until

BIN = Path(sys.executable).parent
KEY = "authority.key"


@dataclass
class Program:
    """A process, and what it says."""

    process: "subprocess.Popen[bytes]"
    said: Path

    def text(self) -> str:
        return self.said.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@dataclass
class Member:
    """One controller."""

    name: str
    program: Program
    agents: str
    """HOST:PORT for agents."""
    enrol_port: str
    url: str
    pin: str


@dataclass
class Cluster:
    """Controllers by name, and hosts by name."""

    folder: Path
    database: str
    members: dict[str, Member] = field(default_factory=dict)
    agents: dict[str, Program] = field(default_factory=dict)
    injectors: dict[str, Program] = field(default_factory=dict)
    programs: list[Program] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)

    def start(self, name: str, key: Path | None = None, *, with_key: bool = True) -> Member:
        """A controller of the cluster, with a data directory of its own."""
        options = ["--authority-key", key or self.folder / KEY] if with_key else []
        program = self._spawn(
            name, "brownout", "--database", self.database, "server", "start", "--data-dir", self.folder / name,
            "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", *options,
        )  # fmt: skip
        wait_until(lambda: "API on " in program.text() or program.process.poll() is not None, f"{name} serves", 60)
        found = re.search(r"agents on (\S+), enrolment on port (\d+)", program.text())
        api = re.search(r"API on (https://\S+)/api/v1, authority (sha256:[0-9a-f]{64})", program.text())
        assert found is not None, program.text()
        assert api is not None, program.text()
        self.members[name] = Member(name, program, found[1], found[2], api[1], api[2])
        if not self.tokens:
            self._first_people(name)
        return self.members[name]

    def _first_people(self, name: str) -> None:
        """The first admin, and somebody who may run experiments."""
        shown = self.folder / f"{name}.out"
        wait_until(lambda: shown.read_text().endswith("\n"), "the first token", 20)
        self.tokens["admin"] = shown.read_text().strip()
        with self.api(name) as api:
            grants = [{"role": role, "environments": None, "hosts": None} for role in ("author", "operator")]
            api.post("/users", {"name": "operator", "grants": grants})
            self.tokens["operator"] = api.post("/tokens", {"user": "operator"})["token"]
            limit = {"hosts": 9, "percent": 100}
            api.request("PUT", "/limits/staging", json=limit, headers={"If-Match": '"0"'})

    def join(self, host: str, at: str) -> None:
        """A host with the label role=app that joins at a controller."""
        member, state = self.members[at], self.folder / host
        with self.api(at) as api:
            joined = api.post("/join-tokens", {})
        argv = [
            BIN / "brownout-agent", "join", "--controller", member.agents, "--enrol-port", member.enrol_port,
            "--name", host, "--label", "role=app", "--token", joined["token"], "--ca-pin", joined["ca_pin"],
            "--state-dir", state / "agent", "--wait", "30",
        ]  # fmt: skip
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        socket = state / "s.sock"
        self.injectors[host] = self._spawn(
            f"{host}-injector", "brownout-injector", "serve", "--embedded", "--socket", socket,
            "--state-dir", state / "injector",
        )  # fmt: skip
        self.agents[host] = self.run_agent(host)

    def run_agent(self, host: str) -> Program:
        """The agent that lives in a host's folder."""
        state = self.folder / host
        return self._spawn(
            f"{host}-agent", "brownout-agent", "run", "--state-dir", state / "agent",
            "--injector-socket", state / "s.sock",
        )  # fmt: skip

    @contextmanager
    def api(self, name: str, who: str = "admin") -> Iterator[Remote]:
        """The API of one controller."""
        path = self.folder / f"{who}.token"
        path.touch(0o600)
        path.write_text(self.tokens[who])
        member = self.members[name]
        with connect(Server(member.url, member.pin, token_file=path)) as remote:
            yield remote

    def run(self, argv: Sequence[object], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
        """A command beside the controllers."""
        return subprocess.run(
            list(map(str, argv)), capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )

    def hosts(self, name: str) -> dict[str, str]:
        """The hosts that can inject, as one controller tells it: name -> where each is connected."""
        with self.api(name, "operator") as api:
            return {host["name"]: host["controller"] for host in api.get("/hosts")["items"] if host["injector"]}

    def row(self, number: int) -> tuple[Any, ...]:
        """Of a run: key, verdict, exit code, headline."""
        with psycopg.connect(self.database) as connection:
            columns = "SELECT run_key, verdict, exit_code, headline FROM run WHERE number = %s"
            row = connection.execute(columns, [number]).fetchone()
        assert row is not None
        return row

    def fault_ids(self, number: int, fault: str) -> dict[str, str]:
        """The id of a run's fault on each host."""
        key = self.row(number)[0]
        return {host: fault_id(key, fault, host) for host in self.agents}

    def recorded(self, number: int, fault: str) -> list[str]:
        """The hosts whose injector ever began a run's fault: nothing is begun that its journal does not hold. What was
        stopped before it was ordered is in there as well."""
        found = []
        for host, one in self.fault_ids(number, fault).items():
            entry = decode((self.folder / host / "injector/journal").read_bytes()).entries.get(one)
            if entry is not None and entry.mark is not Mark.REFUSED_FOR_EVER:
                found.append(host)
        return found

    def end(self) -> None:
        """End everything, the latest first."""
        for program in reversed(self.programs):
            if program.process.poll() is None:
                program.signal(signal.SIGCONT)
                program.signal(signal.SIGTERM)
        for program in reversed(self.programs):
            try:
                program.process.wait(60)
            except subprocess.TimeoutExpired:
                program.process.kill()
                program.process.wait()

    def _spawn(self, name: str, *argv: object) -> Program:
        said = self.folder / f"{name}.err"
        with (self.folder / f"{name}.out").open("ab") as out, said.open("wb") as err:
            process = subprocess.Popen(
                [BIN / str(argv[0]), *map(str, argv[1:])], stdout=out, stderr=err, cwd=self.folder,
                env={**os.environ, "TMPDIR": str(self.folder)}, start_new_session=True,
            )  # fmt: skip
        program = Program(process, said)
        self.programs.append(program)
        return program


@contextmanager
def cluster(folder: Path, database: str) -> Iterator[Cluster]:
    """One without members yet; everything of it is ended with the block."""
    made = Cluster(folder, database)
    try:
        yield made
    finally:
        made.end()


def held(fault_ids: dict[str, str]) -> dict[str, int]:
    """How many times each of these faults is on: its holders, each with what it started to work for it.

    A holder leads a session of its own. Who began whom does not tell: a fork outlives its holder for a moment.
    """
    return {host: len(_sessions(holders(one))) for host, one in fault_ids.items()}


def _sessions(pids: list[int]) -> set[int]:
    found = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            found.add(os.getsid(pid))
    return found
