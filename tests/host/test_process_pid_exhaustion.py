"""process.pid_exhaustion judged by its victims: EAGAIN from fork(2), threads that do not start."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Record, Refusal
from brownout_agent.kernel.processes import send_signal, wait_dead

from tests.support.faultbench import held
from tests.support.polling import wait_until
from tests.support.told_program import pids_group, told_program

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="makes control groups")]


@pytest.fixture
def group() -> Iterator[Path]:
    with pids_group() as made:
        yield made


def recorded(host: Host | None = None, **parameters: Any) -> Record[Any]:
    """As the journal has it before anything is applied."""
    fault = catalogue()["process.pid_exhaustion"]
    model = fault.Parameters.model_validate(parameters)
    return Record("id", model, fault.prepare(model, host or Host()), 1.0)


def limit_of(group: Path) -> str:
    return (group / "pids.max").read_text().strip()


@pytest.mark.parametrize("before", ["max", "5000"])
@pytest.mark.parametrize("leave", [0, 2])
def test_no_process_and_no_thread_can_be_started_until_it_is_over(group: Path, leave: int, before: str) -> None:
    async def scene() -> None:
        (group / "pids.max").write_text(before)
        with told_program(group=group) as told, told_program() as bystander:
            async with held("process.pid_exhaustion", pid=told.pid, leave=leave) as it:
                answers = [told.does("start") for _ in range(leave + 1)]
                assert all(answer.isdecimal() for answer in answers[:-1])
                assert answers[-1] == "EAGAIN"
                assert told.does("thread") == "can't start new thread"
                assert bystander.does("start").isdecimal()
                it.meter.sample()
                effect = it.meter.effect()
                assert effect.proved, effect
                assert "the kernel has refused 2 meanwhile" in effect.explanation
            assert limit_of(group) == before
            assert told.does("start").isdecimal()
            assert told.does("thread") == "ok"

    asyncio.run(scene())


def test_the_limit_outlives_a_killed_holder_and_the_journal_gives_it_back_once_or_twice(group: Path) -> None:
    async def scene() -> None:
        with told_program(group=group) as told:
            async with held("process.pid_exhaustion", pid=told.pid) as it:
                send_signal(it.holder.key, signal.SIGKILL)
                assert wait_dead([it.holder.key], 5) == []
                assert it.fault.residue(it.record) == [
                    f"{group}/pids.max is still 1; next: echo max > {group}/pids.max"
                ]
                for _ in range(2):
                    it.fault.undo(it.record)
                    assert limit_of(group) == "max"
                    assert it.fault.residue(it.record) == []

    asyncio.run(scene())


def test_what_was_never_applied_or_written_by_somebody_else_meanwhile_is_left_alone(group: Path) -> None:
    async def scene() -> None:
        with told_program(group=group) as told:
            record = recorded(pid=told.pid)
            catalogue()["process.pid_exhaustion"].undo(record)
            assert limit_of(group) == "max"
            async with held("process.pid_exhaustion", pid=told.pid) as it:
                it.meter.sample()
                (group / "pids.max").write_text("99")
                it.meter.sample()
                effect = it.meter.effect()
                assert (effect.achieved, effect.proved) == (50, False)
            assert limit_of(group) == "99"

    asyncio.run(scene())


def test_a_group_that_is_gone_needs_no_undo() -> None:
    async def scene() -> None:
        with pids_group() as group:
            inner = group / "inner"
            inner.mkdir()
            with told_program(group=inner) as told:
                async with held("process.pid_exhaustion", pid=told.pid) as it:
                    told.process.kill()
                    told.process.wait()
                    wait_until(lambda: not (inner / "cgroup.procs").read_text(), "the group is empty")
                    inner.rmdir()
                    it.meter.sample()
                    assert not it.meter.effect().proved

    asyncio.run(scene())


def test_it_is_not_proved_while_processes_end_and_nobody_asks_for_more(group: Path) -> None:
    async def scene() -> None:
        with told_program(group=group) as told, told_program(group=group) as other:
            async with held("process.pid_exhaustion", pid=told.pid) as it:
                other.process.kill()
                other.process.wait()
                wait_until(lambda: (group / "pids.current").read_text() == "1\n", "its place is free")
                it.meter.sample()
                effect = it.meter.effect()
                assert (effect.achieved, effect.proved) == (100, False)
                assert "could start 1 more at the fewest" in effect.explanation

    asyncio.run(scene())


def test_groups_that_hold_what_must_live_are_refused(group: Path, tmp_path: Path) -> None:
    inner = group / "inner"
    inner.mkdir()
    shutil.copy("/bin/sleep", tmp_path / "sshd")
    join = f"import os\nopen('{inner}/cgroup.procs','w').write('0')\nos.execv('{tmp_path}/sshd',['sshd','60'])"
    with told_program(group=group) as told, subprocess.Popen(["/usr/bin/python3", "-S", "-c", join]) as sshd:
        try:
            wait_until(lambda: Path(f"/proc/{sshd.pid}/comm").read_text() == "sshd\n", "sshd runs")
            with pytest.raises(
                Refusal, match=rf"all of {group} would be hit, and sshd \(pid {sshd.pid}\) is protected"
            ):
                recorded(pid=told.pid)
            ours = Host(protected_pids=frozenset({sshd.pid}), protected_names=())
            with pytest.raises(Refusal, match="is part of Brownout"):
                recorded(ours, pid=told.pid)
        finally:
            sshd.kill()


def test_a_process_in_no_group_of_its_own_is_refused() -> None:
    with (
        told_program() as told,
        pytest.raises(Refusal, match=r"root control group|part of Brownout|is protected|pid 1"),
    ):
        recorded(pid=told.pid)


def test_processes_of_two_groups_are_refused(group: Path) -> None:
    token = f"two-{os.getpid()}"
    says = "they are in different control groups"
    with pids_group() as other, told_program(token, group=group), told_program(token, group=other):  # noqa: SIM117
        with pytest.raises(Refusal, match=says):
            recorded(command=token)


def test_a_second_one_on_the_same_group_is_refused_as_neither_could_undo(group: Path) -> None:
    with told_program(group=group) as told:
        record = recorded(pid=told.pid)
        with pytest.raises(Refusal, match=r"has a process.pid_exhaustion already"):
            recorded(Host(unfinished=(("process.pid_exhaustion", record.facts),)), pid=told.pid)


def test_a_limit_that_leaves_no_more_anyway_is_refused(group: Path) -> None:
    with told_program(group=group) as told:
        (group / "pids.max").write_text("3")
        with pytest.raises(Refusal, match=r"has 1 of 3 processes: no more than `leave` are free"):
            recorded(pid=told.pid, leave=2)
