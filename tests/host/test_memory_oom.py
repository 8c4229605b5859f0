"""memory.oom judged by the kernel's counts, by who lives on, and by what is left of its groups."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Record
from brownout_agent.faults.memory_limit import times_killed
from brownout_agent.frames import to_value
from brownout_agent.kernel.memory import oom_kills, read_meminfo
from brownout_agent.kernel.own_groups import parents
from brownout_agent.kernel.processes import is_alive, send_signal, wait_dead
from brownout_protos.v1 import fault_pb2

from tests.support.faultbench import Held, held
from tests.support.injectors import ACCEPTED, connect, injector, new_id, story, watchdogs_done
from tests.support.polling import wait_until
from tests.support.told_program import told_program

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="makes control groups")]


def hog_group(it: Held) -> Path:
    return Path(it.record.facts["hog_parent"]) / f"brownout-fault-{it.record.fault_id}-hog"


def groups(fault_id: str) -> list[Path]:
    return [found for parent in parents() for found in parent.glob(f"brownout-fault-{fault_id}*")]


def test_the_kernel_kills_one_at_every_beat_and_nobody_else() -> None:
    async def scene() -> None:
        before = oom_kills()
        async with held("memory.oom", size="32MiB", every="1s") as it:
            first = times_killed(hog_group(it))
            assert first >= 1, "it is ready once the first was killed"
            at_once_s = time.monotonic()
            await asyncio.to_thread(wait_until, lambda: times_killed(hog_group(it)) >= first + 2, "two more")
            assert time.monotonic() - at_once_s > 0.9
            it.meter.sample()
            effect = it.meter.effect()
            assert effect.proved, effect
            assert effect.achieved == times_killed(hog_group(it))
            assert all(is_alive(key) for key in it.record.holders), "only hogs are killed"
            assert oom_kills() - before >= effect.achieved

    asyncio.run(scene())


def test_a_hog_never_has_more_than_its_group_may_and_the_host_never_lacks_it() -> None:
    async def scene() -> None:
        async with held("memory.oom", size="64MiB", every="1s") as it:
            group = hog_group(it)
            names = ("memory.peak", "memory.max_usage_in_bytes")
            files = [group / name for name in names if (group / name).exists()]
            if not files:
                pytest.skip("this kernel keeps no peak of a group's memory")
            assert 32 * 2**20 < int(files[0].read_text()) <= 64 * 2**20
            assert read_meminfo()["MemAvailable"] > 256 * 2**20

    asyncio.run(scene())


def test_a_hog_dies_with_its_holder_and_the_journal_removes_the_groups_once_or_twice() -> None:
    async def scene() -> None:
        async with held("memory.oom", size="16MiB", every="1s") as it:
            group = hog_group(it)
            send_signal(it.holder.key, signal.SIGKILL)
            assert wait_dead(it.record.holders, 5) == []
            wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
            assert f"control group {group} is still there" in it.fault.residue(it.record)
            for _ in range(2):
                it.fault.undo(it.record)
                assert not group.exists()
                assert it.fault.residue(it.record) == []

    asyncio.run(scene())


def test_half_an_apply_leaves_nothing_after_its_undo() -> None:
    fault = catalogue()["memory.oom"]
    model = fault.Parameters()
    record = Record("half-applied", model, fault.prepare(model, Host()), 1.0)
    fault.undo(record)  # nothing was made yet
    group = Path(record.facts["hog_parent"]) / "brownout-fault-half-applied-hog"
    group.mkdir()
    with told_program(group=group) as hog:
        fault.undo(record)
        assert hog.process.wait(5) == -signal.SIGKILL
    assert fault.residue(record) == []


def test_it_ends_with_its_injector_and_leaves_no_group(tmp_path: Path) -> None:
    fault_id = new_id()

    async def told(folder: Path) -> None:
        async with injector(folder) as process:
            client = await connect(folder)
            parameters = {"size": to_value("16MiB"), "every": to_value("1s")}
            client.inject(fault_id, kind="memory.oom", parameters=parameters)
            assert (await client.reply()).outcome == ACCEPTED
            await client.state(fault_pb2.ACTIVE)
            assert groups(fault_id)
            process.kill()
            await process.wait()
            await watchdogs_done(folder)
        assert groups(fault_id) == []

    story(told, tmp_path)
