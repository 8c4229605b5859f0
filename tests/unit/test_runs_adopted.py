"""Runs that somebody else must close: who may write to them, and what their record says in the end."""

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from brownout_controller.analysis.residue import unknown
from brownout_controller.analysis.verdict import judge
from brownout_controller.record import Event, EventKind, FaultOutcome, HostResidue, ResidueState
from brownout_controller.reporting.document import from_document, to_document
from brownout_controller.running.adopting import Undoing, conclude_orphan
from brownout_controller.running.machine import fault_id
from brownout_controller.store.owners import Owners
from brownout_controller.store.store import Carrier, Orphan, RunExists, RunTaken, RunUnknown, Store
from brownout_protos.v1 import fault_pb2

from tests.support.records import at, fault, record

KEY = "0a9fc6b4-6d5a-4a53-9a35-1d1b2f3b1c11"
ACCEPTED, INDEFINITE = fault_pb2.OrderReply.ACCEPTED, fault_pb2.OrderReply.INDEFINITE


def carrier(controller_id: str, run_key: str = KEY) -> Carrier:
    return Carrier(controller_id, run_key, ("pause", "fill"), {"app-1": "agent-1", "app-2": "agent-2"})


def event(at_ns: int, kind: EventKind = EventKind.FAULT_ORDERED) -> Event:
    return Event(at_ns, kind, "pause", "app-1", "told")


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = request.getfixturevalue("postgres_server").make_database() if request.param == "postgresql" else ""
    made = Store(tmp_path / "data", url)
    yield made
    made.close()


def begin(store: Store, controller_id: str = "first", run_key: str = KEY) -> int:
    return store.begin_run("busy", "mary", "d" * 64, 1, carrier(controller_id, run_key))


# ---- who may write to a run ------------------------------------------------------------------------------------------


def test_a_run_is_begun_once_under_one_key(store: Store) -> None:
    number = begin(store)
    with pytest.raises(RunExists) as known:
        begin(store, "second")
    assert known.value.number == number
    assert begin(store, run_key=str(uuid.uuid4())) > number


def test_runs_without_a_key_are_runs_of_their_own(store: Store) -> None:
    assert [store.begin_run("x", "y", "z", 1) for _ in range(2)] == [1, 2]


def test_a_run_is_taken_over_once_its_controller_is_gone_and_not_before(store: Store) -> None:
    owners = Owners(store.database)
    with owners.life() as second:
        with owners.life() as first:
            number = begin(store, first)
            assert store.adopt(second) == []
        assert store.adopt(second, lambda left: "agent-1" not in left.hosts.values()) == [], "it is left to others"
        assert [orphan.number for orphan in store.adopt(second)] == [number]
        assert store.adopt(second) == []


