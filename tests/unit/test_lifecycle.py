"""The fault's life as plain function calls: no clock, no process."""

import itertools

import pytest
from brownout_agent.injector.journal import Mark
from brownout_agent.injector.lifecycle import (
    Accepted,
    Applied,
    Broken,
    Cause,
    End,
    Event,
    Failed,
    Go,
    HolderDied,
    Note,
    Record,
    Report,
    Retry,
    Spawn,
    Spawned,
    StartMeasuring,
    Undo,
    Undone,
    step,
)
from brownout_agent.kernel.processes import ProcessKey
from brownout_protos.v1 import fault_pb2

HOLDER = ProcessKey(4711, 99)
EVENTS: tuple[Event, ...] = (
    Accepted(),
    Spawned(HOLDER),
    Applied(),
    Failed("no memory"),
    HolderDied("killed"),
    Broken("a mistake"),
    End(Cause.DURATION),
    End(Cause.LEASE_LOST),
    Undone(()),
    Undone(("a table is left",)),
    Retry(),
)


def walk(*events: Event) -> tuple[Mark | None, list[object]]:
    state: Mark | None = None
    done: list[object] = []
    for event in events:
        state, instructions = step(state, event)
        done += instructions
    return state, done


def test_a_fault_that_goes_well_is_recorded_before_it_is_spawned_and_marked_before_it_is_applied() -> None:
    state, done = walk(Accepted(), Spawned(HOLDER), Applied(), End(Cause.DURATION), Undone(()))

    assert state is Mark.CLEAN
    assert [type(instruction) for instruction in done] == [
        Record, Report, Spawn, Note, Go, Note, StartMeasuring, Report, Undo, Note, Report, Note, Report,
    ]  # fmt: skip
    assert [i.mark for i in done if isinstance(i, Note)] == [Mark.HELD, Mark.ACTIVE, Mark.UNDOING, Mark.CLEAN]


@pytest.mark.parametrize(
    ("events", "cause"),
    [
        ((Accepted(), Failed("x")), Cause.APPLY_FAILED),
        ((Accepted(), Spawned(HOLDER), Failed("x")), Cause.APPLY_FAILED),
        ((Accepted(), Spawned(HOLDER), End(Cause.STOPPED)), Cause.STOPPED),
        ((Accepted(), Spawned(HOLDER), Broken("x")), Cause.APPLY_FAILED),
        ((Accepted(), Spawned(HOLDER), Applied(), HolderDied("x")), Cause.HOLDER_DIED),
        ((Accepted(), Spawned(HOLDER), Applied(), Broken("x")), Cause.HOLDER_DIED),
        ((Accepted(), Spawned(HOLDER), Applied(), End(Cause.LEASE_LOST)), Cause.LEASE_LOST),
    ],
)
def test_every_way_to_end_leads_to_an_undo_that_says_why(events: tuple[Event, ...], cause: Cause) -> None:
    state, done = walk(*events)

    assert state is Mark.UNDOING
    assert done.count(Undo()) == 1
    assert [i.cause for i in done if isinstance(i, Note) and i.mark is Mark.UNDOING] == [cause]


def test_what_left_residue_is_tried_again_and_can_become_clean() -> None:
    begun = (Accepted(), Spawned(HOLDER), Applied(), End(Cause.DURATION), Undone(("a table is left",)))
    assert walk(*begun)[0] is Mark.RESIDUE
    assert walk(*begun, Retry())[1][-1] == Undo()
    assert walk(*begun, Retry(), Undone(()))[0] is Mark.CLEAN


def test_the_undo_does_not_wait_for_a_slow_disk() -> None:
    _, done = walk(Accepted(), Spawned(HOLDER), Applied(), End(Cause.STOPPED))
    marked = next(n for n, i in enumerate(done) if isinstance(i, Note) and i.mark is Mark.UNDOING)
    assert done.index(Undo()) < marked


def test_a_broken_undo_is_residue_and_tried_again() -> None:
    broken = (Accepted(), Spawned(HOLDER), Applied(), End(Cause.STOPPED), Broken("KeyError: 'table'"))
    state, done = walk(*broken)
    assert state is Mark.RESIDUE
    assert [i.residue for i in done if isinstance(i, Note) and i.mark is Mark.RESIDUE] == [("KeyError: 'table'",)]
    assert walk(*broken, Retry())[1][-1] == Undo()


def test_no_sequence_of_events_applies_without_record_and_holder_or_skips_the_undo() -> None:
    for events in itertools.product(EVENTS, repeat=5):
        state, done = walk(*events)
        kinds = [type(instruction) for instruction in done]
        if Spawn in kinds:
            assert kinds.index(Record) < kinds.index(Spawn), events
        if Go in kinds:
            held = next(n for n, i in enumerate(done) if isinstance(i, Note) and i.mark is Mark.HELD)
            assert held < kinds.index(Go), events
        if state is Mark.CLEAN:
            assert Undo in kinds, events
        assert kinds.count(Record) <= 1, events


def test_late_events_change_nothing_when_a_fault_is_clean() -> None:
    clean = (Accepted(), Spawned(HOLDER), Applied(), End(Cause.DURATION), Undone(()))
    for event in EVENTS:
        assert step(walk(*clean)[0], event) == (Mark.CLEAN, ())


@pytest.mark.parametrize(
    "begun", [(Accepted(),), (Accepted(), Spawned(HOLDER)), (Accepted(), Spawned(HOLDER), Applied())]
)
def test_an_end_is_taken_in_every_state_before_the_undo_and_its_reason_is_told(begun: tuple[Event, ...]) -> None:
    state, done = walk(*begun, End(Cause.HALTED, "lunch"))
    assert state is Mark.UNDOING
    assert done[-3:] == [Undo(), Note(Mark.UNDOING, cause=Cause.HALTED), Report("lunch")]
    assert End(Cause.STOPPED) == End(Cause.STOPPED, "")


def test_marks_and_reports_say_what_is_known_and_nothing_else() -> None:
    _, done = walk(Accepted(), Spawned(HOLDER), Applied(), End(Cause.STOPPED), Undone(("a table", "a process")))
    notes = [one for one in done if isinstance(one, Note)]
    assert notes == [
        Note(Mark.HELD, "", HOLDER, ()),
        Note(Mark.ACTIVE, "", None, ()),
        Note(Mark.UNDOING, "STOPPED", None, ()),
        Note(Mark.RESIDUE, "", None, ("a table", "a process")),
    ]
    assert [one.message for one in done if isinstance(one, Report)] == ["", "", "", "a table; a process"]


def test_causes_are_those_of_the_wire() -> None:
    assert {cause.value for cause in Cause} == set(fault_pb2.EndCause.keys()) - {"END_CAUSE_UNSPECIFIED"}
