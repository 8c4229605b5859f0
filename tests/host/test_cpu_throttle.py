"""cpu.throttle judged by its victims' CPU time as psutil reads it, and by what the kernel counts in cpu.stat."""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Record, Refusal
from brownout_agent.kernel.processes import send_signal, wait_dead

from tests.support.busy import busy_program, percent_of_a_core
from tests.support.control_groups import LIMITS, new_group
from tests.support.faultbench import held
from tests.support.polling import wait_until
from tests.support.told_program import told_program

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="makes control groups")]


@pytest.fixture
def group() -> Iterator[Path]:
    with new_group("cpu", *LIMITS["cpu"]) as made:
        yield made


def recorded(host: Host | None = None, **parameters: Any) -> Record[Any]:
    """As the journal has it before anything is applied."""
    fault = catalogue()["cpu.throttle"]
    model = fault.Parameters.model_validate({"quota": "20%", **parameters})
    return Record("id", model, fault.prepare(model, host or Host()), 1.0)


def quota_file(group: Path) -> Path:
    (file,) = [group / name for name in LIMITS["cpu"] if (group / name).exists()]
    return file


def write_quota(group: Path, percent: int) -> str:
    """What the file then says."""
    quota_file(group).write_text(f"{percent}000")
    return quota_file(group).read_text()


def throttled_periods(group: Path) -> int:
    return int((group / "cpu.stat").read_text().partition("nr_throttled ")[2].split()[0])


@pytest.mark.alone
@pytest.mark.parametrize("before_percent", [None, 90])
def test_it_gets_its_quota_and_no_more_until_it_is_over(group: Path, before_percent: int | None) -> None:
    async def scene() -> None:
        before = quota_file(group).read_text() if before_percent is None else write_quota(group, before_percent)
        with busy_program(group) as victim:
            async with held("cpu.throttle", pid=victim.pid, quota="20%") as it:
                used = await asyncio.to_thread(percent_of_a_core, victim, 2.0)
                it.meter.sample()
                effect = it.meter.effect()
                assert effect.proved, effect
                assert effect.achieved == pytest.approx(used, abs=1.5), "psutil's clock ticks are of 10 ms"
                assert 10 < used <= 22.5, "one period of 100 ms may be at either end of 2 s"
                with busy_program() as bystander:
                    assert percent_of_a_core(bystander, 0.3) > 30, "nobody else is held back"
            assert quota_file(group).read_text() == before
            if before_percent is None:
                throttled = throttled_periods(group)
                assert throttled > 0
                assert percent_of_a_core(victim, 0.3) > 30
                assert throttled_periods(group) == throttled, "nobody holds it back any more"

    asyncio.run(scene())


def test_what_runs_below_the_group_shares_its_quota(group: Path) -> None:
    async def scene() -> None:
        inner = group / "inner"
        inner.mkdir()
        token = f"shared-{os.getpid()}"
        with busy_program(group, word=token) as one, busy_program(inner, word=token) as other:
            async with held("cpu.throttle", command=token, quota="20%") as it:
                used = await asyncio.gather(*(asyncio.to_thread(percent_of_a_core, each, 2.0) for each in (one, other)))
                it.meter.sample()
                effect = it.meter.effect()
                assert effect.proved, effect
                assert effect.achieved == pytest.approx(sum(used), abs=2.5)
                assert sum(used) <= 22.5

    asyncio.run(scene())


def test_the_quota_outlives_a_killed_holder_and_the_journal_gives_it_back_once_or_twice(group: Path) -> None:
    async def scene() -> None:
        file = quota_file(group)
        before = file.read_text()
        with told_program(group=group) as told:
            async with held("cpu.throttle", pid=told.pid, quota="20%") as it:
                send_signal(it.holder.key, signal.SIGKILL)
                assert wait_dead([it.holder.key], 5) == []
                now = file.read_text().strip()
                assert now.startswith("20000")
                assert it.fault.residue(it.record) == [f"{file} is still {now}; next: echo {before.strip()} > {file}"]
                for _ in range(2):
                    it.fault.undo(it.record)
                    assert file.read_text() == before
                    assert it.fault.residue(it.record) == []

    asyncio.run(scene())


