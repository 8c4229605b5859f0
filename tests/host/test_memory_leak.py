"""memory.leak on this host, judged from /proc/PID/status by the test itself; rivals run under a real memory limit."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Refusal
from brownout_agent.kernel.processes import is_alive

from tests.host.test_memory_load import MIB, NEEDS_ROOT, keeper_of, memory_limited, rival_that_takes, status_bytes
from tests.support.faultbench import Held, held
from tests.support.polling import wait_until


def anonymous_bytes(fault: Held) -> int:
    """Its memory in RAM that is no file's: the mapping and, beside it, the interpreter's, which does not grow."""
    return status_bytes(fault, "RssAnon")


async def watch(fault: Held, seconds: float) -> list[tuple[float, int]]:
    """(seconds, resident bytes) ten times a second; the meter reads once a second beside it."""
    began_s, readings, next_sample_s = time.monotonic(), [], 0.0
    while (now_s := time.monotonic() - began_s) < seconds:
        readings.append((now_s, anonymous_bytes(fault)))
        if now_s >= next_sample_s:
            fault.meter.sample()
            next_sample_s += 1.0
        await asyncio.sleep(0.1)
    return readings


def slope_bps(readings: list[tuple[float, int]]) -> float:
    """Least squares: bytes a second."""
    count = len(readings)
    mean_s, mean = sum(at for at, _ in readings) / count, sum(value for _, value in readings) / count
    above = sum((at - mean_s) * (value - mean) for at, value in readings)
    return above / sum((at - mean_s) ** 2 for at, _ in readings)


def test_it_grows_at_the_asked_rate_and_all_of_it_is_resident() -> None:
    async def scenario() -> None:
        async with held("memory.leak", rate="40MiB/s", size="1GiB", reserve="64MiB") as fault:
            readings = await watch(fault, 4.0)
            effect = fault.meter.effect()
        assert slope_bps(readings) == pytest.approx(40 * MIB, rel=0.03)
        assert effect.proved, effect.explanation
        assert effect.achieved == pytest.approx(effect.asked, abs=8 * MIB)
        assert effect.asked == pytest.approx(3.05 * 40 * MIB, rel=0.1)
        assert (effect.lowest or 0) < effect.asked / 2, "it began with next to nothing"

    asyncio.run(scenario())


def test_it_stops_at_its_size_to_the_page_and_stays_there() -> None:
    async def scenario() -> None:
        async with held("memory.leak", rate="200MiB/s", size="100MiB", reserve="64MiB") as fault:
            fault.meter.sample()
            begun = anonymous_bytes(fault)
            assert begun < 60 * MIB
            wait_until(lambda: _resident(fault) == 100 * MIB, "it is complete")
            await watch(fault, 2.2)
            effect = fault.meter.effect()
            assert effect.achieved == effect.asked == effect.highest == 100 * MIB
            assert effect.proved, effect.explanation
        assert not is_alive(keeper_of(fault))

    asyncio.run(scenario())


def _resident(fault: Held) -> int:
    """The largest mapping's resident bytes (/proc/PID/smaps)."""
    lines = Path(f"/proc/{keeper_of(fault).pid}/smaps").read_text().splitlines()
    return max(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))


@pytest.mark.root
@NEEDS_ROOT
def test_a_leak_leaves_the_reserve_and_says_why_it_fell_behind_its_line() -> None:
    async def scenario() -> None:
        async with held("memory.leak", rate="60MiB/s", size="230MiB", reserve="64MiB") as fault:
            with rival_that_takes(150 * MIB) as rival:
                await watch(fault, 5.0)
                assert rival.poll() is None
                assert _resident(fault) < 200 * MIB
            effect = fault.meter.effect()
            assert not effect.proved
            assert "never takes the reserve of 64 MiB" in effect.explanation
            wait_until(lambda: _resident(fault) == 230 * MIB, "it took what was asked once there was room", 10)
            assert is_alive(keeper_of(fault))

    with memory_limited(400 * MIB):
        asyncio.run(scenario())


def test_a_leak_that_would_come_to_the_reserve_is_refused_at_once() -> None:
    fault = catalogue()["memory.leak"]
    parameters = fault.Parameters.model_validate({"rate": "1MiB/s", "percent": 100})
    with pytest.raises(Refusal, match="would eat into the reserve"):
        fault.prepare(parameters, Host())


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="whose limit on locked memory may be low")
def test_what_it_has_grown_to_is_locked() -> None:
    async def scenario() -> None:
        async with held("memory.leak", rate="100MiB/s", size="64MiB", reserve="64MiB") as fault:
            fault.meter.sample()
            assert "locked in RAM" in fault.meter.effect().explanation
            assert status_bytes(fault, "VmLck") == 64 * MIB, "the whole mapping, of which what is there counts"

    asyncio.run(scenario())
