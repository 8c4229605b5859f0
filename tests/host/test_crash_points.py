"""The injector is killed before and after every write of its journal: nothing was on without a record, nothing stays.

strace(1) delivers SIGKILL at the entry of the system call, so that the kernel never carries it out: at pwrite64 the
mark is missing, at fdatasync it stands and nothing that follows it has begun. The watchdog must do the rest.
"""

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest
from brownout_agent.frames import to_value
from brownout_agent.injector.journal import FINISHED, Mark, decode
from brownout_agent.kernel.processes import ProcessKey, is_alive, key_of, read_stat
from brownout_protos.v1 import fault_pb2

from tests.support.injectors import connect, holders, injector, new_id, running, story

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: traces, pauses and restarts programs"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]

WRITES = (Mark.RECORDED, Mark.HELD, Mark.ACTIVE, Mark.UNDOING, Mark.CLEAN)
"""In the order of a fault's life; the journal's first write of all is its renewal at the start."""
GONE_WITHIN_S = 30.0


def under_strace(call: str, mark: Mark) -> list[str]:
    when = WRITES.index(mark) + 2
    return ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"]


async def crash(folder: Path, call: str, mark: Mark, kind: str, program: Path) -> str:
    """Bring the fault about and stop it, until the injector dies on the way; returns the fault's id."""
    fault_id = new_id()
    parameters = {"command": to_value(str(program))}
    if kind == "process.kill":
        parameters["restart"] = to_value(True)
    async with injector(folder, under=under_strace(call, mark)) as process:
        client = await connect(folder)
        client.inject(fault_id, kind=kind, parameters=parameters)
        with contextlib.suppress(AssertionError, ConnectionError):  # it may be dead by now
            await client.state(fault_pb2.ACTIVE)
            client.send(stop=fault_pb2.Stop(fault_id=fault_id))
        async with asyncio.timeout(20):
            assert await process.wait() == -signal.SIGKILL
    return fault_id


def victim_of(program: Path) -> ProcessKey:
    """The one process that runs the program."""
    (pid,) = running(program)
    key = key_of(pid)
    assert key is not None
    return key


def runs(program: Path) -> bool:
    """Exactly one process runs the program, and it does run."""
    stats = [read_stat(pid) for pid in running(program)]
    return [stat.state for stat in stats if stat is not None] == ["S"]


def all_clean(folder: Path) -> bool:
    entries = decode((folder / "state/journal").read_bytes()).entries
    return all(entry.mark in FINISHED for entry in entries.values())


@pytest.mark.parametrize("kind", ["process.kill", "process.pause"])
@pytest.mark.parametrize("mark", WRITES)
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
def test_killed_at_any_write_it_leaves_nothing_on_and_had_nothing_on_without_a_record(
    tmp_path: Path, call: str, mark: Mark, kind: str
) -> None:
    program = tmp_path / "sleeper"
    shutil.copy("/bin/sleep", program)

    async def told(folder: Path) -> None:
        victim = await asyncio.create_subprocess_exec(program, "3600", start_new_session=True)
        async with asyncio.timeout(5):
            while not runs(program):
                await asyncio.sleep(0.01)
        before = victim_of(program)
        try:
            fault_id = await crash(folder, call, mark, kind, program)
            async with asyncio.timeout(GONE_WITHIN_S):
                while holders(fault_id) or not runs(program) or not all_clean(folder):
                    await asyncio.sleep(0.02)
            is_known = fault_id in decode((folder / "state/journal").read_bytes()).entries
            assert is_known != ((call, mark) == ("pwrite64", Mark.RECORDED))
            if kind == "process.kill":
                was_applied = WRITES.index(mark) >= WRITES.index(Mark.ACTIVE)
                assert is_alive(before) != was_applied
        finally:
            for pid in running(program):
                os.kill(pid, signal.SIGKILL)
            await victim.wait()

    story(told, tmp_path)
