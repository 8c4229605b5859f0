"""memory.limit judged by its victims: who is killed and who is not; and by what the kernel counts of the group."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Record, Refusal
from brownout_agent.kernel.processes import send_signal, wait_dead

from tests.support.control_groups import LIMITS, new_group
from tests.support.disks import MIB
from tests.support.faultbench import held
from tests.support.told_program import TAKEN_BYTES, Told, told_program

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="makes control groups")]


@pytest.fixture
def group() -> Iterator[Path]:
    with new_group("memory", *LIMITS["memory"]) as made:
        yield made


def recorded(host: Host | None = None, **parameters: Any) -> Record[Any]:
    """As the journal has it before anything is applied."""
    fault = catalogue()["memory.limit"]
    model = fault.Parameters.model_validate({"beyond": "kill", **parameters})
    return Record("id", model, fault.prepare(model, host or Host()), 1.0)


def limit_file(group: Path) -> Path:
    """The hard limit."""
    (file,) = [group / name for name in ("memory.limit_in_bytes", "memory.max") if (group / name).exists()]
    return file


def used_bytes(group: Path) -> int:
    names = ("memory.usage_in_bytes", "memory.current")
    return int(next((group / name).read_text() for name in names if (group / name).exists()))


def take_until_killed(told: Told) -> int:
    """How often it could."""
    times = 0
    while told.does("take") == "ok":
        times += 1
    return times


def test_who_wants_more_than_the_limit_is_killed_and_nobody_else(group: Path) -> None:
    async def scene() -> None:
        before = limit_file(group).read_text()
        with told_program(group=group) as told, told_program() as bystander:
            limit = used_bytes(group) + 3 * TAKEN_BYTES
            async with held("memory.limit", pid=told.pid, limit=f"{limit}B", beyond="kill") as it:
                assert limit_file(group).read_text() != before
                it.meter.sample()
                assert not it.meter.effect().proved
                assert 1 <= take_until_killed(told) <= 3
                assert told.process.wait(5) == -signal.SIGKILL
                it.meter.sample()
                effect = it.meter.effect()
                assert effect.proved, effect
                assert "and the kernel killed 1 of it for that" in effect.explanation
                assert all(bystander.does("take") == "ok" for _ in range(4))
            assert limit_file(group).read_text() == before

    asyncio.run(scene())


def test_page_cache_is_taken_back_before_anybody_is_killed(group: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        with told_program(str(tmp_path / "file"), group=group) as told:
            limit = used_bytes(group) + 2 * TAKEN_BYTES
            async with held("memory.limit", pid=told.pid, limit=f"{limit}B", beyond="kill") as it:
                assert all(told.does("cache") == "ok" for _ in range(4))
                it.meter.sample()
                effect = it.meter.effect()
                assert effect.proved, effect
                assert effect.achieved is not None
                assert limit / 2 < effect.achieved <= limit
                assert "and the kernel killed 0 of it" in effect.explanation

    asyncio.run(scene())


def test_the_limit_outlives_a_killed_holder_and_the_journal_gives_it_back_once_or_twice(group: Path) -> None:
    async def scene() -> None:
        file = limit_file(group)
        before = file.read_text()
        with told_program(group=group) as told:
            async with held("memory.limit", pid=told.pid, limit="512MiB", beyond="kill") as it:
                send_signal(it.holder.key, signal.SIGKILL)
                assert wait_dead([it.holder.key], 5) == []
                assert int(file.read_text()) == 512 * MIB
                says = f"{file} is still {512 * MIB}; next: echo {before.strip()} > {file}"
                assert it.fault.residue(it.record) == [says]
                for _ in range(2):
                    it.fault.undo(it.record)
                    assert file.read_text() == before
                    assert it.fault.residue(it.record) == []

    asyncio.run(scene())


def test_a_limit_that_would_kill_at_once_is_refused_unless_it_is_asked_for(group: Path) -> None:
    async def scene() -> None:
        with told_program(group=group) as told:
            assert [told.does("take") for _ in range(3)] == ["ok"] * 3
            less = f"{2 * TAKEN_BYTES}B"
            with pytest.raises(Refusal, match="one of it would be killed at once") as caught:
                recorded(pid=told.pid, limit=less)
            assert "kill_at_once: true" in caught.value.remedy
            assert recorded(pid=told.pid, limit=f"{used_bytes(group) + MIB}B").facts["group"] == str(group)
            async with held("memory.limit", pid=told.pid, limit=less, beyond="kill", kill_at_once=True):
                pass

    if limit_file(group).name == "memory.max":
        asyncio.run(scene())
    else:  # version 1 does not take what it cannot bring about without a kill
        with pytest.raises(Exception, match="does not take `33554432`: Device or resource busy"):
            asyncio.run(scene())


def test_slowness_takes_version_2(group: Path) -> None:
    with told_program(group=group) as told:
        if (group / "memory.high").exists():
            assert recorded(pid=told.pid, limit="512MiB", beyond="slow").facts["settings"][0]["file"].endswith("high")
            return
        with pytest.raises(Refusal, match=r"it has no memory\.high") as caught:
            recorded(pid=told.pid, limit="512MiB", beyond="slow")
        assert caught.value.remedy == "write `beyond: kill`"


def test_a_limit_that_is_there_already_or_above_it_is_refused(group: Path) -> None:
    inner = group / "inner"
    inner.mkdir()
    limit_file(group).write_text(str(256 * MIB))
    for place in (group, inner):
        if not limit_file(place).exists():
            continue
        with told_program(group=place) as told:
            with pytest.raises(Refusal, match=f"{limit_file(group)} is 256 MiB already"):
                recorded(pid=told.pid, limit="256MiB")
            assert recorded(pid=told.pid, limit="255MiB").facts["group"] == str(place)
