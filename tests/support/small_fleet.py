"""A whole small Brownout in a network namespace of its own: every program the real one, each a process to be killed.

Hosts share the namespace's loopback, and so one `nft` rule cuts them all off from the controller. Each has a *victim*,
a process that a fault may pause, and there is one web server for probes. What the kernel says is asked of /proc.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brownout_controller.record import RunRecord
from brownout_controller.reporting.document import from_document

from tests.support.polling import wait_until

BIN = Path(sys.executable).parent
NAMESPACES = Path("/run/netns")
CONTROLLER = "127.0.0.1:7700"
WEB = "http://127.0.0.1:8080/"
_POLICY = 'version: 1\nenvironment: staging\nfaults: {"*": {allow: true, max_seconds: 300}}\n'
_VICTIM = "import time\nwhile True: time.sleep(0.05)"
_UP_WITHIN_S = 40.0
Process = subprocess.Popen[bytes]


@dataclass
class SmallFleet:
    """Start and kill what you like; everything ends with the namespace."""

    folder: Path
    namespace: str
    hosts: tuple[str, ...]
    programs: dict[str, Process] = field(default_factory=dict)

    def spawn(self, name: str, *argv: object) -> Process:
        """A program in the namespace; its output goes to NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.programs[name] = subprocess.Popen(
                ["nsenter", f"--net={NAMESPACES / self.namespace}", "--", *map(str, argv)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return self.programs[name]

    def kill(self, name: str) -> None:
        self.programs[name].kill()
        self.programs[name].wait()

    def start_injector(self, host: str) -> None:
        (self.folder / "policy.yaml").write_text(_POLICY)
        self.spawn(
            f"injector-{host}", BIN / "brownout-injector", "serve", "--socket", self._socket(host),
            "--state-dir", self.folder / f"injector-{host}", "--policy", self.folder / "policy.yaml",
        )  # fmt: skip

    def start_agent(self, host: str) -> None:
        self.spawn(
            f"agent-{host}", BIN / "brownout-agent", "run", "--state-dir", self.folder / f"agent-{host}",
            "--injector-socket", self._socket(host),
        )  # fmt: skip

    def run(self, experiment: str, *more: object) -> None:
        """`brownout run` as the controller, and every host joined and connected, with its victim."""
        (self.folder / "experiment.yaml").write_text(experiment)
        for host in self.hosts:
            self.spawn(f"victim-{host}", sys.executable, "-c", _VICTIM, self.victim(host))
            self.start_injector(host)
            wait_until(self._socket(host).is_socket, f"the injector of {host}", _UP_WITHIN_S)
        tokens = [self._token() for _ in self.hosts]
        self.spawn(
            "controller", BIN / "brownout", "run", self.folder / "experiment.yaml", "--data-dir", self._data,
            "--report-dir", self.folder / "reports", "--report", "md,json", "--listen", CONTROLLER,
            "--wait-hosts", len(self.hosts), "--wait-timeout", 60, *more,
        )  # fmt: skip
        for host, token in zip(self.hosts, tokens, strict=True):
            joining = self.spawn(
                f"join-{host}", BIN / "brownout-agent", "join", "--controller", CONTROLLER, "--name", host,
                "--label", "role=app", "--token", token["token"], "--ca-pin", token["ca_pin"],
                "--state-dir", self.folder / f"agent-{host}", "--wait", 60,
            )  # fmt: skip
            assert joining.wait(60) == 0, self.log(f"join-{host}")
            self.start_agent(host)

    def ended(self, within_s: float = 120) -> int:
        """The exit code of the run."""
        return self.programs["controller"].wait(within_s)

    def record(self) -> RunRecord:
        """The run as it was kept."""
        argv = [BIN / "brownout", "runs", "show", "1", "-o", "json", "--data-dir", self._data]
        document: dict[str, Any] = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
        return from_document(document)

    def log(self, name: str = "controller") -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def said(self, text: str, within_s: float = _UP_WITHIN_S, name: str = "controller") -> None:
        """Wait until a program has said this."""
        try:
            wait_until(lambda: text in self.log(name), text, within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log(name)}") from error

    def victim(self, host: str) -> str:
        return f"victim-{host}-{self.namespace}"

    def stands_still(self, host: str) -> bool:
        """Whether the kernel has stopped this host's victim."""
        stat = Path(f"/proc/{self.programs[f'victim-{host}'].pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] in {"t", "T"}

    def cut(self) -> None:
        """Drop everything between agents and controller, both ways, without a word to either."""
        ports = "tcp dport 7700 drop; tcp sport 7700 drop"
        rules = f"table inet cable {{ chain through {{ type filter hook input priority 0; {ports}; }}; }}\n"
        self._nft(rules)

    def heal(self) -> None:
        self._nft("delete table inet cable\n")

    def processes(self) -> list[int]:
        """Every pid in this namespace."""
        inode = (NAMESPACES / self.namespace).stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "ns/net").stat().st_ino == inode:
                    found.append(int(entry.name))
        return found

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _socket(self, host: str) -> Path:
        return self.folder / f"{host}.sock"

    def _token(self) -> dict[str, str]:
        argv = [BIN / "brownout", "token", "create", "--data-dir", self._data, "-o", "json"]
        token: dict[str, str] = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
        return token

    def _nft(self, rules: str) -> None:
        argv = ["nsenter", f"--net={NAMESPACES / self.namespace}", "--", "nft", "-f", "-"]
        subprocess.run(argv, input=rules, text=True, check=True)


@contextlib.contextmanager
def small_fleet(folder: Path, *hosts: str) -> Iterator[SmallFleet]:
    """A namespace with its web server; nothing of it stays."""
    name = f"bo-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    fleet = SmallFleet(folder, name, hosts)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        serve = ("-m", "http.server", "8080", "--bind", "127.0.0.1", "--directory", "/usr/share/common-licenses")
        fleet.spawn("web", sys.executable, *serve)
        yield fleet
    finally:
        while pids := fleet.processes():  # a dying one may start another, as an injector does its watchdog
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for program in fleet.programs.values():
                program.wait()
        subprocess.run(["ip", "netns", "delete", name], check=True)
