"""An injector that runs out of descriptors, threads or processes: it refuses orders, and undoes what is running."""

import asyncio
import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from brownout_protos.v1 import fault_pb2

from tests.support.injectors import REFUSED, Client, connect, holders, injector, new_id, story
from tests.support.polling import wait_until

pytestmark = pytest.mark.root

PIDS = Path("/sys/fs/cgroup/pids")


@contextlib.contextmanager
def no_more_descriptors(pid: int) -> Iterator[None]:
    """Those that it has open stay, and not one more can be had."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, hard))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def no_more_processes(pid: int) -> Iterator[None]:
    """As many processes and threads as it has now, by a control group of its own."""
    group = PIDS / f"exhaustion-test-{pid}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "pids.max").write_text((group / "pids.current").read_text())
        yield
    finally:
        (group / "pids.max").write_text("max")
        for one in (group / "cgroup.procs").read_text().split():
            (PIDS / "cgroup.procs").write_text(one)
        group.rmdir()


async def over(client: Client, fault_id: str) -> fault_pb2.FaultReport:
    """The first report by which a fault is over."""
    ends = {fault_pb2.CLEAN, fault_pb2.RESIDUE}
    return (await client.until(lambda said: said.report.fault_id == fault_id and said.report.state in ends)).report


async def never_in_effect(client: Client) -> None:
    """A new order is refused, or its fault fails before it is in effect."""
    fault_id = new_id()
    client.inject(fault_id)
    reply = await client.reply()
    assert reply.fault_id == fault_id
    if reply.outcome == REFUSED:
        assert reply.reason
        return
    report = await over(client, fault_id)
    assert report.end_cause == fault_pb2.APPLY_FAILED, report
    assert holders(fault_id) == []


async def works_again(client: Client, process: asyncio.subprocess.Process) -> None:
    fault_id = new_id()
    client.inject(fault_id, duration_ms=300)
    assert (await over(client, fault_id)).end_cause == fault_pb2.DURATION
    process.terminate()
    assert await process.wait() == 0


needs_pids = pytest.mark.skipif(not (PIDS / "cgroup.procs").exists(), reason="no pids controller of version 1 here")


@needs_pids
@pytest.mark.parametrize("ends", ["by a stop", "by its time"])
def test_without_a_thread_or_process_left_an_injector_takes_nothing_on_and_undoes_what_runs(
    tmp_path: Path, ends: str
) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder) as process:
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id, duration_ms=6_000 if ends == "by its time" else 60_000)
            await client.state(fault_pb2.ACTIVE)
            with no_more_processes(process.pid):
                await never_in_effect(client)
                if ends == "by a stop":
                    client.send(stop=fault_pb2.Stop(fault_id=fault_id))
                assert (await over(client, fault_id)).state == fault_pb2.CLEAN
                assert holders(fault_id) == []
            await works_again(client, process)

    story(told, tmp_path)


def test_without_descriptors_the_kernel_ends_what_runs_and_the_next_one_is_used_to_verify_it(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder) as process:
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id, duration_ms=5_000)
            await client.state(fault_pb2.ACTIVE)
            with no_more_descriptors(process.pid):
                await never_in_effect(client)
                report = await over(client, fault_id)
                assert report.state == fault_pb2.RESIDUE, "nobody could look, so nobody says that it is clean"
                wait_until(lambda: holders(fault_id) == [], "the kernel ends its holder by its time", within_s=1.0)
            report = await over(client, fault_id)
            assert report.state == fault_pb2.CLEAN
            await works_again(client, process)

    story(told, tmp_path)
