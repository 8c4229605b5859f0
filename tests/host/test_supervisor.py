"""The supervisor against faults that are wrong, hang, or come at the wrong moment; holders and journal are real."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Effect, Facts, Fault, Host, Meter, Record, Refusal
from brownout_agent.faults.cpu_load import CpuLoad
from brownout_agent.injector import admission, measuring, supervisor
from brownout_agent.injector.admission import Admission
from brownout_agent.injector.holder import Holder, HolderFailed
from brownout_agent.injector.journal import Journal, Mark
from brownout_agent.injector.ledger import Ledger
from brownout_agent.injector.live import FaultStatus
from brownout_agent.injector.order import Order
from brownout_agent.injector.policy import EMBEDDED
from brownout_agent.injector.supervisor import Supervisor
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.processes import all_pids, is_alive, key_of, read_stat

WITHIN_S = 20.0


@dataclass
class Bad:
    """What is wrong with `cpu.load` on the injector's side; its holder is the real one."""

    prepare: Callable[[], None] = lambda: None
    measure: Callable[[], None] = lambda: None
    sample: Callable[[], None] = lambda: None
    undo: Callable[[], None] = lambda: None
    undos: int = 0


class _Meter(Meter):
    def __init__(self, bad: Bad) -> None:
        self._bad = bad
        self._samples = 0

    def sample(self) -> None:
        self._bad.sample()
        self._samples += 1

    def effect(self) -> Effect:
        return Effect(1.0, 1.0, "%", True, "as asked", samples=self._samples)


def _bad_fault(bad: Bad) -> Fault[Any]:
    class _BadLoad(CpuLoad):
        def prepare(self, parameters: Any, host: Host) -> Facts:
            bad.prepare()
            return super().prepare(parameters, host)

        def measure(self, record: Record[Any], host: Host) -> Meter:
            bad.measure()
            return _Meter(bad)

        def undo(self, record: Record[Any]) -> None:
            super().undo(record)
            bad.undos += 1
            bad.undo()

    return _BadLoad()


@dataclass
class House:
    """A supervisor at work, and all that it told."""

    supervisor: Supervisor
    journal: Journal
    told: list[FaultStatus] = field(default_factory=list)
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    def states(self, fault_id: str) -> list[Mark]:
        return [status.state for status in self.told if status.fault_id == fault_id]

    async def until(self, fault_id: str, state: Mark) -> FaultStatus:
        await until(lambda: state in self.states(fault_id))
        return next(status for status in self.told if (status.fault_id, status.state) == (fault_id, state))


async def until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    journal = Journal(folder)
    told: list[FaultStatus] = []
    it = House(Supervisor(journal, Admission(EMBEDDED, Ledger(folder)), told.append), journal, told)
    it.tasks += [asyncio.create_task(it.supervisor.run()), asyncio.create_task(it.supervisor.retry_leftovers())]
    try:
        yield it
    finally:
        async with asyncio.timeout(WITHIN_S):
            await it.supervisor.shut_down()
        for task in it.tasks:
            assert not task.done(), task
            task.cancel()
        await asyncio.gather(*it.tasks, return_exceptions=True)
        journal.close()


def order(**more: Any) -> Order:
    values = {"kind": "cpu.load", "parameters": {"percent": 1, "of": "own", "cores": "0"}, "environment": "staging"}
    return Order(**{"fault_id": str(uuid.uuid4()), "run_id": "", "duration_s": 30.0, "lease_s": 20.0, **values, **more})


def holders(fault_id: str) -> list[int]:
    found = []
    for pid in all_pids():
        with contextlib.suppress(OSError):
            if fault_id.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> Bad:
    wrong = Bad()
    faults = {**catalogue(), "cpu.load": _bad_fault(wrong)}
    monkeypatch.setattr(admission, "catalogue", lambda: faults)
    return wrong


def story(folder: Path, told: Callable[[House], Awaitable[None]]) -> None:
    async def in_a_house() -> None:
        async with house(folder) as it:
            await told(it)

    asyncio.run(in_a_house())


