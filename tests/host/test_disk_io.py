"""disk.io on a real disk, judged from /proc/PID/io, the folder and the file system by the test itself."""

import asyncio
import itertools
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Refusal
from brownout_agent.faults.disk_io import _random_pages, _read, _write
from brownout_agent.kernel.disks import ScratchFile, filesystem_of
from brownout_agent.kernel.processes import ProcessKey, is_alive, send_signal

from tests.support.control_groups import limited
from tests.support.disks import MIB, ext4, free_bytes
from tests.support.faultbench import held
from tests.support.polling import wait_until

pytestmark = pytest.mark.alone

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and control groups need root")


def moved_bytes(pid: int | str) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {name: int(count) for name, count in (line.split(": ") for line in lines)}


@pytest.fixture
def disk_folder() -> Iterator[str]:
    """A folder on a disk: /tmp, where pytest's own folders are, is memory on many hosts."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system of 96 MiB of its own, on a loop device."""
    with ext4(tmp_path, 96 * MIB) as mount_point:
        yield mount_point


def test_both_rates_reach_the_disk_and_nothing_is_to_be_seen_in_the_folder(disk_folder: str) -> None:
    async def scenario() -> None:
        async with held("disk.io", path=disk_folder, file_size="8MiB", read="6MiB/s", write="3MiB/s") as fault:
            pids = {way: pair[0] for way, pair in fault.record.facts["workers"].items()}
            loop = asyncio.get_running_loop()
            began_s, before = loop.time(), {way: moved_bytes(pid) for way, pid in pids.items()}
            for _ in range(4):
                await asyncio.sleep(1)
                fault.meter.sample()
            after, seconds = {way: moved_bytes(pid) for way, pid in pids.items()}, loop.time() - began_s
            assert list(Path(disk_folder).iterdir()) == []
            effect = fault.meter.effect()
        read_bps = (after["read"]["read_bytes"] - before["read"]["read_bytes"]) / seconds
        write_bps = (after["write"]["write_bytes"] - before["write"]["write_bytes"]) / seconds
        assert read_bps == pytest.approx(6 * MIB, rel=0.15)
        assert write_bps == pytest.approx(3 * MIB, rel=0.15)
        assert effect.asked == 9 * MIB
        assert effect.achieved == pytest.approx(read_bps + write_bps, rel=0.1)
        assert effect.samples == 4

    asyncio.run(scenario())


def test_nothing_runs_on_after_the_holder_was_killed(disk_folder: str) -> None:
    async def scenario() -> None:
        async with held("disk.io", path=disk_folder, file_size="1MiB", write="1MiB/s", read="1MiB/s") as fault:
            processes = fault.record.holders
            assert len(processes) == 3
            assert all(is_alive(process) for process in processes)
            send_signal(fault.holder.key, signal.SIGKILL)
            await fault.holder.died()
            wait_until(lambda: not any(is_alive(process) for process in processes), "its workers are dead", 1.0)

    asyncio.run(scenario())


@pytest.mark.root
@NEEDS_ROOT
def test_requests_come_at_the_asked_rate_to_random_places_and_the_kernel_sees_each(disk_folder: str) -> None:
    async def scenario() -> list[int]:
        asked: dict[str, Any] = {"read_iops": 200, "block": "8KiB", "pattern": "random", "file_size": "4MiB"}
        async with held("disk.io", path=disk_folder, **asked) as fault:
            (worker,) = (pair[0] for pair in fault.record.facts["workers"].values())
            argv = ["strace", "-qq", "-e", "trace=preadv,preadv2", "-p", str(worker)]
            tracer = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
            before = moved_bytes(worker)
            await asyncio.sleep(3)
            after = moved_bytes(worker)
            fault.meter.sample()
            effect = fault.meter.effect()
            tracer.send_signal(signal.SIGINT)
            _, said = await tracer.communicate()
        assert (after["syscr"] - before["syscr"]) / 3 == pytest.approx(200, rel=0.1)
        assert (after["read_bytes"] - before["read_bytes"]) / 3 == pytest.approx(200 * 8192, rel=0.1)
        assert effect.asked == 200 * 8192
        assert "requests of 8 KiB a second" in effect.explanation
        assert "at random places" in effect.explanation
        return [int(place) for place in re.findall(r"iov_len=8192}\], 1, (\d+)", said.decode())]

    places = asyncio.run(scenario())
    assert len(places) > 200
    assert all(place % 8192 == 0 and 0 <= place < 4 * MIB for place in places)
    assert len({*places}) > 150, "of 512 places"
    follow = sum(after == before + 8192 for before, after in itertools.pairwise(places))
    assert follow < len(places) / 20


@pytest.mark.root
@NEEDS_ROOT
@pytest.mark.parametrize("fsync", [True, False])
def test_with_fsync_the_disk_is_told_to_flush_for_every_write(small_disk: Path, fsync: bool) -> None:
    def flushes() -> int:
        """Flush requests completed, the 16th number of /sys/block/NAME/stat (Documentation/block/stat.rst)."""
        number = small_disk.stat().st_dev
        return int(Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text().split()[15])

    async def scenario() -> None:
        asked: dict[str, Any] = {"write_iops": 50, "block": "4KiB", "file_size": "4MiB", "fsync": fsync}
        async with held("disk.io", path=str(small_disk), **asked) as fault:
            worker = fault.record.facts["workers"]["write"][0]
            before, writes_before = flushes(), moved_bytes(worker)["syscw"]
            await asyncio.sleep(3)
            flushed, written = flushes() - before, moved_bytes(worker)["syscw"] - writes_before
            fault.meter.sample()
            assert ("each write followed by fsync" in fault.meter.effect().explanation) == fsync
        assert written == pytest.approx(150, rel=0.15)
        if fsync:
            assert flushed >= written * 0.95
        else:
            assert flushed <= written / 5

    asyncio.run(scenario())


