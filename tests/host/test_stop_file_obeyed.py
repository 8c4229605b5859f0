"""How the injector obeys its STOP file: at once, for as long as it is there, and saying so once; faults are real."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from brownout_agent.faults.contract import Host
from brownout_agent.injector import halting, stop_file
from brownout_agent.injector.halting import LOOK_EVERY_S, obey
from brownout_agent.injector.journal import Mark
from brownout_agent.injector.stop_file import StopFile
from brownout_agent.kernel.inotify import FolderWatch

from tests.support.injectors import holders
from tests.support.supervised import Bad, House, order, raises, story, until, wrong_load


@pytest.fixture(autouse=True)
def well_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The well-known file of this test, in a folder that is there; the policy's is in one that is not."""
    path = tmp_path / "well-known" / "STOP"
    path.parent.mkdir()
    monkeypatch.setattr(stop_file, "WELL_KNOWN", path)
    return path


@contextlib.asynccontextmanager
async def obeyed(it: House, path: Path) -> AsyncIterator[list[bool]]:
    """Its changes so far: whether the host was halted when each was told."""
    latch = StopFile(path)
    changes: list[bool] = []
    task = asyncio.create_task(obey(latch, it.supervisor, lambda: changes.append(latch.reason() is not None)))
    try:
        yield changes
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def active(it: House) -> str:
    one = order()
    await it.supervisor.inject(one, Host())
    await it.until(one.fault_id, Mark.ACTIVE)
    return one.fault_id


def test_every_fault_ends_at_once_and_each_change_is_told_once(
    tmp_path: Path, well_known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halting, "LOOK_EVERY_S", 60.0)  # so that it is inotify that tells

    async def told(it: House) -> None:
        async with obeyed(it, tmp_path / "STOP") as changes:
            faults = [await active(it), await active(it)]
            well_known.write_text("the shop is on fire")
            for fault_id in faults:
                clean = await it.until(fault_id, Mark.CLEAN)
                assert clean.cause == "HALTED"
                assert any(status.message == f"halted by {well_known}: the shop is on fire" for status in it.told)
                assert holders(fault_id) == []
            await until(lambda: changes == [True])
            well_known.write_text("and so is the bakery")
            well_known.unlink()
            await until(lambda: changes == [True, False])
            await active(it)
            assert changes == [True, False]

    story(tmp_path / "state", told)


def test_while_nobody_halts_faults_go_on_however_often_it_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    real = FolderWatch.changed

    async def look(self: FolderWatch, at_most_s: float) -> None:
        looks.append(at_most_s)
        await real(self, 0.01)

    monkeypatch.setattr(FolderWatch, "changed", look)

    async def told(it: House) -> None:
        async with obeyed(it, tmp_path / "etc" / "STOP") as changes:
            fault_id = await active(it)
            await until(lambda: len(looks) > 20)
            assert (it.states(fault_id)[-1], changes) == (Mark.ACTIVE, [])

    story(tmp_path / "state", told)
    assert set(looks) == {LOOK_EVERY_S} == {1.0}


def test_a_file_in_folders_that_were_not_there_is_found_without_being_told(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c" / "STOP"

    async def told(it: House) -> None:
        async with obeyed(it, path) as changes:
            fault_id = await active(it)
            path.parent.mkdir(parents=True)
            path.touch()
            await it.until(fault_id, Mark.CLEAN)
            await until(lambda: changes == [True])

    story(tmp_path / "state", told)


def test_a_fault_that_came_while_it_was_there_is_ended_by_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "STOP"

    async def told(it: House) -> None:
        async with obeyed(it, path) as changes:
            path.touch()
            await until(lambda: changes == [True])
            late = order()
            await it.supervisor.inject(late, Host())  # the built-in policy of this supervisor does not name that file
            assert (await it.until(late.fault_id, Mark.CLEAN)).cause == "HALTED"
            assert changes == [True]

    story(tmp_path / "state", told)


def test_what_is_not_verified_gone_is_told_by_name_and_tried_again(
    tmp_path: Path, well_known: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad: Bad = wrong_load(monkeypatch)
    bad.undo = raises(OSError("busy"))

    def errors() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.name == halting.__name__ and one.levelno >= 40]

    async def told(it: House) -> None:
        async with obeyed(it, tmp_path / "STOP"):
            fault_id = await active(it)
            assert errors() == []
            well_known.touch()
            await until(lambda: errors() != [])
            assert errors()[0] == f"halted, and not verified gone: {fault_id}"
            bad.undo = lambda: None
            await it.until(fault_id, Mark.CLEAN)

    with caplog.at_level(logging.WARNING):
        story(tmp_path / "state", told)
