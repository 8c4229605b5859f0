"""disk.fill on an ext4 file system of the test's own, judged by statvfs and by a write that fails."""

import asyncio
import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Refusal
from brownout_agent.kernel.processes import send_signal
from pydantic import ValidationError

from tests.support.disks import MIB, ext4, free_bytes
from tests.support.faultbench import held
from tests.support.polling import wait_until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with ext4(tmp_path, 256 * MIB) as mount_point:
        yield mount_point


def prepare(**parameters: object) -> dict[str, object]:
    fault = catalogue()["disk.fill"]
    return fault.prepare(fault.Parameters.model_validate(parameters), Host())


def test_it_leaves_what_was_asked_and_gives_everything_back(disk: Path) -> None:
    before = free_bytes(disk)

    async def scenario() -> None:
        async with held("disk.fill", path=str(disk), leave="20MiB") as fault:
            assert abs(free_bytes(disk) - 20 * MIB) <= MIB
            assert [entry.name for entry in disk.iterdir()] == ["lost+found"]
            with pytest.raises(OSError, match="No space left") as full:
                (disk / "victim").write_bytes(b"x" * 30 * MIB)
            assert full.value.errno == errno.ENOSPC
            (disk / "victim").unlink()
            fault.meter.sample()
            assert fault.meter.effect().proved, fault.meter.effect()

    asyncio.run(scenario())
    assert free_bytes(disk) == before


def test_a_full_disk_is_given_back_when_the_holder_is_killed(disk: Path) -> None:
    before = free_bytes(disk)

    async def scenario() -> None:
        async with held("disk.fill", path=str(disk), leave="1MiB") as fault:
            send_signal(fault.holder.key, signal.SIGKILL)
            await asyncio.to_thread(wait_until, lambda: free_bytes(disk) == before, "the space is free again")

    asyncio.run(scenario())


def test_a_level_counts_what_others_use(disk: Path) -> None:
    (disk / "others").write_bytes(b"x" * 40 * MIB)

    async def scenario() -> None:
        async with held("disk.fill", path=str(disk), percent=60):
            space = os.statvfs(disk)
            used = space.f_blocks - space.f_bfree
            assert 100 * used / (used + space.f_bavail) == pytest.approx(60, abs=1)

    asyncio.run(scenario())


@pytest.mark.parametrize("parameters", [{}, {"size": "2MiB", "percent": 5}, {"percent": 0}, {"leave": "-1MiB"}])
def test_wrong_parameters_are_refused(disk: Path, parameters: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        prepare(path=str(disk), **parameters)


def test_what_would_fill_everything_by_accident_is_refused(disk: Path) -> None:
    with pytest.raises(Refusal, match="would leave"):
        prepare(path=str(disk), percent=99)
    with pytest.raises(Refusal, match="less than asked for already"):
        prepare(path=str(disk), leave="10GiB")
    with pytest.raises(Refusal, match="is not a folder"):
        prepare(path="/none", leave="1MiB")
    with pytest.raises(Refusal, match="takes no unnamed file"):
        prepare(path="/proc", leave="1MiB")
