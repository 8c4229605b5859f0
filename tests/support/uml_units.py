"""What runs inside a user-mode Linux host with systemd: kills the injector in several ways, and sees who undoes.

    python -m tests.support.uml_units TESTER_ADDRESS TESTER_PORT

One line of JSON a finding. The order of the units at boot comes first; on a host that has held faults before the power
was cut that is all.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brownout_agent.frames import to_value
from brownout_agent.injector.journal import decode
from brownout_protos.v1 import fault_pb2, injector_pb2

from tests.support.deaths import FAULTS
from tests.support.deaths_kernel import Datagrams, ProcessReader, faults_there, holders
from tests.support.injectors import Client
from tests.support.uml_wants import WANT

STATE = Path("/var/lib/brownout")
SOCKET = Path("/run/brownout/injector.sock")
HELD = STATE / "held"
INJECTOR = "brownout-injector.service"
AGENT = "brownout-agent.service"
_DROP_IN = Path(f"/run/systemd/system/{INJECTOR}.d/alone.conf")
_WITHIN_S = 60.0
_LIMITED_MS = 8_000
_LIMITS: dict[str, tuple[str, dict[str, object], str]] = {
    "cpu.throttle": ("wants-cpu.service", {"quota": "20%"}, "cpu.max"),
    "process.freeze": ("wants-cpu.service", {}, "cgroup.freeze"),
    "memory.limit": ("wants-memory.service", {"limit": "48MiB"}, "memory.high"),
    "disk.throttle": ("wants-disk.service", {"write": "1MiB/s", "path": str(STATE)}, "io.max"),
}
"""By kind: the unit that wants what is limited, how much it gets, and the control file."""
_KINDS = frozenset(
    {
        *("memory.load", "process.pause", "process.kill", "process.fd_exhaustion", "process.pid_exhaustion"),
        *("process.freeze", "cpu.throttle"),
    }
)
"""One of each way to undo. Each victim is a service, and so has a control group of its own."""
_FAULTS = tuple(fault for fault in FAULTS if fault.kind in _KINDS)
_TAGS = {fault: f"victim-{fault.kind.removeprefix('process.')}" for fault in _FAULTS}


class Story:
    """The findings, told to the tester as they are made."""

    def __init__(self, tester: asyncio.StreamWriter) -> None:
        self._tester = tester
        self._reader = ProcessReader()
        self._datagrams = Datagrams(None, _FAULTS)

    async def tell(self) -> None:
        """From boot to the power cut."""
        injected_before = HELD.exists()
        await self._until(lambda: _show("ActiveState", INJECTOR) == "active", "the injector is active")
        order = await self._order()
        self.say(booted=injected_before, order=order, unfinished=_unfinished(), still=sorted(self._there()))
        _systemctl("start", "brownout-reap.timer")
        if injected_before:
            return
        await self._killed()
        await self._frozen()
        await self._alone()
        await self._limited()
        await self._inject()
        HELD.touch()
        os.sync()
        self.say(holding=True)

    async def _order(self) -> dict[str, int]:
        """When the reaper was through, the injector took orders and the agent began, in us of CLOCK_MONOTONIC.

        The timer is started only afterwards: a reaper that finds the injector up forgets when the one at boot ended.
        """
        await self._until(lambda: _stamp("ExecMainExit", "brownout-reap.service") > 0, "the reaper is through")
        await self._until(lambda: _stamp("ExecMainStart", AGENT) > 0, "the agent has begun")
        return {
            "reaped": _stamp("ExecMainExit", "brownout-reap.service"),
            "injector takes orders": _stamp("ActiveEnter", INJECTOR),
            "agent begins": _stamp("ExecMainStart", AGENT),
        }

    async def _killed(self) -> None:
        """SIGKILL to the injector: ExecStopPost undoes and marks, and only then is the injector started again."""
        await self._inject()
        before = _stamp("ExecMainStart", INJECTOR)
        os.kill(int(_show("MainPID", INJECTOR)), signal.SIGKILL)
        seconds = await self._until_gone()
        await self._until(lambda: _stamp("ExecMainStart", INJECTOR) > before, "the injector is started again")
        entries = decode((STATE / "injector/journal").read_bytes()).entries.values()
        latest = sorted(entries, key=lambda entry: entry.at_boottime_ns)[-len(_FAULTS) :]
        self.say(
            step="killed",
            gone_after_s=seconds,
            marks=[(entry.mark, entry.cause, entry.at_boottime_ns // 1_000) for entry in latest],
            started_again=_stamp("ExecMainStart", INJECTOR),
        )

    async def _frozen(self) -> None:
        """SIGSTOP to the injector: the service's watchdog kills it."""
        await self._inject()
        os.kill(int(_show("MainPID", INJECTOR)), signal.SIGSTOP)
        self.say(step="frozen", gone_after_s=await self._until_gone())

    async def _alone(self) -> None:
        """Injector and watchdog killed, no ExecStopPost, no restart: the timer's reaper undoes."""
        await self._inject()
        _DROP_IN.parent.mkdir(parents=True, exist_ok=True)
        _DROP_IN.write_text("[Service]\nExecStopPost=\nRestart=no\n")
        _systemctl("daemon-reload")
        _systemctl("kill", "--signal=KILL", "--kill-whom=all", INJECTOR)
        self.say(step="timer", gone_after_s=await self._until_gone(), is_injector=_show("ActiveState", INJECTOR))
        _DROP_IN.unlink()
        _systemctl("daemon-reload")

    async def _limited(self) -> None:
        """Units by their names, limited in version 2 of control groups: what they get, and what the files say."""
        client = await self._client()
        for kind, (unit, parameters, name) in _LIMITS.items():
            _systemctl("start", unit)
            file = Path("/sys/fs/cgroup") / _show("ControlGroup", unit).strip("/") / name
            pid, before = int(_show("MainPID", unit)), file.read_text()
            fault_id = await _order(client, kind, {"unit": unit, **parameters}, _LIMITED_MS)
            WANT.touch()
            during, used_s, written, begun_s = file.read_text(), _cpu_s(pid), _written_bytes(), time.monotonic()
            await asyncio.sleep(_LIMITED_MS / 2_000)  # what is measured is what happens in this time
            elapsed_s, anonymous_bytes = time.monotonic() - begun_s, _anonymous_bytes(pid)
            cpu_percent, disk_rate = 100 * (_cpu_s(pid) - used_s) / elapsed_s, (_written_bytes() - written) / elapsed_s
            report = (await client.until(lambda said, one=fault_id: _is_over(said.report, one))).report  # type: ignore[misc]
            self.say(
                step=f"limited by {kind}",
                texts=[before, during, file.read_text()],
                cpu_percent=cpu_percent,
                anonymous_bytes=anonymous_bytes,
                disk_rate=disk_rate,
                effect=[report.effect.proved, report.effect.achieved, report.effect.explanation],
                residue=list(report.residue),
            )
            _systemctl("stop", unit)
            WANT.unlink()
        client.writer.close()

    async def _client(self) -> Client:
        """The injector's own door."""
        _systemctl("stop", AGENT)  # the newest agent wins
        _systemctl("start", INJECTOR)
        client = Client(*await asyncio.open_unix_connection(SOCKET))
        client.send(attach=injector_pb2.Attach(agent_version="test"))
        return client

    async def _inject(self) -> None:
        """All faults on, one after the other: this host has one slow core."""
        client = await self._client()
        for fault in _FAULTS:
            await _order(client, fault.kind, fault.filled_in(_TAGS[fault], ""), 100_000)
        await self._until(lambda: len(self._there()) == len(_FAULTS), "all faults are there")
        client.writer.close()

    def _there(self) -> set[str]:
        processes = self._reader.read()
        there = faults_there(_TAGS, processes, self._datagrams)
        return there | ({"holder"} if holders(processes) and not there else set())

    async def _until_gone(self) -> float:
        begun_s = time.monotonic()
        await self._until(lambda: not self._there(), "every fault is gone")
        return time.monotonic() - begun_s

    async def _until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _WITHIN_S
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {_WITHIN_S:g} s: {what}; there is {sorted(self._there())}")
            await asyncio.sleep(0.1)

    def say(self, **plain: Any) -> None:
        self._tester.write(json.dumps(plain).encode() + b"\n")


