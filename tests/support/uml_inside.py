"""What runs inside a user-mode Linux host: starts it up as its units would, looks at its kernel, does as it is told.

    python -m tests.support.uml_inside TESTER_ADDRESS TESTER_PORT NAME

One line of JSON each way. It says `reaped` when the boot reap is through, then `serving`, then several times a second
what is there. It is told `join`, `clock` (seconds to step by) and `left` (fault ids), and answers the last.
"""

import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.deaths import UML_FAULTS
from tests.support.deaths_kernel import (
    Datagrams,
    Process,
    ProcessReader,
    control_groups_of,
    faults_there,
    holders,
    strangers,
)

STATE = Path("/var/lib/brownout")
SOCKET = Path("/run/injector.sock")
POLICY = Path("/run/policy.yaml")
_POLICY = 'version: 1\nenvironment: staging\nfaults: {"*": {allow: true, max_seconds: 120}}\nlimits: {concurrent: 16}\n'
_LOOK_EVERY_S = 0.1
_INJECTOR = (sys.executable, "-m", "brownout_agent.injector.main")
_AGENT = (sys.executable, "-m", "brownout_agent.agent.main")


class Inside:
    """The host, from power-on to power cut."""

    def __init__(self, tester: socket.socket, name: str) -> None:
        self._tester = tester
        self._name = name
        self._heard = b""
        self._tags = {fault: f"victim-{name}-{fault.kind}" for fault in UML_FAULTS}
        self._reader = ProcessReader()
        self._datagrams = Datagrams(None, UML_FAULTS)

    def boot(self) -> None:
        """In the order of the units: what the host serves, the reaper, the injector, the agent."""
        POLICY.write_text(_POLICY)
        (STATE / "scratch").mkdir(exist_ok=True)
        for fault, tag in self._tags.items():
            if fault.has_victim:
                subprocess.Popen(fault.victim_argv(sys.executable, tag))
        reaping = [*_INJECTOR, "reap", "--state-dir", str(STATE / "injector")]
        reaped = subprocess.run(reaping, capture_output=True, text=True, check=False)
        self.say(reaped=reaped.stdout, code=reaped.returncode, boottime_s=time.clock_gettime(time.CLOCK_BOOTTIME))
        where = ["--socket", str(SOCKET), "--state-dir", str(STATE / "injector"), "--policy", str(POLICY)]
        subprocess.Popen([*_INJECTOR, "serve", *where])
        while not SOCKET.is_socket():
            time.sleep(0.02)
        self.say(serving=True, has_joined=(STATE / "agent").exists())
        if (STATE / "agent").exists():
            self._run_agent()

    def live(self) -> None:
        """Look and obey until the power goes."""
        while True:
            processes = self._reader.read()
            there = faults_there(self._tags, processes, self._datagrams)
            self.say(there=sorted(there), busy=bool(there or holders(processes)))
            due_s = time.monotonic() + _LOOK_EVERY_S
            while (left_s := due_s - time.monotonic()) > 0:
                if select.select([self._tester], [], [], left_s)[0]:
                    self._listen()

    def say(self, **plain: Any) -> None:
        self._tester.sendall(json.dumps(plain).encode() + b"\n")

    def _listen(self) -> None:
        chunk = self._tester.recv(65536)
        if not chunk:
            raise SystemExit("the tester is gone")
        *lines, self._heard = (self._heard + chunk).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, told: dict[str, Any]) -> None:
        if "clock" in told:
            time.clock_settime(time.CLOCK_REALTIME, time.time() + told["clock"])
        elif "join" in told:
            subprocess.run([*_AGENT, "join", "--state-dir", str(STATE / "agent"), *told["join"]], check=True)
            self._run_agent()
        elif "left" in told:
            processes = [one for one in self._reader.read() if not _is_the_hosts_own(one)]
            left = strangers(self._tags, processes) + control_groups_of(told["left"])
            space = os.statvfs(STATE)
            self.say(left=left, free_bytes=space.f_bfree * space.f_frsize)

    @staticmethod
    def _run_agent() -> None:
        subprocess.Popen([*_AGENT, "run", "--state-dir", str(STATE / "agent"), "--injector-socket", str(SOCKET)])


def _is_the_hosts_own(process: Process) -> bool:
    """Kernel threads, which have no command line, and this program. Of what was read: by now it may have ended."""
    return process.pid == os.getpid() or not process.line


def main() -> None:
    """Find the tester, boot, live."""
    address, port, name = sys.argv[1:4]
    while True:
        try:
            tester = socket.create_connection((address, int(port)), 1)
            break
        except OSError:
            time.sleep(0.05)
    tester.settimeout(None)
    tester.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    inside = Inside(tester, name)
    inside.boot()
    inside.live()


if __name__ == "__main__":
    main()
