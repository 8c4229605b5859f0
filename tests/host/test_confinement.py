"""Every fault under exactly the capabilities of the shipped unit, and none of them for nothing.

The rest of the unit's confinement needs systemd as PID 1; hosts with a kernel of their own have that.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.frames import to_value
from brownout_protos.v1 import fault_pb2

from tests.support.injectors import ACCEPTED, Client, connect, injector, new_id, story
from tests.support.standby import COMMANDS, STANDBY
from tests.unit.test_deploy import settings

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to give up"),
]
RIGHTS = settings("brownout-injector.service")["CapabilityBoundingSet"][0].split()
PRIVATE = "{private}"
VICTIM = "{victim}"
FAULTS: dict[str, dict[str, Any]] = {
    "cpu.load": {"percent": 5, "of": "own", "cores": "0", "nice": -5},
    "memory.load": {"size": "16MiB"},
    "memory.leak": {"rate": "1MiB/s", "size": "16MiB"},
    "disk.io": {"write": "1MiB/s", "file_size": "1MiB", "path": PRIVATE},
    "disk.fill": {"size": "4MiB", "path": PRIVATE},
    "disk.inodes": {"count": 50, "path": PRIVATE},
    "network.blackhole": {"to": "127.0.0.77", "port": 9},
    "dns.failure": {"names": "*.brownout.test"},
    "dns.delay": {"names": "*.brownout.test", "delay": "20ms"},
    "dns.answer": {"names": "*.brownout.test", "to": "127.0.0.1"},
    "network.corrupt": {"to": "127.0.0.79", "percent": 50},
    "network.duplicate": {"to": "127.0.0.79", "percent": 50},
    "network.latency": {"to": "127.0.0.79", "latency": "20ms"},
    "network.loss": {"to": "127.0.0.78", "percent": 50},
    "network.partition": {"to": "127.0.0.82"},
    "network.port_occupy": {"port": 9009},
    "network.reject": {"to": "127.0.0.79"},
    "network.rate": {"to": "127.0.0.79", "rate": "1mbit"},
    "network.reorder": {"to": "127.0.0.79", "percent": 50},
    "network.reset": {"to": "127.0.0.80"},
    "network.ephemeral_ports": {"to": "192.0.2.9", "port": 9},
    "network.interface_down": {"interface": STANDBY},
    "network.flap": {"to": "127.0.0.81", "every": "1s", "down": "500ms"},
    "process.pause": {"pid": VICTIM},
    "process.kill": {"pid": VICTIM},
    "process.fd_exhaustion": {"pid": VICTIM},
}
NEEDED_BY = {
    "CAP_NET_ADMIN": "network.loss",
    "CAP_SYS_PTRACE": "process.pause",
    "CAP_KILL": "process.kill",
    "CAP_SYS_NICE": "cpu.load",
    "CAP_DAC_OVERRIDE": "disk.fill",
    "CAP_SETUID": "memory.load",
    "CAP_SETGID": "memory.load",
}
"""A fault that cannot be without it; the others need it as well, for other reasons."""


def under(rights: Sequence[str]) -> list[str]:
    """The program and arguments that start another with these rights at most, as the unit does."""
    listed = ",".join(["-all", *(f"+{right.removeprefix('CAP_').lower()}" for right in rights)])
    # A new network namespace is made before the rights go; the unit has the host's.
    return ["unshare", "--net", "setpriv", f"--bounding-set={listed}", "--inh-caps=-all", "--no-new-privs", "--"]


async def comes_about(client: Client, kind: str, private: Path, victim: int) -> bool:
    """Inject one fault, see it active, stop it and see it clean; False when it never was active."""
    values = {PRIVATE: str(private), VICTIM: victim}
    parameters = {name: to_value(values.get(str(value), value)) for name, value in FAULTS[kind].items()}
    fault_id = new_id()
    client.inject(fault_id, kind=kind, parameters=parameters)
    reply = await client.reply()
    if reply.outcome != ACCEPTED:
        print(f"{kind} was refused: {reply}")
        return False
    first = await client.until(lambda m: m.HasField("report") and m.report.state != fault_pb2.RECORDED)
    if first.report.state != fault_pb2.ACTIVE:
        print(f"{kind} was never active: {first.report}")
        return False
    client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="seen"))
    assert not (await client.state(fault_pb2.CLEAN)).residue
    return True


@asynccontextmanager
async def nobodys_process() -> AsyncIterator[int]:
    """A process of nobody's that has become its program: `process.kill` refuses one that changes while it looks."""
    victim = await asyncio.create_subprocess_exec(
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert victim.stdin
    assert victim.stdout
    try:
        victim.stdin.write(b"there?\n")
        assert await victim.stdout.readline() == b"there?\n"
        yield victim.pid
    finally:
        if victim.returncode is None:
            victim.kill()
        await victim.wait()


def which_come_about(folder: Path, rights: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Those of `kinds` that come about in an injector with these rights, against a folder and processes of nobody's."""
    private = folder / "private"
    private.mkdir(mode=0o700)
    os.chown(private, 65534, 65534)
    found: list[str] = []

    async def told(folder: Path) -> None:
        async with injector(folder, under=under(rights)) as process:
            enter = ("nsenter", f"--target={process.pid}", "--net", "ip")
            for command in COMMANDS:
                made = await asyncio.create_subprocess_exec(*enter, *command.split())
                assert await made.wait() == 0
            client = await connect(folder)
            for kind in kinds:
                async with nobodys_process() as victim_pid:
                    if await comes_about(client, kind, private, victim_pid):
                        found.append(kind)

    story(told, folder)
    return found


def test_every_fault_works_with_the_units_capabilities_and_no_new_privileges(tmp_path: Path) -> None:
    assert which_come_about(tmp_path, RIGHTS, list(FAULTS)) == list(FAULTS)


@pytest.mark.parametrize("right", RIGHTS)
def test_no_capability_is_there_for_nothing(right: str, tmp_path: Path) -> None:
    kind = NEEDED_BY[right]
    assert which_come_about(tmp_path, [other for other in RIGHTS if other != right], [kind]) == []


def test_setpriv_takes_what_it_is_told_to() -> None:
    read = [sys.executable, "-c", "print(open('/proc/self/status').read())"]
    done = subprocess.run([*under(["CAP_KILL"]), *read], capture_output=True, text=True, check=True)
    assert "CapEff:\t0000000000000020" in done.stdout
    assert "NoNewPrivs:\t1" in done.stdout
