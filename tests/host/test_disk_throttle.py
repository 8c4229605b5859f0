"""disk.throttle judged by what its victims have written to a disk of the test's own, as /proc/PID/io has it."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Record, Refusal
from brownout_agent.faults.group_limit import Setting
from brownout_agent.kernel.disks import whole_disk
from brownout_agent.kernel.processes import send_signal, wait_dead

from tests.support.busy import writing_program
from tests.support.control_groups import LIMITS, new_group
from tests.support.disks import MIB, ext4
from tests.support.faultbench import held
from tests.support.told_program import told_program

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="makes control groups")]


@pytest.fixture
def group() -> Iterator[Path]:
    with new_group("io", *LIMITS["io"]) as made:
        yield made


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with ext4(tmp_path, 64 * MIB) as mounted:
        yield mounted


def recorded(path: Path, host: Host | None = None, **parameters: Any) -> Record[Any]:
    """As the journal has it before anything is applied."""
    fault = catalogue()["disk.throttle"]
    model = fault.Parameters.model_validate({"path": str(path), **parameters})
    return Record("id", model, fault.prepare(model, host or Host()), 1.0)


def limits(group: Path) -> dict[str, str]:
    """What every limit of the group says."""
    return {file.name: file.read_text() for name in LIMITS["io"] for file in [group / name] if file.exists()}


def written_rate(process: psutil.Process, seconds: float) -> float:
    """Bytes a second that reach the disk in the next seconds."""
    begun_s, written = time.monotonic(), process.io_counters().write_bytes
    time.sleep(seconds)  # what is measured is what happens in this time
    return (process.io_counters().write_bytes - written) / (time.monotonic() - begun_s)


@pytest.mark.alone
def test_it_writes_as_fast_as_it_may_and_no_faster_until_it_is_over(group: Path, disk: Path) -> None:
    async def scene() -> None:
        before = limits(group)
        with writing_program(disk / "file", group) as victim, writing_program(disk / "other") as bystander:
            async with held("disk.throttle", pid=victim.pid, path=str(disk), write="1MiB/s", read_iops=7) as it:
                assert limits(group) != before
                rate = await asyncio.to_thread(written_rate, victim, 3.0)
                it.meter.sample()
                effect = it.meter.effect()
                assert effect.proved, effect
                assert rate == pytest.approx(MIB, rel=0.1), "64 KiB at either end of 3 s, and the kernel's slices"
                assert effect.achieved == pytest.approx(100 * rate / MIB, abs=10)
                assert "0.0 reads/s of 7.0 reads/s" in effect.explanation
                assert written_rate(bystander, 0.5) > 1.5 * MIB, "nobody else is held back"
            assert limits(group) == before
            assert written_rate(victim, 0.5) > 1.5 * MIB

    asyncio.run(scene())


def test_limits_on_other_disks_and_in_other_directions_stay(group: Path, disk: Path) -> None:
    other = whole_disk("/")
    if other is None:
        pytest.skip("/ is on no single disk")

    async def scene() -> None:
        is_v2 = (group / "io.max").exists()
        file = group / ("io.max" if is_v2 else "blkio.throttle.write_bps_device")
        file.write_text(f"{other} wbps=5000000" if is_v2 else f"{other} 5000000")
        before = limits(group)
        with told_program(group=group) as told:
            async with held("disk.throttle", pid=told.pid, path=str(disk), write="1MiB/s", read="2MiB/s") as it:
                assert set(file.read_text().splitlines()) > set(before[file.name].splitlines())
                send_signal(it.holder.key, signal.SIGKILL)
                assert wait_dead([it.holder.key], 5) == []
                assert all(f"{whole_disk(str(disk))} " in left for left in it.fault.residue(it.record))
                assert len(it.fault.residue(it.record)) == 2
                for _ in range(2):
                    it.fault.undo(it.record)
                    assert limits(group) == before
                    assert it.fault.residue(it.record) == []

    asyncio.run(scene())


def test_who_never_comes_up_to_the_limit_is_not_throttled(group: Path, disk: Path) -> None:
    async def scene() -> None:
        with told_program(group=group) as told:
            async with held("disk.throttle", pid=told.pid, path=str(disk), write="1MiB/s") as it:
                it.meter.sample()
                effect = it.meter.effect()
                assert not effect.proved
                assert "it never came up to a limit" in effect.explanation

    asyncio.run(scene())


def test_a_limit_that_is_there_already_and_a_folder_that_is_on_no_disk_are_refused(group: Path, disk: Path) -> None:
    with told_program(group=group) as told:
        with pytest.raises(Refusal, match="/proc is on no disk of its own"):
            recorded(Path("/proc"), pid=told.pid, write="1MiB/s")
        record = recorded(disk, pid=told.pid, write="1MiB/s")
        for plain in record.facts["settings"]:
            setting = Setting(**plain)
            Path(setting.file).write_text(setting.as_written(setting.ours))
        with pytest.raises(Refusal, match="may write no more than 1048576 a second already"):
            recorded(disk, pid=told.pid, write="1MiB/s")
        inner = group / "inner"
        inner.mkdir()
        if any((inner / name).exists() for name in LIMITS["io"]):
            with told_program(group=inner) as below, pytest.raises(Refusal, match="no more than 1048576"):
                recorded(disk, pid=below.pid, write="2MiB/s")


def test_it_keeps_to_the_folders_of_the_policy(group: Path, disk: Path) -> None:
    with (
        told_program(group=group) as told,
        pytest.raises(Refusal, match="is not below a folder that this host's policy"),
    ):
        recorded(disk, Host(folders=("/srv",)), pid=told.pid, write="1MiB/s")
