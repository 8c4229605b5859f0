"""cpu.load on this host, judged from /proc and the scheduler by the test itself."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Effect, Host, Refusal
from brownout_agent.kernel.processes import ProcessKey, is_alive, send_signal

from tests.support.control_groups import limited
from tests.support.faultbench import Held, held
from tests.support.polling import wait_until

pytestmark = pytest.mark.alone

CORE = min(os.sched_getaffinity(0))
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="control groups and low nice values need root")
PRECEDENCE = -20 if os.geteuid() == 0 else 0
"""Where it may, a test of the level itself takes precedence over whatever else runs on this machine."""
SPIN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile True: pass"


def workers_of(fault: Held) -> list[ProcessKey]:
    return [ProcessKey.from_json(pair) for pair in fault.record.facts["workers"]]


def idle_ticks(core: int) -> tuple[int, int]:
    """(idle and iowait, all) clock ticks of one core since boot."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    columns = [int(column) for column in line.split()[1:9]]
    return columns[3] + columns[4], sum(columns)


def scheduled_s(pid: int) -> float:
    """Seconds on a CPU, from the scheduler's own books."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def effect_after(fault: Held, seconds: int) -> Effect:
    for _ in range(seconds):
        await asyncio.sleep(1)
        fault.meter.sample()
    return fault.meter.effect()


@contextmanager
def rival_on(core: int) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", SPIN, str(core)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def test_a_core_comes_to_the_percentage_whatever_others_use() -> None:
    async def scenario() -> None:
        async with held("cpu.load", percent=60, cores=[CORE], nice=PRECEDENCE) as fault:
            worker = workers_of(fault)[0]
            (idle, total), own_s = idle_ticks(CORE), scheduled_s(worker.pid)
            effect = await effect_after(fault, 6)
            (idle_after, total_after), own_after_s = idle_ticks(CORE), scheduled_s(worker.pid)
        busy_percent = 100 * (1 - (idle_after - idle) / (total_after - total))
        own_percent = 100 * (own_after_s - own_s) / ((total_after - total) / os.sysconf("SC_CLK_TCK"))
        assert busy_percent >= 55
        # Only strangers can have brought the core above what was asked.
        assert busy_percent <= 65 or busy_percent - own_percent >= 20
        assert effect.achieved is not None
        assert effect.achieved == pytest.approx(busy_percent, abs=2)
        assert effect.samples == 6

    asyncio.run(scenario())


def test_own_load_is_used_by_pinned_workers_on_every_chosen_core() -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]

    async def scenario() -> None:
        async with held("cpu.load", percent=30, of="own", cores=cores, nice=PRECEDENCE) as fault:
            workers = workers_of(fault)
            assert [os.sched_getaffinity(worker.pid) for worker in workers] == [{core} for core in cores]
            assert {os.getpriority(os.PRIO_PROCESS, worker.pid) for worker in workers} == {PRECEDENCE}
            loop = asyncio.get_running_loop()
            began_s, before_s = loop.time(), [scheduled_s(worker.pid) for worker in workers]
            effect = await effect_after(fault, 4)
            seconds = loop.time() - began_s
            shares = [
                (scheduled_s(worker.pid) - before) / seconds for worker, before in zip(workers, before_s, strict=True)
            ]
        assert shares == pytest.approx([0.3] * len(cores), abs=0.03)
        assert effect.proved, effect.explanation
        assert effect.achieved == pytest.approx(30, abs=3)

    asyncio.run(scenario())


def test_nothing_runs_on_after_the_holder_was_killed() -> None:
    async def scenario() -> None:
        async with held("cpu.load", percent=20) as fault:
            processes = fault.record.holders
            assert len(processes) == 1 + len(os.sched_getaffinity(0)) + 1, "holder, workers, regulator"
            assert all(is_alive(process) for process in processes)
            send_signal(fault.holder.key, signal.SIGKILL)
            await fault.holder.died()
            wait_until(lambda: not any(is_alive(process) for process in processes), "its workers are dead", 1.0)

    asyncio.run(scenario())


def test_a_worker_that_dies_ends_the_fault_instead_of_leaving_half_of_it() -> None:
    async def scenario() -> None:
        async with held("cpu.load", percent=10) as fault:
            send_signal(workers_of(fault)[0], signal.SIGKILL)
            words = await asyncio.wait_for(fault.holder.died(), 5)
        assert "ended early" in words

    asyncio.run(scenario())


def test_a_rival_above_the_percentage_leaves_nothing_to_add_and_nothing_proved() -> None:
    async def scenario() -> None:
        with rival_on(CORE):
            async with held("cpu.load", percent=30, cores=[CORE]) as fault:
                effect = await effect_after(fault, 4)
                used_s = scheduled_s(workers_of(fault)[0].pid)
        assert used_s < 0.6
        assert not effect.proved
        assert effect.achieved is not None
        assert effect.achieved > 90
        assert "Others used" in effect.explanation

    asyncio.run(scenario())


def test_a_rival_that_wins_leaves_own_load_unproved_and_the_remedy_named() -> None:
    async def scenario() -> None:
        with rival_on(CORE):
            async with held("cpu.load", percent=90, of="own", cores=[CORE], nice=10) as fault:
                effect = await effect_after(fault, 3)
        assert not effect.proved
        assert "won over it; a lower `nice`" in effect.explanation

    asyncio.run(scenario())


@pytest.mark.root
@NEEDS_ROOT
def test_a_negative_nice_value_wins_over_a_rival() -> None:
    async def scenario() -> None:
        with rival_on(CORE):
            async with held("cpu.load", percent=80, of="own", cores=[CORE], nice=-20) as fault:
                effect = await effect_after(fault, 3)
        assert effect.achieved is not None
        assert effect.achieved > 60, f"a fair half would be 50: {effect.explanation}"

    asyncio.run(scenario())


@pytest.mark.root
@NEEDS_ROOT
def test_a_load_that_a_control_group_starves_is_not_proved_and_says_which() -> None:
    async def scenario(group: Path) -> None:
        async with held("cpu.load", percent=95, of="own") as fault:
            effect = await effect_after(fault, 3)
        assert not effect.proved
        assert str(group) in effect.explanation
        assert "held the group back" in effect.explanation

    quota = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "40000"}
    with limited("cpu", version_1=quota, version_2={"cpu.max": "40000 100000"}) as group:
        asyncio.run(scenario(group))


def test_a_core_that_this_host_does_not_have_is_refused_with_those_it_has() -> None:
    fault = catalogue()["cpu.load"]
    assert fault.detect(Host()).able
    with pytest.raises(Refusal, match="core 4095 is not available") as refused:
        fault.prepare(fault.Parameters.model_validate({"percent": 50, "cores": [CORE, 4095]}), Host())
    assert f"`cores: {CORE}`" in refused.value.remedy