def raises(error: Exception) -> Callable[[], None]:
    def raising() -> None:
        raise error

    return raising


# ---- faults that are wrong ---------------------------------------------------------------------------------------


def test_a_mistake_in_prepare_is_a_refusal_that_says_so(tmp_path: Path, bad: Bad) -> None:
    bad.prepare = raises(KeyError("cores"))

    async def told(it: House) -> None:
        one = order()
        with pytest.raises(Refusal, match=r"cpu\.load has a mistake: KeyError: 'cores'"):
            await it.supervisor.inject(one, Host())
        assert one.fault_id not in it.journal.entries

    story(tmp_path, told)


@pytest.mark.parametrize("where", ["measure", "sample"])
def test_a_mistake_in_a_meter_proves_nothing_and_neither_ends_the_injector_nor_keeps_the_fault(
    tmp_path: Path, bad: Bad, where: str
) -> None:
    setattr(bad, where, raises(ZeroDivisionError("no samples")))

    async def told(it: House) -> None:
        one = order(duration_s=2.5)
        await it.supervisor.inject(one, Host())
        await it.until(one.fault_id, Mark.ACTIVE)
        clean = await it.until(one.fault_id, Mark.CLEAN)
        assert (clean.cause, clean.effect) == ("DURATION", None)
        assert holders(one.fault_id) == []

    story(tmp_path, told)


def test_a_meter_that_fails_until_the_end_unproves_what_it_had_seen_before(
    tmp_path: Path, bad: Bad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "STALE_AFTER_S", 0.5)
    monkeypatch.setattr(supervisor, "MEASURE_EVERY_S", 0.1)

    async def told(it: House) -> None:
        one = order()
        await it.supervisor.inject(one, Host())
        await until(lambda: any(status.effect and status.effect.proved for status in it.told))
        bad.sample = raises(OSError("the instrument is gone"))
        await asyncio.sleep(0.8)  # longer than STALE_AFTER_S: time itself is what is tested
        it.supervisor.stop(one.fault_id, "")
        effect = (await it.until(one.fault_id, Mark.CLEAN)).effect
        assert effect is not None
        assert not effect.proved
        assert "nothing could be read in its last" in effect.explanation

    story(tmp_path, told)


def test_a_meter_that_hangs_delays_no_stop_and_no_other_fault(tmp_path: Path, bad: Bad) -> None:
    gate = threading.Event()
    entered = threading.Event()

    def hang() -> None:
        entered.set()
        gate.wait(WITHIN_S)

    bad.sample = hang

    async def told(it: House) -> None:
        one, other = order(), order()
        await it.supervisor.inject(one, Host())
        await it.until(one.fault_id, Mark.ACTIVE)
        await until(entered.is_set)
        await it.supervisor.inject(other, Host())
        await it.until(other.fault_id, Mark.ACTIVE)
        it.supervisor.stop(one.fault_id, "")
        await until(lambda: not holders(one.fault_id), within_s=2.0)
        await it.until(one.fault_id, Mark.CLEAN)
        assert holders(other.fault_id)
        gate.set()

    story(tmp_path, told)