def test_what_somebody_else_has_written_meanwhile_is_left_alone_and_told(group: Path) -> None:
    async def scene() -> None:
        with busy_program(group) as victim:
            catalogue()["cpu.throttle"].undo(recorded(pid=victim.pid))  # never applied
            async with held("cpu.throttle", pid=victim.pid, quota="20%") as it:
                wait_until(lambda: throttled_periods(group) > 0, "it is held back")
                it.meter.sample()
                assert it.meter.effect().proved
                foreign = write_quota(group, 30)
                it.meter.sample()
                effect = it.meter.effect()
                assert not effect.proved
                assert f"said `{foreign.strip()}`, which somebody else wrote, at reading 2" in effect.explanation
            assert quota_file(group).read_text() == foreign

    asyncio.run(scene())


def test_who_wants_no_more_than_the_quota_is_not_throttled_and_nothing_is_proved(group: Path) -> None:
    async def scene() -> None:
        with told_program(group=group) as told:
            async with held("cpu.throttle", pid=told.pid, quota="20%") as it:
                it.meter.sample()
                effect = it.meter.effect()
                assert not effect.proved
                assert "it wanted no more than its quota" in effect.explanation

    asyncio.run(scene())


def test_a_group_that_is_gone_needs_no_undo(group: Path) -> None:
    async def scene() -> None:
        inner = group / "inner"
        inner.mkdir()
        with told_program(group=inner) as told:
            async with held("cpu.throttle", pid=told.pid, quota="20%") as it:
                told.process.kill()
                told.process.wait()
                wait_until(lambda: not (inner / "cgroup.procs").read_text(), "the group is empty")
                inner.rmdir()
                it.meter.sample()
                effect = it.meter.effect()
                assert (effect.achieved, effect.proved) == (None, False)
                assert "was gone at reading 1" in effect.explanation

    asyncio.run(scene())


def test_a_quota_that_the_kernel_does_not_take_is_refused_and_nothing_is_left(group: Path) -> None:
    """In version 1 no group may have less than one below it."""
    inner = group / "inner"
    inner.mkdir()
    if quota_file(inner).name == "cpu.max":
        pytest.skip("version 2 takes the tighter one of both")

    async def scene() -> None:
        with told_program(group=group) as told:
            async with held("cpu.throttle", pid=told.pid, quota="20%"):
                pass

    write_quota(inner, 50)
    with pytest.raises(Exception, match=r"cpu.cfs_quota_us does not take `20000`: Invalid argument"):
        asyncio.run(scene())
    assert quota_file(group).read_text() == "-1\n"


def test_a_group_with_others_in_it_is_refused_also_when_they_are_below_it(group: Path) -> None:
    inner = group / "inner"
    inner.mkdir()
    for place in (group, inner):
        with told_program(group=group) as told, told_program(group=place) as other, pytest.raises(Refusal) as caught:
            recorded(pid=told.pid)
        assert re.search(rf"would be hit, and pid {told.pid} does not match \S+ \(pid {other.pid}\)", str(caught.value))


def test_processes_in_no_group_of_their_own_in_two_and_in_ours_are_refused(group: Path) -> None:
    in_no_group_of_its_own = r"root control group|part of Brownout|is protected|pid 1"
    with told_program() as told, pytest.raises(Refusal, match=in_no_group_of_its_own):
        recorded(pid=told.pid)
    token = f"two-{os.getpid()}"
    with (
        new_group("cpu", *LIMITS["cpu"]) as other,
        told_program(token, group=group),
        told_program(token, group=other),
        pytest.raises(Refusal, match="they are in different control groups"),
    ):
        recorded(command=token)
    with (
        new_group("cpu", *LIMITS["cpu"], name=f"brownout-fault-test-{os.getpid()}") as ours,
        told_program(group=ours) as told,
        pytest.raises(Refusal, match="is a control group of Brownout's own"),
    ):
        recorded(pid=told.pid)
    with told_program(group=group) as told, pytest.raises(Refusal, match="is part of Brownout"):
        recorded(Host(protected_pids=frozenset({told.pid})), pid=told.pid)


