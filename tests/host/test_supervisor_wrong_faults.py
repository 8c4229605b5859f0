"""The supervisor against faults and holders that are wrong or hang: they are told, undone, and harm no other fault."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from brownout_agent.faults.contract import Host, Refusal
from brownout_agent.injector import admission, measuring, supervisor
from brownout_agent.injector.holder import Holder, HolderFailed
from brownout_agent.injector.journal import Mark
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.processes import is_alive, key_of, read_stat

from tests.support.injectors import holders
from tests.support.supervised import WITHIN_S, Bad, House, order, raises, story, until, wrong_load


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> Bad:
    return wrong_load(monkeypatch)


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


# ---- holders that are wrong ----------------------------------------------------------------------------------------


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
