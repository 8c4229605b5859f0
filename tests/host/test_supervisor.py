"""The supervisor when orders come at the wrong moment and when the disk is full; holders and journal are real."""

import asyncio
import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults.contract import Host, Refusal
from brownout_agent.injector import supervisor
from brownout_agent.injector.holder import Holder
from brownout_agent.injector.journal import Journal, Mark
from brownout_agent.injector.policy import EMBEDDED

from tests.support.injectors import holders
from tests.support.supervised import WITHIN_S, Bad, House, house, order, story, until, wrong_load


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> Bad:
    return wrong_load(monkeypatch)


# ---- orders that come at the wrong moment --------------------------------------------------------------------------


def test_a_stop_while_its_start_is_being_prepared_wins(tmp_path: Path, bad: Bad) -> None:
    gate = threading.Event()
    bad.prepare = lambda: bool(gate.wait(WITHIN_S)) and None

    async def told(it: House) -> None:
        one = order()
        starting = asyncio.create_task(it.supervisor.inject(one, Host()))
        await asyncio.sleep(0)
        it.supervisor.stop(one.fault_id, "")
        gate.set()
        with pytest.raises(Refusal, match="its stop came before its start"):
            await starting
        assert it.journal.entries[one.fault_id].mark is Mark.REFUSED_FOR_EVER
        assert holders(one.fault_id) == []

    story(tmp_path, told)


def test_one_order_by_two_connections_at_once_is_one_fault(tmp_path: Path, bad: Bad) -> None:
    both = threading.Barrier(2)
    bad.prepare = lambda: bool(both.wait(WITHIN_S)) and None

    async def told(it: House) -> None:
        one = order()
        taken = await asyncio.gather(it.supervisor.inject(one, Host()), it.supervisor.inject(one, Host()))
        assert sorted(taken) == [False, True]
        await it.until(one.fault_id, Mark.ACTIVE)
        assert len([pid for pid in holders(one.fault_id) if os.getsid(pid) == pid]) == 1

    story(tmp_path, told)


def test_orders_at_once_do_not_slip_through_the_policys_limit(tmp_path: Path) -> None:
    async def told(it: House) -> None:
        assert EMBEDDED.file is not None
        most = EMBEDDED.file.limits.concurrent
        taken = await asyncio.gather(
            *(it.supervisor.inject(order(), Host()) for _ in range(most + 3)), return_exceptions=True
        )
        assert taken.count(True) == most
        assert [str(one) for one in taken if one is not True] == [
            f"{most} faults run here already; this host allows {most}"
        ] * 3

    story(tmp_path, told)


@pytest.mark.parametrize("yields", range(0, 40, 3))
def test_a_stop_at_any_moment_of_a_start_leaves_no_holder(tmp_path: Path, yields: int) -> None:
    async def told(it: House) -> None:
        one = order()
        await it.supervisor.inject(one, Host())
        for _ in range(yields):
            await asyncio.sleep(0.001)
        it.supervisor.stop(one.fault_id, "")
        await it.until(one.fault_id, Mark.CLEAN)
        await until(lambda: not holders(one.fault_id), within_s=5.0)
        assert it.told[-1].cause == "STOPPED"

    story(tmp_path, told)


def test_an_order_that_is_being_prepared_when_the_injector_ends_is_refused(tmp_path: Path, bad: Bad) -> None:
    gate = threading.Event()
    bad.prepare = lambda: bool(gate.wait(WITHIN_S)) and None

    async def told(it: House) -> None:
        one = order()
        starting = asyncio.create_task(it.supervisor.inject(one, Host()))
        await asyncio.sleep(0)
        assert await it.supervisor.shut_down()
        gate.set()
        with pytest.raises(Refusal, match="is ending"):
            await starting
        assert one.fault_id not in it.journal.entries

    story(tmp_path, told)


def test_a_renewal_that_comes_after_the_leases_end_renews_nothing(tmp_path: Path) -> None:
    async def told(it: House) -> None:
        one = order(lease_s=0.02)
        await it.supervisor.inject(one, Host())
        threading.Event().wait(0.05)  # frozen: nothing of the injector runs
        it.supervisor.renew()
        clean = await it.until(one.fault_id, Mark.CLEAN)
        assert clean.cause == "LEASE_LOST"

    story(tmp_path, told)


