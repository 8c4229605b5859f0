"""disk.inodes on file systems of the test's own, judged by statvfs and by files that can, or cannot, be made."""

import asyncio
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Effect, Facts, Host, Record, Refusal
from brownout_agent.frames import to_value
from brownout_agent.injector.holder import Holder
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.processes import is_alive, send_signal
from brownout_protos.v1 import fault_pb2

from tests.support.disks import MIB, ext4, free_bytes, made_by
from tests.support.faultbench import Held, held
from tests.support.injectors import connect, holders, injector, new_id
from tests.support.polling import wait_until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with ext4(tmp_path, 64 * MIB, inodes=4096) as mount_point:
        yield mount_point


@contextmanager
def tmpfs(folder: Path, inodes: int) -> Iterator[Path]:
    """With so many inodes; 0 is no limit."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"nr_inodes={inodes}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def free_inodes(folder: Path) -> int:
    return os.statvfs(folder).f_ffree


def prepare(**parameters: object) -> Facts:
    fault = catalogue()["disk.inodes"]
    return fault.prepare(fault.Parameters.model_validate(parameters), Host())


def judged(fault: Held) -> Effect:
    fault.meter.sample()
    return fault.meter.effect()


def make_files(folder: Path, count: int, name: str = "victim") -> None:
    for number in range(count):
        (folder / f"{name}-{number}").touch()


def test_no_file_can_be_made_while_there_is_space_and_then_every_inode_is_back(disk: Path) -> None:
    before, space = free_inodes(disk), free_bytes(disk)

    async def scenario() -> None:
        async with held("disk.inodes", path=str(disk), leave=0) as fault:
            assert free_inodes(disk) == 0
            assert free_bytes(disk) == pytest.approx(space, abs=MIB)
            assert [entry.name for entry in disk.iterdir()] == ["lost+found"]
            for make in (Path.touch, Path.mkdir, lambda path: path.symlink_to("anything")):
                with pytest.raises(OSError, match="No space left") as refused:
                    make(disk / "victim")
                assert refused.value.errno == errno.ENOSPC
            effect = judged(fault)
            assert effect.proved, effect
            assert effect.achieved == effect.asked == before

    asyncio.run(scenario())
    assert free_inodes(disk) == before


def test_exactly_as_many_files_can_be_made_as_are_left(disk: Path) -> None:
    async def scenario() -> None:
        async with held("disk.inodes", path=str(disk), leave=100):
            make_files(disk, 100)
            with pytest.raises(OSError, match="No space left"):
                (disk / "one-too-many").touch()

    asyncio.run(scenario())


def test_a_level_counts_what_others_use(disk: Path) -> None:
    make_files(disk, 500)

    async def scenario() -> None:
        async with held("disk.inodes", path=str(disk), percent=60) as fault:
            found = os.statvfs(disk)
            assert found.f_files - found.f_ffree == int(found.f_files * 0.6)
            assert judged(fault).proved

    asyncio.run(scenario())


def test_all_are_back_when_the_holder_is_killed(disk: Path) -> None:
    before = free_inodes(disk)

    async def scenario() -> None:
        async with held("disk.inodes", path=str(disk), leave=0) as fault:
            send_signal(fault.holder.key, signal.SIGKILL)
            await asyncio.to_thread(wait_until, lambda: free_inodes(disk) == before, "the inodes are free again")
            assert not any(map(is_alive, fault.record.holders))

    asyncio.run(scenario())


def test_more_than_one_process_may_open_are_shared_among_several_and_all_go_with_the_first(disk: Path) -> None:
    """The hard limit is what counts, as it can be had without a right."""

    async def scenario() -> None:
        async with injector(disk, under=("prlimit", "--nofile=500:900")):
            before = free_inodes(disk)
            client, fault_id = await connect(disk), new_id()
            parameters = {"path": to_value(str(disk)), "count": to_value(3_000)}
            client.inject(fault_id, kind="disk.inodes", parameters=parameters)
            await client.state(fault_pb2.ACTIVE)
            assert before - 3_000 - 10 <= free_inodes(disk) <= before - 3_000, "some may be the injector's own"
            pids = holders(fault_id)
            assert len(pids) == 1 + 4
            os.kill(max(pids), signal.SIGKILL)
            await client.until(lambda message: "ended early with signal SIGKILL" in message.report.message)
            await client.state(fault_pb2.CLEAN)
            assert free_inodes(disk) >= before - 10
            client.writer.close()

    asyncio.run(scenario())


def test_a_host_that_crashes_has_them_all_back_when_it_mounts_the_disk_again(disk: Path, tmp_path: Path) -> None:
    before = free_inodes(disk)
    (again := tmp_path / "again").mkdir()

    async def scenario() -> None:
        async with held("disk.inodes", path=str(disk), leave=0):
            os.sync()
            shutil.copy(tmp_path / "image", tmp_path / "after-the-crash")

    asyncio.run(scenario())
    subprocess.run(["mount", "-o", "loop", str(tmp_path / "after-the-crash"), str(again)], check=True)
    try:
        assert free_inodes(again) == before
    finally:
        subprocess.run(["umount", str(again)], check=True)


def test_inodes_that_others_give_back_leave_it_unproved(disk: Path) -> None:
    make_files(disk, 500)

    async def scenario() -> None:
        async with held("disk.inodes", path=str(disk), leave=0) as fault:
            assert judged(fault).proved
            for file in disk.glob("victim-*"):
                file.unlink()
            effect = judged(fault)
            assert not effect.proved
            assert effect.achieved == effect.asked - 500
            assert "500 were left at the most" in effect.explanation

    asyncio.run(scenario())


def test_inodes_that_others_took_first_are_not_the_faults_and_it_says_why_it_has_no_more(disk: Path) -> None:
    """Between the look at the disk and the taking, others are faster."""
    fault = catalogue()["disk.inodes"]
    parameters = {"path": str(disk), "leave": 1}
    facts = prepare(**parameters)
    make_files(disk, 1_000)

    async def scenario() -> Effect:
        holder = await Holder.spawn(fault.kind, new_id())
        try:
            ends_ns = boottime_ns() + 30 * 10**9
            ready = await holder.go(parameters, facts, 30.0, lease_ends_ns=ends_ns, on_trial=False)
            wanted = fault.Parameters.model_validate(parameters)
            meter = fault.measure(Record("", wanted, {**facts, **ready.facts}, 30.0, holder.keys), Host())
            meter.sample()
            return meter.effect()
        finally:
            await holder.end()

    effect = asyncio.run(scenario())
    assert effect.achieved == effect.asked + 1, "there is none left"
    assert not effect.proved
    assert "It got no more: No space left on device." in effect.explanation


def test_memory_has_inodes_too_where_it_is_limited(tmp_path: Path) -> None:
    async def scenario(folder: Path) -> None:
        async with held("disk.inodes", path=str(folder), leave=0):
            with pytest.raises(OSError, match="No space left"):
                (folder / "victim").touch()

    with tmpfs(tmp_path / "memory", 3_000) as folder:
        asyncio.run(scenario(folder))
        (folder / "victim").touch()


def test_xfs_makes_inodes_of_space_and_still_has_no_more_than_its_limit(tmp_path: Path) -> None:
    async def scenario(disk: Path) -> None:
        async with held("disk.inodes", path=str(disk), leave=0) as fault:
            with pytest.raises(OSError, match="No space left"):
                (disk / "victim").touch()
            assert free_bytes(disk) > 64 * MIB
            assert judged(fault).proved, judged(fault)

    with made_by(["mkfs.xfs", "-q", "-i", "maxpct=1"], tmp_path, 320 * MIB) as disk:
        before = free_inodes(disk)
        asyncio.run(scenario(disk))
        wait_until(
            lambda: free_inodes(disk) >= before - 64, "xfs has freed them, in the background, and counts in chunks"
        )


def test_a_file_system_without_a_limit_on_inodes_is_refused_with_what_else_to_do(tmp_path: Path) -> None:
    refusals = []
    with made_by(["mkfs.btrfs", "-q"], tmp_path, 128 * MIB) as disk, tmpfs(tmp_path / "endless", 0) as memory:
        for folder in (disk, memory):
            with pytest.raises(Refusal, match="has no limit on inodes") as refused:
                prepare(path=str(folder), leave=0)
            refusals.append(refused.value.remedy)
    assert all("disk.fill" in remedy for remedy in refusals)


def test_what_would_take_everything_by_accident_or_too_much_of_the_host_is_refused(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="would leave 0 of them"):
        prepare(path=str(disk), percent=100)
    with pytest.raises(Refusal, match="nothing is to be taken"):
        prepare(path=str(disk), leave=100_000)
    with pytest.raises(Refusal, match="is not a folder"):
        prepare(path="/none", leave=1)
    with pytest.raises(Refusal, match="takes no unnamed file"):
        prepare(path="/proc", leave=1)
    with tmpfs(tmp_path / "large", 10**9) as large, pytest.raises(Refusal, match="can be held here") as refused:
        prepare(path=str(large), leave=0)
    assert "ask for fewer" in refused.value.remedy


def test_an_injector_without_an_inode_left_for_itself_undoes_it_all_the_same(disk: Path) -> None:
    before = free_inodes(disk)

    async def scenario() -> None:
        async with injector(disk):
            client, fault_id = await connect(disk), new_id()
            parameters = {"path": to_value(str(disk)), "leave": to_value(0)}
            client.inject(fault_id, kind="disk.inodes", parameters=parameters)
            await client.state(fault_pb2.ACTIVE)
            assert free_inodes(disk) == 0
            client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="enough"))
            report = await client.state(fault_pb2.CLEAN)
            assert not report.residue
            assert free_inodes(disk) > before - 20, "all but the injector's own"
            client.writer.close()

    asyncio.run(scenario())
