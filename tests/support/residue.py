"""Whether asking leaves anything behind in this process: descriptors, tasks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from brownout_agent.observe import Probe, Sample

SETTLE_S = 1.0


def open_descriptors() -> set[int]:
    """The numbers of this process's open descriptors."""
    listed = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    # The descriptor that did the listing is among them, and closed by now.
    return {number for number in listed if Path(f"/proc/self/fd/{number}").is_symlink()}


def _opened() -> set[str]:
    """What this process's descriptors lead to: sockets and pipes with their inodes, files with their paths.

    gRPC, loaded by other tests of the process, makes anonymous inodes (eventfd, epoll) whenever it likes, so those say
    nothing about the code under test; what that code opens comes with a socket, a pipe or a file.
    """
    leads_to = set()
    for number in open_descriptors():
        with contextlib.suppress(FileNotFoundError):
            leads_to.add(str(Path(f"/proc/self/fd/{number}").readlink()))
    return {target for target in leads_to if not target.startswith("anon_inode:")}


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Fail when what is done inside leaves a descriptor or a task behind.

    Descriptors get a second to go: peers that run as threads of the test close their ends after ours.
    """
    before = _opened()
    yield
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_S
    while (left := _opened() - before) and loop.time() < deadline:
        await asyncio.sleep(0.005)
    assert not left, f"left open: {sorted(left)}"
    assert asyncio.all_tasks() == {asyncio.current_task()}, "a task is still running"


def ask(probe: Probe) -> Sample:
    """Ask once, in a loop of its own, and fail when the question leaves anything behind."""

    async def audited() -> Sample:
        async with nothing_left():
            return await probe.ask()

    return asyncio.run(audited())
