"""Whether asking leaves anything behind in this process: descriptors, tasks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from brownout_agent.observe import Probe, Sample

SETTLE_S = 1.0


def open_descriptors() -> set[str]:
    """What this process's descriptors lead to: sockets and pipes with their inodes, files with their paths.

    gRPC, loaded by other tests of the process, makes anonymous inodes (eventfd, epoll) whenever it likes, so those say
    nothing about the code under test; what that code opens comes with a socket, a pipe or a file.
    """
    leads_to = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor that does the listing is among them
            leads_to.add(str(entry.readlink()))
    return {target for target in leads_to if not target.startswith(("anon_inode:", "/proc/"))}


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Fail when what is done inside leaves a descriptor or a task behind.

    Descriptors get a second to go: peers that run as threads of the test close their ends after ours.
    """
    before = open_descriptors()
    yield
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_S
    while (left := open_descriptors() - before) and loop.time() < deadline:
        await asyncio.sleep(0.005)
    assert not left, f"left open: {sorted(left)}"
    assert asyncio.all_tasks() == {asyncio.current_task()}, "a task is still running"


def ask(probe: Probe) -> Sample:
    """Ask once, in a loop of its own, and fail when the question leaves anything behind."""

    async def audited() -> Sample:
        async with nothing_left():
            return await probe.ask()

    return asyncio.run(audited())