@pytest.mark.parametrize("fault_id", ["", "a\0b", "x" * 101, "../../etc", "é"])
def test_what_is_no_id_is_refused(tmp_path: Path, fault_id: str) -> None:
    async def told(it: House) -> None:
        with pytest.raises(Refusal, match="is no id of a fault"):
            await it.supervisor.inject(order(fault_id=fault_id), Host())
        with pytest.raises(Refusal, match="is no id of a fault"):
            it.supervisor.stop(fault_id, "")

    story(tmp_path, told)


def test_a_lease_counts_from_the_controllers_last_word_however_long_the_order_is_looked_at(
    tmp_path: Path, bad: Bad
) -> None:
    bad.prepare = lambda: time.sleep(1.5)

    async def told() -> None:
        async with house(tmp_path) as it:
            late, renewed = order(lease_s=1.0), order(lease_s=5.0)
            assert await it.supervisor.inject(late, Host())
            assert (await it.until(late.fault_id, Mark.CLEAN)).cause == "LEASE_LOST"
            assert Mark.ACTIVE not in it.states(late.fault_id)
            looking = asyncio.create_task(it.supervisor.inject(renewed, Host()))
            await asyncio.sleep(0)  # the order has arrived
            it.supervisor.renew()
            assert await looking
            await it.until(renewed.fault_id, Mark.ACTIVE)

    asyncio.run(told())


# ---- the disk and the process table --------------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(journal: Journal) -> Any:
    """The kernel refuses every write with ENOSPC: /dev/full in the journal's place."""
    real, journal._file = journal._file, os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.close(journal._file)
        journal._file = real


@pytest.mark.parametrize("mark", [Mark.RECORDED, Mark.HELD, Mark.ACTIVE, Mark.UNDOING, Mark.CLEAN])
def test_a_mark_that_the_disk_refuses_never_keeps_a_fault_nor_says_more_than_is_known(
    tmp_path: Path, mark: Mark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RETRY_EVERY_S", 0.2)
    applied: list[str] = []
    really_go = Holder.go

    async def go(self: Holder, *args: Any, **named: Any) -> Any:
        applied.append("go")
        return await really_go(self, *args, **named)

    monkeypatch.setattr(Holder, "go", go)

    async def told(it: House) -> None:
        one = order()
        with contextlib.ExitStack() as full:
            write = it.journal._write

            def write_until(entry: Any, *more: Any, **named: Any) -> None:
                if entry.mark is mark:
                    full.enter_context(full_disk(it.journal))
                write(entry, *more, **named)

            monkeypatch.setattr(it.journal, "_write", write_until)
            if mark is Mark.RECORDED:
                with pytest.raises(Refusal, match="No space left"):
                    await it.supervisor.inject(one, Host())
                assert one.fault_id not in it.journal.entries
                return
            await it.supervisor.inject(one, Host())
            if mark in {Mark.UNDOING, Mark.CLEAN}:
                await it.until(one.fault_id, Mark.ACTIVE)
                it.supervisor.stop(one.fault_id, "")
            clean = await it.until(one.fault_id, Mark.CLEAN)
            assert holders(one.fault_id) == []
            assert (clean.cause == "APPLY_FAILED") == (mark in {Mark.HELD, Mark.ACTIVE})
            assert ("go" in applied) == (mark is not Mark.HELD)
            assert [entry.fault_id for entry in it.journal.unfinished] == [one.fault_id]
            monkeypatch.setattr(it.journal, "_write", write)
        await until(lambda: it.journal.unfinished == [], within_s=5.0)  # the disk has room again

    story(tmp_path, told)


def test_many_faults_leave_neither_descriptors_nor_zombies(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def children() -> list[str]:
        return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()

    async def told(it: House) -> None:
        async def one_life() -> None:
            one = order()
            await it.supervisor.inject(one, Host())
            await it.until(one.fault_id, Mark.ACTIVE)
            it.supervisor.stop(one.fault_id, "")
            await it.until(one.fault_id, Mark.CLEAN)

        await one_life()
        before, born = descriptors(), children()
        for _ in range(5):
            await one_life()
        await until(lambda: descriptors() <= before, within_s=5.0)
        assert children() == born

    story(tmp_path, told)