def test_a_mistake_in_undo_is_residue_that_is_told_and_tried_until_clean(
    tmp_path: Path, bad: Bad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RETRY_EVERY_S", 0.2)
    bad.undo = raises(KeyError("table"))

    async def told(it: House) -> None:
        one = order()
        await it.supervisor.inject(one, Host())
        await it.until(one.fault_id, Mark.ACTIVE)
        it.supervisor.stop(one.fault_id, "")
        residue = await it.until(one.fault_id, Mark.RESIDUE)
        assert residue.residue == ("undo of cpu.load failed: KeyError: 'table'",)
        assert it.journal.entries[one.fault_id].mark is Mark.RESIDUE
        await until(lambda: bad.undos > 2)
        bad.undo = lambda: None
        await it.until(one.fault_id, Mark.CLEAN)

    story(tmp_path, told)


def test_an_undo_that_hangs_is_told_never_doubled_and_does_not_keep_the_injector_from_ending(
    tmp_path: Path, bad: Bad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RETRY_EVERY_S", 0.1)
    monkeypatch.setattr(supervisor, "UNDO_TIMEOUT_S", 0.3)
    gate = threading.Event()
    bad.undo = lambda: bool(gate.wait(WITHIN_S)) and None

    async def told(it: House) -> None:
        one = order()
        await it.supervisor.inject(one, Host())
        await it.until(one.fault_id, Mark.ACTIVE)
        it.supervisor.stop(one.fault_id, "")
        await until(lambda: it.states(one.fault_id).count(Mark.RESIDUE) >= 3)
        assert "has not come back" in it.told[-1].residue[0]
        assert holders(one.fault_id) == []
        assert bad.undos == 1
        assert not await it.supervisor.shut_down()
        gate.set()
        await until(lambda: Mark.CLEAN in it.states(one.fault_id))
        assert bad.undos == 1

    story(tmp_path, told)


def test_prepares_that_hang_take_no_thread_from_an_undo(
    tmp_path: Path, bad: Bad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "PREPARE_TIMEOUT_S", 0.2)
    gate = threading.Event()

    async def told(it: House) -> None:
        one = order()
        await it.supervisor.inject(one, Host())
        await it.until(one.fault_id, Mark.ACTIVE)
        bad.prepare = lambda: bool(gate.wait(WITHIN_S)) and None
        refused = await asyncio.gather(
            *(it.supervisor.inject(order(), Host()) for _ in range(40)), return_exceptions=True
        )
        assert all("still looking at this host" in str(refusal) for refusal in refused)
        it.supervisor.stop(one.fault_id, "")
        await until(lambda: Mark.CLEAN in it.states(one.fault_id), within_s=3.0)
        gate.set()

    story(tmp_path, told)


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


def holder_of(code: str) -> Holder:
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", code]
    process = subprocess.Popen(argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    key = key_of(process.pid)
    assert key is not None
    return Holder(process, key)


@pytest.mark.parametrize(
    "said", ["a library's banner", "{}", "[1]", '{"since_ns": 1, "facts": 1, "children": []}', "x" * 100_000]
)
def test_a_holder_that_says_something_else_than_ready_has_failed_and_is_dead(said: str) -> None:
    async def told() -> None:
        one = holder_of(f"import time; print({said!r}, flush=True); time.sleep(60)")
        with pytest.raises(HolderFailed, match="instead of being ready"):
            await one.go({}, {}, 1.0, lease_ends_ns=boottime_ns(), on_trial=False)
        assert not is_alive(one.key)

    asyncio.run(told())


def test_a_holder_that_talks_and_talks_can_still_be_ended() -> None:
    async def told() -> None:
        ready = json.dumps({"since_ns": 1, "facts": {}, "children": []})
        one = holder_of(f"import sys\nprint({ready!r}, flush=True)\nwhile True: print('x' * 9999, file=sys.stderr)")
        async with asyncio.timeout(10):
            await one.go({}, {}, 1.0, lease_ends_ns=boottime_ns(), on_trial=False)
            await until(lambda: (stat := read_stat(one.key.pid)) is not None and stat.state == "S")  # its pipe is full
            assert await one.end() == []
            assert (await one.died()).startswith("xxx")

    asyncio.run(told())


def test_what_a_holder_started_cannot_hide_its_death_by_keeping_its_pipes() -> None:
    async def told() -> None:
        one = holder_of("import subprocess, sys; subprocess.Popen(['sleep', '30']); sys.exit('it broke')")
        try:
            async with asyncio.timeout(10):
                assert await one.died() == "it broke (exit code 1)"
                assert one.killed_ns is None
                with pytest.raises(HolderFailed, match="it broke"):
                    await one.go({}, {}, 1.0, lease_ends_ns=boottime_ns(), on_trial=False)
        finally:
            os.killpg(one.key.pid, signal.SIGKILL)

    asyncio.run(told())


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
