"""The injector's own copy: in order, bounded against floods, never in the way of an undo, and caught up with later."""

import threading
import time
from pathlib import Path

import pytest
from brownout_agent.chain import Following, read_line
from brownout_agent.host_log import HostLog
from brownout_agent.injector import own_copy
from brownout_agent.injector.journal import Mark
from brownout_agent.injector.live import FaultStatus
from brownout_agent.injector.order import Order
from brownout_agent.injector.own_copy import CHEAP_AT_ONCE, WAITING_MAX, OwnCopy

from tests.support.polling import wait_until

ORDER = Order("id-1", "run-1", "staging", "cpu.load", {"percent": 50}, 30.0, 10.0, 7, "agent-1")


def records(folder: Path) -> list[dict[str, object]]:
    found = [read_line(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    following = Following()
    following.take_all(found)
    assert following.breaks == []
    return [dict(one.document) for one in found]


def status(state: Mark, message: str = "", **more: object) -> FaultStatus:
    return FaultStatus("id-1", "cpu.load", state, 0, message=message, **more)  # type: ignore[arg-type]


def test_an_order_is_kept_when_that_returns_behind_everything_before_it(tmp_path: Path) -> None:
    copy = OwnCopy(HostLog(tmp_path))
    for number in range(20):
        copy.note("somebody", "test", str(number), "done")
    copy.obey(ORDER)
    kept = records(tmp_path)
    assert [one["subject"] for one in kept] == [*map(str, range(20)), "id-1"]
    last = kept[-1]
    assert (last["actor"], last["action"], last["outcome"]) == ("agent:agent-1", "fault.inject", "obeyed")
    assert last["detail"] == {"kind": "cpu.load", "duration_ms": "30000", "run_id": "run-1", "epoch": "7"}


def test_every_state_of_a_fault_is_kept_once_with_why_however_often_it_is_told(tmp_path: Path) -> None:
    copy = OwnCopy(HostLog(tmp_path))
    for told in (
        status(Mark.RECORDED),
        status(Mark.ACTIVE),
        status(Mark.ACTIVE),
        status(Mark.UNDOING, "asked to", cause="STOPPED"),
        status(Mark.RESIDUE, residue=("a table", "a file"), cause="STOPPED"),
        status(Mark.RESIDUE, residue=("a table", "a file"), cause="STOPPED"),
        status(Mark.CLEAN, cause="STOPPED"),
    ):
        copy.tell(told)
    copy.close()
    kept = [(one["outcome"], one["reason"]) for one in records(tmp_path)]
    assert kept == [("active", ""), ("undoing", "asked to"), ("residue", "a table; a file"), ("clean", "")]


def test_a_flood_of_refusals_and_early_stops_is_counted_and_pushes_nothing_out(tmp_path: Path) -> None:
    copy = OwnCopy(HostLog(tmp_path))
    copy.obey(ORDER)
    for number in range(10_000):
        copy.note_cheap("agent:x", "fault.inject", f"id-{number}", "refused", "no")
        copy.tell(FaultStatus(f"id-{number}", "", Mark.CLEAN, 0, cause="STOPPED"))
    copy.note("root", "host.halt", "", "halted")
    copy.close()
    kept = records(tmp_path)
    assert kept[0]["subject"] == "id-1"
    assert len(kept) <= CHEAP_AT_ONCE + 3
    left_out = sum(int(one["detail"].get("left_out", 0)) for one in kept)  # type: ignore[attr-defined]
    assert left_out + len(kept) - 2 == 20_000


def test_what_the_disk_does_not_take_is_kept_as_soon_as_it_does_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_copy, "RETRY_EVERY_S", 0.05)
    (tmp_path / "audit.jsonl").mkdir()  # nothing can be written there
    copy = OwnCopy(HostLog(tmp_path))
    began_s = time.monotonic()
    for number in range(WAITING_MAX + 5):
        copy.note("somebody", "test", str(number), "done")
    assert time.monotonic() - began_s < 5
    with pytest.raises(IsADirectoryError):
        copy.obey(ORDER)
    (tmp_path / "audit.jsonl").rmdir()
    wait_until((tmp_path / "audit.jsonl").exists, "the disk is tried again")
    copy.close()
    copy.note("somebody", "test", "after", "done")  # another process may write by now
    kept = records(tmp_path)
    assert [one["subject"] for one in kept] == [str(number) for number in range(WAITING_MAX)]


def test_no_thread_stays_when_nothing_is_waiting(tmp_path: Path) -> None:
    before = threading.active_count()
    copy = OwnCopy(HostLog(tmp_path))
    copy.note("somebody", "test", "1", "done")
    wait_until(lambda: threading.active_count() == before, "the thread ended")
    assert len(records(tmp_path)) == 1
