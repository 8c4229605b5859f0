"""SIGTERM while a fault is being brought about, and the kernel's own timer of a fault."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest
from brownout_agent.injector.journal import Journal
from brownout_protos.v1 import fault_pb2

from tests.support.injectors import connect, holders, injector, new_id, story

pytestmark = pytest.mark.root

CLOCK_BOOTTIME = 7
"""linux/time.h"""


@pytest.mark.parametrize("after", ["order", "reply", "record", "holder", "active"])
def test_sigterm_at_any_moment_of_a_start_undoes_first_and_a_second_changes_nothing(tmp_path: Path, after: str) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder) as process:
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id)
            await client.writer.drain()
            if after == "reply":
                await client.reply()
            elif after == "record":
                await client.state(fault_pb2.RECORDED)
            elif after == "holder":
                async with asyncio.timeout(20):
                    while not holders(fault_id):
                        await asyncio.sleep(0.001)
            elif after == "active":
                await client.state(fault_pb2.ACTIVE)
            descriptor = os.pidfd_open(process.pid)
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            await asyncio.sleep(0)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            os.close(descriptor)
            assert await process.wait() == 0
            assert holders(fault_id) == []
        journal = Journal(folder / "state", wait_s=10)
        assert journal.unfinished == []
        journal.close()

    story(told, tmp_path)


def test_the_kernels_timer_of_a_fault_counts_the_time_that_a_host_sleeps(tmp_path: Path) -> None:
    """Read from /proc/PID/timers (proc(5)): CLOCK_BOOTTIME goes on in suspend, and SIGKILL needs nobody to be awake."""

    async def told(folder: Path) -> None:
        async with injector(folder):
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id)
            await client.state(fault_pb2.ACTIVE)
            timers = [Path(f"/proc/{pid}/timers").read_text() for pid in holders(fault_id)]
            assert timers
            for text in timers:
                assert f"ClockID: {CLOCK_BOOTTIME}\n" in text, text
                assert f"signal: {int(signal.SIGKILL)}/" in text, text
            client.send(stop=fault_pb2.Stop(fault_id=fault_id))
            await client.state(fault_pb2.CLEAN)

    story(told, tmp_path)
