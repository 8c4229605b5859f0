"""How long each kill switch takes, ROUNDS times each, from the switch to a clean kernel.

.venv/bin/python -m tests.bench.halting [ROUNDS]        as root; writes docs/halting.md
"""

import asyncio
import contextlib
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from brownout_agent.frames import to_value
from brownout_agent.kernel.processes import read_stat
from brownout_protos.v1 import fault_pb2

from tests.support.injectors import BIN, Client, clients, connect, holders, injector, new_id

ROUNDS = 20
DOCUMENT = Path(__file__).parents[2] / "docs/halting.md"
_VICTIM = "import time\nwhile True: time.sleep(0.05)"
_CLEAN_WITHIN_S = 30.0


@dataclass
class Host:
    """An injector of its own with three kinds of fault on, and a process that one of them has paused."""

    folder: Path
    injector: asyncio.subprocess.Process
    client: Client
    fault_ids: list[str]
    victim: asyncio.subprocess.Process

    @property
    def stop_file(self) -> Path:
        return self.folder / "etc" / "STOP"

    def is_clean(self) -> bool:
        """By /proc alone."""
        stat = read_stat(self.victim.pid)
        return stat is not None and stat.state not in "tT" and not any(map(holders, self.fault_ids))


@contextlib.asynccontextmanager
async def host(folder: Path) -> AsyncIterator[Host]:
    """With every fault in effect."""
    (folder / "policy.yaml").write_text(
        'version: 1\nenvironment: staging\nfaults: {"*": {allow: true}}\nlimits: {concurrent: 8}\n'
        f"stop_file: {folder}/etc/STOP\n"
    )
    (folder / "etc").mkdir()
    mark = f"victim-{folder.name}"
    victim = await asyncio.create_subprocess_exec(sys.executable, "-c", _VICTIM, mark)
    faults: dict[str, dict[str, object]] = {
        "cpu.load": {"percent": 1, "of": "own", "cores": "0"},
        "memory.load": {"size": "16MiB"},
        "process.pause": {"command": mark},
    }
    async with injector(folder, "--policy", str(folder / "policy.yaml"), embedded=False) as process:
        it = Host(folder, process, await connect(folder), [], victim)
        try:
            for kind, values in faults.items():
                it.fault_ids.append(new_id())
                parameters = {name: to_value(value) for name, value in values.items()}
                it.client.inject(it.fault_ids[-1], kind=kind, parameters=parameters)
                await it.client.state(fault_pb2.ACTIVE)
            yield it
        finally:
            clients.pop().writer.close()
            victim.kill()
            await victim.wait()


async def stop_file(it: Host) -> None:
    """`touch STOP`."""
    it.stop_file.touch()


async def stop_file_in_another_folder(it: Host) -> None:
    """The same, in a folder that has just taken the place of the one that is watched."""
    it.stop_file.parent.rmdir()
    it.stop_file.parent.mkdir()
    it.stop_file.touch()


async def on_the_wire(it: Host) -> None:
    """Halt, as a controller's comes through the agent."""
    it.client.send(halt=fault_pb2.Halt(halt_id="bench"))


async def by_command(it: Host) -> None:
    """`brownout-injector halt`, its own start included; it returns when it knows that all is clean."""
    argv = [BIN / "brownout-injector", "halt", "--policy", it.folder / "policy.yaml"]
    argv += ["--state-dir", it.folder / "state", "--socket", it.folder / "s.sock"]
    process = await asyncio.create_subprocess_exec(*map(str, argv), stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
    assert it.is_clean(), "it said that all is clean"


async def by_command_beside_a_stopped_injector(it: Host) -> None:
    """The same, after SIGSTOP of the injector."""
    it.injector.send_signal(signal.SIGSTOP)
    await by_command(it)


async def by_command_after_a_killed_injector(it: Host) -> None:
    """The same, after SIGKILL of the injector."""
    it.injector.kill()
    await by_command(it)


SWITCHES: dict[str, Callable[[Host], Awaitable[None]]] = {
    "STOP file": stop_file,
    "STOP file, its folder replaced": stop_file_in_another_folder,
    "Halt on the wire": on_the_wire,
    "`brownout-injector halt`": by_command,
    "the same, injector stopped": by_command_beside_a_stopped_injector,
    "the same, injector killed": by_command_after_a_killed_injector,
}


async def trial(switch: Callable[[Host], Awaitable[None]]) -> float:
    """Seconds from the switch to a clean kernel."""
    with tempfile.TemporaryDirectory(prefix="bo-") as folder:
        async with host(Path(folder)) as it:
            begun_s = time.monotonic()
            await switch(it)
            while not it.is_clean():
                assert time.monotonic() - begun_s < _CLEAN_WITHIN_S, "not clean"
                await asyncio.sleep(0.005)  # the kernel gives no event for this
            return time.monotonic() - begun_s


def main() -> None:
    """Run and write the document."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    lines = ["| switch | median | p99 | maximum |", "|---|---|---|---|"]
    for name, switch in SWITCHES.items():
        times = sorted(asyncio.run(trial(switch)) for _ in range(rounds))
        p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
        lines.append(f"| {name} | {statistics.median(times):.2f} s | {p99:.2f} s | {times[-1]:.2f} s |")
        print(lines[-1], file=sys.stderr)
    text = f"""# Halting a host

Each trial: an injector with `cpu.load`, `memory.load` and `process.pause` on, then the switch. Seconds from the switch
to a kernel in which no holder lives and the paused process goes on, read from `/proc` by another process. The commands'
times include the start of their own Python.

{chr(10).join(lines)}

{rounds} trials each, 0 leftovers. By `python -m tests.bench.halting {rounds}` on Linux {platform.release()} with
{os.cpu_count()} cores at a load average of {os.getloadavg()[1]:.0f}.
"""
    DOCUMENT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