@pytest.mark.root
@NEEDS_ROOT
def test_the_working_set_takes_its_space_and_the_kernel_gives_it_back(small_disk: Path) -> None:
    async def scenario() -> None:
        before = free_bytes(small_disk)
        async with held("disk.io", path=str(small_disk), file_size="8MiB", write="1MiB/s") as fault:
            assert before - free_bytes(small_disk) == pytest.approx(8 * MIB, abs=MIB / 4)
            for key in fault.record.holders:
                send_signal(key, signal.SIGKILL)
            await fault.holder.died()
            wait_until(lambda: free_bytes(small_disk) == before, "the space is free again")
        assert list(small_disk.iterdir()) == [small_disk / "lost+found"]

    asyncio.run(scenario())


@pytest.mark.root
@NEEDS_ROOT
def test_a_disk_without_room_for_the_working_set_is_refused(small_disk: Path) -> None:
    fault = catalogue()["disk.io"]
    parameters = fault.Parameters.model_validate({"write": "1MiB/s", "path": str(small_disk)})
    with pytest.raises(Refusal, match="a working set of 64 MiB needs 64 MiB more") as refused:
        fault.prepare(parameters, Host())
    assert "`file_size` smaller" in refused.value.remedy


@pytest.mark.root
@NEEDS_ROOT
@pytest.mark.parametrize(
    ("kind", "parameters"), [("disk.io", {"write": "1MiB/s", "file_size": "1MiB"}), ("disk.fill", {"size": "1MiB"})]
)
def test_a_read_only_disk_is_refused_with_where_else(small_disk: Path, kind: str, parameters: dict[str, str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    fault = catalogue()[kind]
    with pytest.raises(Refusal, match="Read-only file system") as refused:
        fault.prepare(fault.Parameters.model_validate({**parameters, "path": str(small_disk)}), Host())
    assert "ReadWritePaths=" in refused.value.remedy


@pytest.mark.root
@NEEDS_ROOT
def test_a_disk_that_cannot_keep_up_leaves_the_rate_unproved(disk_folder: str) -> None:
    device = Path(disk_folder).stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"

    async def scenario() -> None:
        async with held("disk.io", path=disk_folder, file_size="1MiB", write="20MiB/s") as fault:
            for _ in range(3):
                await asyncio.sleep(1)
                fault.meter.sample()
            effect = fault.meter.effect()
        assert not effect.proved
        assert effect.achieved is not None
        assert effect.achieved < 10 * MIB
        assert "did not keep up with the write rate" in effect.explanation

    slow = {"blkio.throttle.write_bps_device": f"{name} {2 * MIB}"}
    with limited("io", version_1=slow, version_2={"io.max": f"{name} wbps={2 * MIB}"}):
        asyncio.run(scenario())


def test_a_folder_in_memory_is_no_disk() -> None:
    fault = catalogue()["disk.io"]
    assert filesystem_of("/dev/shm") == "tmpfs"
    with pytest.raises(Refusal, match="on tmpfs, which is memory and no disk") as refused:
        fault.prepare(fault.Parameters.model_validate({"write": "1MiB/s", "path": "/dev/shm"}), Host())
    assert "`path`" in refused.value.remedy


@pytest.mark.parametrize("path", ["/var/tmp/no-such-folder", "/etc/hostname"])
def test_what_is_no_folder_is_refused(path: str) -> None:
    fault = catalogue()["disk.io"]
    assert fault.detect(Host()).able
    with pytest.raises(Refusal, match="is not a folder on this host"):
        fault.prepare(fault.Parameters.model_validate({"write": "1MiB/s", "path": path}), Host())


def test_a_folder_that_takes_no_unnamed_file_is_refused() -> None:
    fault = catalogue()["disk.io"]
    with pytest.raises(Refusal, match="O_TMPFILE"):
        fault.prepare(fault.Parameters.model_validate({"write": "1MiB/s", "path": "/proc"}), Host())


def test_without_direct_io_every_block_reaches_the_disk_all_the_same(disk_folder: str) -> None:
    descriptor = os.open(disk_folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        file, buffer = ScratchFile(descriptor, is_direct=False), _random_pages(MIB)
        start = moved_bytes("self")
        _write(file, buffer, 0)
        _read(file, buffer, 0)
        _read(file, buffer, 0)
        end = moved_bytes("self")
    finally:
        os.close(descriptor)
    a_few_pages_of_metadata = 64 * 1024
    assert 0 <= end["write_bytes"] - start["write_bytes"] - MIB <= a_few_pages_of_metadata
    assert 0 <= end["read_bytes"] - start["read_bytes"] - 2 * MIB <= a_few_pages_of_metadata


def test_the_meter_names_workers_by_pid_and_start_time(disk_folder: str) -> None:
    async def scenario() -> None:
        async with held("disk.io", path=disk_folder, file_size="1MiB", read="1MiB/s") as fault:
            worker = ProcessKey.from_json(fault.record.facts["workers"]["read"])
            assert worker in fault.record.holders
            send_signal(worker, signal.SIGKILL)
            await fault.holder.died()
            fault.meter.sample()
            effect = fault.meter.effect()
        assert effect.achieved is None
        assert not effect.proved

    asyncio.run(scenario())