def test_a_quota_that_would_take_nothing_is_refused(group: Path) -> None:
    with told_program(group=group) as told:
        cores = os.cpu_count() or 1
        with pytest.raises(Refusal, match=rf"{100 * cores} % is all that {cores} cores have"):
            recorded(pid=told.pid, quota=100 * cores)
        with pytest.raises(Refusal, match=r"0\.5 % of a period of 100000 us is too little"):
            recorded(pid=told.pid, quota=0.5)
        write_quota(group, 20)
        with pytest.raises(Refusal, match=f"{group} has a quota of 20 % already"):
            recorded(pid=told.pid, quota=20)
        inner = group / "inner"
        inner.mkdir()
        with told_program("below", group=inner) as below, pytest.raises(Refusal, match=f"{group} has a quota of 20 %"):
            recorded(pid=below.pid, quota=50)


def test_a_second_one_on_the_same_group_is_refused_as_neither_could_undo(group: Path) -> None:
    with told_program(group=group) as told:
        unfinished = (("cpu.throttle", recorded(pid=told.pid).facts),)
        with pytest.raises(Refusal, match=r"has a cpu.throttle already"):
            recorded(Host(unfinished=unfinished), pid=told.pid)


# ---- by unit; of a real systemd in test_units.py -----------------------------------------------------------------


@pytest.fixture
def unit(group: Path) -> Iterator[tuple[str, Path, Path]]:
    """A name as systemd has them, its group in the tree of the controller, and that which systemd itself would make."""
    name = f"brownout-test-{os.getpid()}.service"
    systemd = Path("/sys/fs/cgroup/systemd")
    if not (systemd / "cgroup.procs").exists() or quota_file(group).name == "cpu.max":
        pytest.skip("version 2: see test_units.py")
    (systemd / name).mkdir()
    try:
        with new_group("cpu", *LIMITS["cpu"], name=name) as made:
            yield name, made, systemd / name
    finally:
        wait_until(lambda: not (systemd / name / "cgroup.procs").read_text(), "the group is empty")
        (systemd / name).rmdir()


def test_a_unit_is_all_that_runs_in_it(unit: tuple[str, Path, Path]) -> None:
    name, group, of_systemd = unit
    with pytest.raises(Refusal, match=f"no process runs in {name}"):
        recorded(unit=name)
    with told_program("one", group=group) as one, told_program("other", group=group) as other:
        for told in (one, other):
            (of_systemd / "cgroup.procs").write_text(str(told.pid))
        assert recorded(unit=name).facts["group"] == str(group)
        with pytest.raises(Refusal, match="does not match") as caught:
            recorded(pid=one.pid)
        assert caught.value.remedy == f"write `unit: {name}` for the whole of it"
        with pytest.raises(Refusal, match="no process runs in") as caught:
            recorded(unit=name.replace("test", "tset"))
        assert caught.value.remedy == f"did you mean {name}?"


def test_a_unit_without_the_controller_is_refused_with_what_switches_it_on(unit: tuple[str, Path, Path]) -> None:
    name, _, of_systemd = unit
    with told_program() as told:
        (of_systemd / "cgroup.procs").write_text(str(told.pid))
        with pytest.raises(Refusal, match=f"{name} has no control group with the cpu controller") as caught:
            recorded(unit=name)
        assert caught.value.remedy == f"systemctl set-property --runtime {name} CPUWeight=100"