def test_a_run_is_taken_over_by_one_controller_only(store: Store) -> None:
    numbers = [begin(store, run_key=str(uuid.uuid4())) for _ in range(40)]
    taken: list[int] = []

    def adopt() -> None:
        with Owners(store.database).life() as me:
            taken.extend(orphan.number for orphan in store.adopt(me))
            everybody.wait()  # who leaves would leave its runs to the next

    everybody = threading.Barrier(4)
    threads = [threading.Thread(target=adopt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == numbers


def test_who_adopts_gets_what_was_kept(store: Store) -> None:
    number = begin(store)
    store.append_events(number, 0, [event(1), event(2, EventKind.FAULT_ACTIVE)], "first")
    store.keep_draft(number, {"as": "it stood"}, "first")
    (orphan,) = store.adopt("second")
    assert orphan == Orphan(
        number, "busy", carrier("second"), {"as": "it stood"}, (event(1), event(2, EventKind.FAULT_ACTIVE))
    )


def test_a_controller_that_lost_a_run_can_write_nothing_to_it_any_more(store: Store) -> None:
    number = begin(store)
    store.adopt("second")
    writes: list[Callable[[], None]] = [
        lambda: store.append_events(number, 0, [event(1)], "first"),
        lambda: store.append_events(number, 0, [], "first"),
        lambda: store.keep_draft(number, {}, "first"),
        lambda: store.finish_run(number, {}, "held", 0, "it held", "first"),
    ]
    for write in writes:
        with pytest.raises(RunTaken, match=f"run {number} is closed, or another controller closes it"):
            write()
    store.finish_run(number, None, "errored", 13, "its controller died", "second")
    with pytest.raises(RunTaken):
        store.finish_run(number, {}, "held", 0, "twice", "second")
    (line,) = store.list_runs()
    assert (line.verdict, line.exit_code, line.headline) == ("errored", 13, "its controller died")
    with pytest.raises(RunUnknown, match="has no record: its controller died"):
        store.load_document(number)


def test_a_draft_is_no_record(store: Store) -> None:
    number = begin(store)
    store.keep_draft(number, {"as": "it stood"}, "first")
    with pytest.raises(RunUnknown, match="has no record yet"):
        store.load_document(number)


# ---- what its hosts say, and what becomes of it ----------------------------------------------------------------------


def orphan(draft: dict[str, Any] | None = None, events: tuple[Event, ...] = ()) -> Orphan:
    return Orphan(7, "busy", carrier("second"), draft, events)


def report(name: str, host: str, state: "fault_pb2.FaultState.ValueType") -> fault_pb2.FaultReport:
    return fault_pb2.FaultReport(fault_id=fault_id(KEY, name, host), state=state)


def answer(undoing: Undoing, host: str, outcome: "fault_pb2.OrderReply.Outcome.ValueType" = ACCEPTED) -> None:
    for order in undoing.orders(host):
        undoing.answered(host, fault_pb2.OrderReply(fault_id=order.fault_id, outcome=outcome))


def test_every_fault_is_stopped_on_every_host_it_may_be_on() -> None:
    undoing = Undoing(orphan())
    wanted = {fault_id(KEY, name, "app-2") for name in ("pause", "fill")}
    assert {order.fault_id for order in undoing.orders("app-2")} == wanted
    assert undoing.orders("somebody-else") == []


def test_a_host_has_confirmed_once_it_answered_and_nothing_of_the_run_is_on_it() -> None:
    undoing = Undoing(orphan())
    assert undoing.open_on("app-1")
    undoing.heard("app-1", [report("pause", "app-1", fault_pb2.ACTIVE)])
    answer(undoing, "app-1")
    assert undoing.open_on("app-1"), "it answered, and the fault is still on"
    undoing.heard("app-1", [report("pause", "app-1", fault_pb2.CLEAN)])
    assert undoing.confirmed("app-1")
    assert not undoing.confirmed("app-2")


@pytest.mark.parametrize("outcome", [INDEFINITE, fault_pb2.OrderReply.REFUSED])
def test_an_answer_that_is_none_confirms_nothing(outcome: "fault_pb2.OrderReply.Outcome.ValueType") -> None:
    undoing = Undoing(orphan())
    answer(undoing, "app-1", outcome)
    assert undoing.open_on("app-1")


def test_residue_ends_the_wait_and_is_no_confirmation() -> None:
    undoing = Undoing(orphan())
    answer(undoing, "app-1")
    undoing.heard("app-1", [report("fill", "app-1", fault_pb2.RESIDUE)])
    assert not undoing.open_on("app-1")
    assert not undoing.confirmed("app-1")


def test_a_run_of_which_nothing_was_kept_ends_with_who_confirmed_and_who_did_not() -> None:
    undoing = Undoing(orphan())
    answer(undoing, "app-1")
    document, verdict, code, headline = conclude_orphan(orphan(), undoing)
    assert (document, verdict, code) == (None, "errored", 13)
    assert "NOT CONFIRMED by app-2:" in headline
    answer(undoing, "app-2")
    _, _, code, headline = conclude_orphan(orphan(), undoing)
    assert (code, headline) == (1, "its controller died in mid-run; every host confirmed that nothing of it is on")


def test_a_record_keeps_its_samples_gets_the_later_events_and_what_hosts_confirmed() -> None:
    on = fault("pause", ended_s=None, fault_id=fault_id(KEY, "pause", "app-1"), undo="unknown", undo_begun_ns=None)
    drafted = record(faults=(on,))
    later = Event(at(70), EventKind.HOST_LOST, "app-1", "app-1", "its stream ended")
    kept = orphan(to_document(drafted, judge(drafted)), (drafted.events[0], later))
    undoing = Undoing(kept)
    answer(undoing, "app-1")
    answer(undoing, "app-2")
    undoing.heard("app-1", [report("pause", "app-1", fault_pb2.CLEAN)])
    document, verdict, code, headline = conclude_orphan(kept, undoing)
    assert document is not None
    closed = from_document(document)
    assert closed.series == drafted.series
    assert [one.kind for one in closed.events].count(EventKind.RUN_STARTED) == 1
    assert later in closed.events
    assert closed.events[-1].message == headline
    assert [(one.undo, one.end_cause) for one in closed.faults] == [("clean", "time is up")]
    assert (verdict, code, document["verdict"], document["exit_code"]) == ("errored", 13, "errored", 13)
    assert headline.endswith("its faults are gone; NOT AUDITED for residue: app-1: brownout doctor")
    assert [(found.host, found.state) for found in closed.residue] == [("app-1", ResidueState.UNKNOWN)]
    unconfirmed = conclude_orphan(kept, Undoing(kept))
    assert unconfirmed[1:3] == ("errored", 13)


ON = fault("pause", ended_s=None, fault_id=fault_id(KEY, "pause", "app-1"), undo="unknown", undo_begun_ns=None)
ORDERED = replace(ON, active_ns=None)
CLEAN_AUDIT = HostResidue("app-1", ResidueState.CLEAN)
LEFT = HostResidue("app-1", ResidueState.RESIDUE, ("+ nft table inet brownout",))


@pytest.mark.parametrize("reported", [None, fault_pb2.CLEAN, fault_pb2.RESIDUE, fault_pb2.ACTIVE])
@pytest.mark.parametrize("residue", [(), (CLEAN_AUDIT,), (LEFT,), (unknown("app-1", "let go"),)])
@pytest.mark.parametrize("faults", [(), (ORDERED,), (ON,), (replace(ON, undo="clean"),)])
@pytest.mark.parametrize("answering", [(), ("app-1",), ("app-1", "app-2")])
def test_the_exit_code_of_an_adopted_run_is_the_same_wherever_it_is_asked_for(
    reported: "fault_pb2.FaultState.ValueType | None",
    residue: tuple[HostResidue, ...],
    faults: tuple[FaultOutcome, ...],
    answering: tuple[str, ...],
) -> None:
    drafted = record(faults=faults, residue=residue)
    kept = orphan(to_document(drafted, judge(drafted)))
    undoing = Undoing(kept)
    for host in answering:
        answer(undoing, host)
    if reported is not None:
        undoing.heard("app-1", [report("pause", "app-1", reported)])
    document, verdict, code, headline = conclude_orphan(kept, undoing)
    assert document is not None
    again = judge(from_document(document))
    assert (verdict, code) == (again.verdict.value, again.exit_code) == (document["verdict"], document["exit_code"])
    all_confirmed = answering == ("app-1", "app-2") and reported not in {fault_pb2.RESIDUE, fault_pb2.ACTIVE}
    had_a_fault = reported is not None or any(one.active_ns for one in faults)
    is_known = all_confirmed and (residue == (CLEAN_AUDIT,) or (residue != (LEFT,) and not had_a_fault))
    undone = reported is not None or ON not in faults
    assert code == (1 if is_known and undone else 13)
    assert ("NOT" in headline) == (residue == (LEFT,) or not is_known)


def test_an_order_that_its_host_never_had_needed_no_undo() -> None:
    drafted = record(faults=(ORDERED,), residue=(unknown("app-1", "let go"),))
    kept = orphan(to_document(drafted, judge(drafted)))
    undoing = Undoing(kept)
    answer(undoing, "app-1")
    answer(undoing, "app-2")
    document, _, code, _ = conclude_orphan(kept, undoing)
    assert document is not None
    closed = from_document(document)
    assert ([one.undo for one in closed.faults], closed.residue, code) == (["not_needed"], (), 1)


def test_a_draft_of_another_release_is_said_to_be_unreadable_and_the_run_ends_all_the_same() -> None:
    kept = orphan({"schema": "brownout.run/99"})
    document, verdict, code, headline = conclude_orphan(kept, Undoing(kept))
    assert (document, verdict, code) == (None, "errored", 13)
    assert "what was kept of it cannot be read" in headline