async def _order(client: Client, kind: str, parameters: dict[str, object], duration_ms: int) -> str:
    """Have a fault in effect; its id."""
    fault_id = str(uuid.uuid4())
    client.send(
        inject=fault_pb2.Inject(
            fault_id=fault_id,
            environment="staging",
            kind=kind,
            parameters={name: to_value(value) for name, value in parameters.items()},
            duration_ms=duration_ms,
            lease_ms=100_000,
        )
    )
    reply = await client.reply()
    assert reply.outcome == fault_pb2.OrderReply.ACCEPTED, f"{kind}: {reply}"
    told = await client.until(lambda said: _is_decided(said.report, fault_id))
    assert told.report.state == fault_pb2.ACTIVE, told.report
    return fault_id


def _cpu_s(pid: int) -> float:
    """User and system time (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _anonymous_bytes(pid: int) -> int:
    """What a process has in memory but for pages of files, which may count for another group (proc(5))."""
    _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def _written_bytes() -> int:
    """To this host's one disk (/proc/diskstats; a sector is of 512 bytes there)."""
    lines = (line.split() for line in Path("/proc/diskstats").read_text().splitlines())
    return sum(int(fields[9]) * 512 for fields in lines if fields[2] == "ubdb")


def _is_over(report: fault_pb2.FaultReport, fault_id: str) -> bool:
    return report.fault_id == fault_id and report.state in {fault_pb2.CLEAN, fault_pb2.RESIDUE}


def _is_decided(report: fault_pb2.FaultReport, fault_id: str) -> bool:
    """Whether it came about, or did not."""
    is_over = report.end_cause != fault_pb2.END_CAUSE_UNSPECIFIED
    return report.fault_id == fault_id and (report.state == fault_pb2.ACTIVE or is_over)


def _stamp(what: str, unit: str) -> int:
    return int(_show(f"{what}TimestampMonotonic", unit) or 0)


def _unfinished() -> list[str]:
    journal = STATE / "injector/journal"
    entries = decode(journal.read_bytes()).entries.values() if journal.exists() else ()
    return [entry.fault_id for entry in entries if entry.mark not in {"clean", "tombstone"}]


def _show(name: str, unit: str) -> str:
    return _systemctl("show", "--value", f"--property={name}", unit).strip()


def _status() -> str:
    argv = ["systemctl", "status", "--no-pager", "--lines=30", "brownout-*", "victim@*"]
    return subprocess.run(argv, check=False, capture_output=True, text=True).stdout  # 3: one of them is not active


def _systemctl(*argv: str) -> str:
    return subprocess.run(["systemctl", *argv], check=True, capture_output=True, text=True).stdout


async def main() -> None:
    """Find the tester, tell the story, wait for the power cut."""
    while True:
        with contextlib.suppress(OSError):
            _, tester = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))
            break
        await asyncio.sleep(0.1)
    story = Story(tester)
    try:
        await story.tell()
    except (AssertionError, OSError, subprocess.CalledProcessError) as error:
        story.say(trouble=f"{error}\n{_status()}")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
