"""memory.load on this host, judged from /proc by the test itself; what could hurt runs under a real memory limit."""

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
from brownout_agent.faults.contract import Host, Refusal
from brownout_agent.kernel.processes import ProcessKey, is_alive, send_signal

from tests.support.control_groups import limited
from tests.support.faultbench import Held, held
from tests.support.polling import wait_until

pytestmark = pytest.mark.alone

MIB = 2**20
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")
# Of the rival and this process, which is large by now, the kernel is to kill the rival if it kills more than the fault.
TAKE = """
import mmap, sys
open("/proc/self/oom_score_adj", "w").write("500")
memory = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for position in range(0, len(memory), mmap.PAGESIZE):
    memory[position] = 1
print(flush=True)
sys.stdin.readline()
"""


def keeper_of(fault: Held) -> ProcessKey:
    return ProcessKey.from_json(fault.record.facts["keeper"])


def status_bytes(fault: Held, name: str) -> int:
    """One size of /proc/PID/status of the process that holds the memory."""
    lines = Path(f"/proc/{keeper_of(fault).pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@contextmanager
def rival_that_takes(size_bytes: int) -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", TAKE, str(size_bytes)], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def memory_limited(size_bytes: int) -> Iterator[Path]:
    size = str(size_bytes)
    with limited("memory", version_1={"memory.limit_in_bytes": size}, version_2={"memory.max": size}) as group:
        yield group


def test_the_size_is_resident_to_the_page_and_gone_with_the_holder() -> None:
    async def scenario() -> None:
        async with held("memory.load", size="192MiB") as fault:
            resident = status_bytes(fault, "RssAnon")
            assert 192 * MIB <= resident <= (192 + 40) * MIB, "the mapping, and an interpreter beside it"
            fault.meter.sample()
            effect = fault.meter.effect()
            assert effect.achieved == effect.lowest == effect.highest == 192 * MIB
            assert effect.proved, effect.explanation
            assert len([*Path(f"/proc/{keeper_of(fault).pid}/task").iterdir()]) == 1
            assert Path(f"/proc/{keeper_of(fault).pid}/oom_score_adj").read_text().strip() == "1000"
            send_signal(fault.holder.key, signal.SIGKILL)
            await fault.holder.died()
            wait_until(lambda: not is_alive(keeper_of(fault)), "the memory's process died with its holder")
            fault.meter.sample()
            after = fault.meter.effect()
        assert not after.proved
        assert "died before its time" in after.explanation

    asyncio.run(scenario())


def test_a_percentage_is_of_the_memory_that_is_available() -> None:
    async def scenario() -> None:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        async with held("memory.load", percent=1, reserve="64MiB") as fault:
            fault.meter.sample()
            effect = fault.meter.effect()
        assert effect.asked == pytest.approx(available * 0.01, rel=0.1)
        assert effect.achieved == pytest.approx(effect.asked, rel=0.01)

    asyncio.run(scenario())


@pytest.mark.root
@NEEDS_ROOT
def test_locked_memory_cannot_be_swapped_out() -> None:
    async def scenario() -> None:
        async with held("memory.load", size="64MiB") as fault:
            assert status_bytes(fault, "VmLck") == 64 * MIB
            assert "locked in RAM" in fault.meter.effect().explanation

    asyncio.run(scenario())


@pytest.mark.root
@NEEDS_ROOT
def test_it_gives_back_what_others_need_and_takes_it_again_when_they_are_done() -> None:
    async def scenario(group: Path) -> None:
        async with held("memory.load", size="200MiB", reserve="64MiB") as fault:
            assert status_bytes(fault, "VmLck") == 200 * MIB
            full = status_bytes(fault, "VmRSS")
            with rival_that_takes(130 * MIB) as rival:
                wait_until(lambda: status_bytes(fault, "VmRSS") < full - 10 * MIB, "it gave memory back")
                assert rival.poll() is None
                fault.meter.sample()
                assert "never takes the reserve" in fault.meter.effect().explanation
            wait_until(lambda: status_bytes(fault, "VmRSS") > full - MIB, "it took the memory again")
            assert "locked in RAM" in fault.meter.effect().explanation
            assert is_alive(keeper_of(fault))
        assert group.exists()

    with memory_limited(400 * MIB) as group:
        asyncio.run(scenario(group))


@pytest.mark.root
@NEEDS_ROOT
def test_when_memory_runs_out_the_fault_dies_first_and_the_effect_says_so() -> None:
    """Its process is stopped, so that it cannot give back in time; the kernel then has to choose a victim.

    More than once: with a second thread in that process the kernel kills another one as well, but not always.
    """

    async def scenario() -> None:
        async with held("memory.load", size="150MiB", reserve="64MiB") as fault:
            fault.meter.sample()
            send_signal(keeper_of(fault), signal.SIGSTOP)
            with rival_that_takes(250 * MIB) as rival:
                words = await asyncio.wait_for(fault.holder.died(), 10)
                assert rival.poll() is None
            fault.meter.sample()
            effect = fault.meter.effect()
        assert "SIGKILL" in words
        assert not effect.proved
        assert "OOM killer" in effect.explanation

    for _ in range(5):
        with memory_limited(350 * MIB):
            asyncio.run(scenario())


@pytest.mark.root
@NEEDS_ROOT
def test_what_would_eat_into_the_reserve_of_the_control_group_is_refused_with_what_fits() -> None:
    fault = catalogue()["memory.load"]
    parameters = fault.Parameters.model_validate({"size": "300MiB", "reserve": "128MiB"})
    with memory_limited(350 * MIB) as group, pytest.raises(Refusal, match="eat into the reserve") as refused:
        fault.prepare(parameters, Host())
    assert f"limit of control group {group}" in refused.value.reason
    assert "ask for at most `size: 2" in refused.value.remedy


def test_what_would_eat_into_the_reserve_of_the_host_is_refused() -> None:
    fault = catalogue()["memory.load"]
    assert fault.detect(Host()).able
    with pytest.raises(Refusal, match="eat into the reserve"):
        fault.prepare(fault.Parameters.model_validate({"percent": 100}), Host())
