"""process.freeze judged by its victims: what they answer, what CPU time they use, and what the kernel says of them."""

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

from tests.support.busy import busy_program
from tests.support.control_groups import LIMITS, new_group
from tests.support.faultbench import held
from tests.support.polling import wait_until
from tests.support.told_program import told_program

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="makes control groups")]
THAWED, FROZEN = {"0", "THAWED"}, {"1", "FROZEN"}


@pytest.fixture
def group() -> Iterator[Path]:
    with new_group("freezer", *LIMITS["freezer"]) as made:
        yield made


def recorded(host: Host | None = None, **parameters: Any) -> Record[Any]:
    """As the journal has it before anything is applied."""
    fault = catalogue()["process.freeze"]
    model = fault.Parameters.model_validate(parameters)
    return Record("id", model, fault.prepare(model, host or Host()), 1.0)


def state_file(group: Path) -> Path:
    (file,) = [group / name for name in LIMITS["freezer"] if (group / name).exists()]
    return file


def state(group: Path) -> str:
    return state_file(group).read_text().strip()


def freeze(group: Path) -> None:
    state_file(group).write_text("1" if state(group) == "0" else "FROZEN")
    wait_until(lambda: state(group) in FROZEN, "it is frozen")  # version 1 says FREEZING until all of it stand still


def thaw(group: Path) -> None:
    state_file(group).write_text("0" if state(group) == "1" else "THAWED")


def test_all_stand_still_until_it_is_over_and_then_do_what_they_were_told_meanwhile(group: Path) -> None:
    async def scene() -> None:
        token = f"frozen-{os.getpid()}"
        with told_program(token, group=group) as told, busy_program(group, word=token) as busy, told_program() as free:
            assert told.process.stdin is not None
            async with held("process.freeze", command=token) as it:
                assert state(group) in FROZEN
                used = busy.cpu_times()[:2]
                told.process.stdin.write("thread\n")
                told.process.stdin.flush()
                for _ in range(3):
                    assert free.does("thread") == "ok"
                    it.meter.sample()
                assert busy.cpu_times()[:2] == used
                assert len(os.listdir(f"/proc/{told.pid}/task")) == 1, "it has not done what it was told"  # noqa: PTH208
                effect = it.meter.effect()
                assert (effect.achieved, effect.proved) == (100, True), effect
            assert state(group) in THAWED
            assert told.process.stdout is not None
            assert told.process.stdout.readline() == "ok\n"
            wait_until(lambda: busy.cpu_times()[:2] > used, "it runs again")

    asyncio.run(scene())


def test_it_outlives_a_killed_holder_and_the_journal_thaws_once_or_twice(group: Path) -> None:
    async def scene() -> None:
        with told_program(group=group) as told:
            async with held("process.freeze", pid=told.pid) as it:
                send_signal(it.holder.key, signal.SIGKILL)
                assert wait_dead([it.holder.key], 5) == []
                (left,) = it.fault.residue(it.record)
                assert left.startswith(f"{state_file(group)} is still ")
                for _ in range(2):
                    it.fault.undo(it.record)
                    assert state(group) in THAWED
                    assert it.fault.residue(it.record) == []
            assert told.does("thread") == "ok"

    asyncio.run(scene())


def test_a_group_that_somebody_thaws_meanwhile_was_not_frozen_all_the_time(group: Path) -> None:
    async def scene() -> None:
        with told_program(group=group) as told:
            async with held("process.freeze", pid=told.pid) as it:
                it.meter.sample()
                thaw(group)
                assert told.does("thread") == "ok"
                it.meter.sample()
                effect = it.meter.effect()
                assert (effect.achieved, effect.proved) == (50, False)
                assert "which somebody else wrote, at reading 2" in effect.explanation

    asyncio.run(scene())


def test_what_is_frozen_already_or_below_what_is_frozen_is_refused_and_stays(group: Path) -> None:
    inner = group / "inner"
    inner.mkdir()
    with told_program(group=inner) as told:
        try:
            freeze(group)
            with pytest.raises(Refusal, match=f"{inner} is frozen already, or one above it is"):
                recorded(pid=told.pid)
        finally:
            thaw(group)
        record = recorded(pid=told.pid)
        freeze(group)
        try:
            assert catalogue()["process.freeze"].residue(record) == [], "it is not this group that was frozen"
            catalogue()["process.freeze"].undo(record)
            assert state(group) in FROZEN
        finally:
            thaw(group)


def test_what_must_live_is_not_frozen(group: Path) -> None:
    with told_program(group=group) as told, told_program(group=group) as other:
        with pytest.raises(Refusal, match="is part of Brownout"):
            recorded(Host(protected_pids=frozenset({other.pid})), pid=told.pid)
        with pytest.raises(Refusal, match="does not match"):
            recorded(pid=told.pid)
    in_no_group_of_its_own = r"root control group|controller is off|is protected|pid 1"
    with told_program() as told, pytest.raises(Refusal, match=in_no_group_of_its_own):
        recorded(pid=told.pid)
