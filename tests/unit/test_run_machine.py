"""The run's state machine: plain events in, instructions out."""

import uuid

import pytest
from brownout_controller.language import parse_experiment
from brownout_controller.planning.fleet_view import HostView
from brownout_controller.planning.plan import make_plan
from brownout_controller.record import EventKind
from brownout_controller.running.machine import GIVE_UP_AFTER_NS, NO_HOST, RunMachine, fault_id
from brownout_controller.running.messages import (
    AnswerLost,
    ChooseHosts,
    End,
    FaultSaid,
    HostBack,
    HostsChosen,
    HostSilent,
    Inject,
    Instruction,
    JudgeSteady,
    LeaveOut,
    Phase,
    Say,
    State,
    SteadyJudged,
    Stop,
    StopAsked,
    Tick,
)

S = 1_000_000_000
KEY = str(uuid.UUID(int=7))
KINDS = frozenset({"cpu.load", "network.blackhole"})
HOSTS = [HostView(f"app-{n}", {"role": "app", "host": f"app-{n}"}, "staging", KINDS) for n in (1, 2)]
TWO_FAULTS = """
version: 1
name: two-faults
steady_state: {before: 2s, after: 3s}
faults:
  - {name: first, inject: cpu.load, target: "host=app-1", with: {percent: 50}, for: 5s}
  - {name: second, inject: cpu.load, target: "host=app-2", with: {percent: 50}, after: first, wait: 1s, for: 5s}
"""


def machine(text: str = TWO_FAULTS) -> RunMachine:
    return RunMachine(make_plan(parse_experiment(text), HOSTS, seed=1), KEY, 0)


def injected(instructions: list[Instruction]) -> list[str]:
    return [instruction.instance.fault_id for instruction in instructions if isinstance(instruction, Inject)]


def stopped(instructions: list[Instruction]) -> list[str]:
    return [instruction.instance.fault_id for instruction in instructions if isinstance(instruction, Stop)]


def begun(*, long: bool = False) -> tuple[RunMachine, str]:
    """A run whose first fault has just been ordered, and that fault's id."""
    run = machine(TWO_FAULTS.replace("for: 5s", "for: 10m") if long else TWO_FAULTS)
    assert run.handle(Tick(2 * S)) == [JudgeSteady()]
    (fault_id,) = injected(run.handle(SteadyJudged(2 * S, ())))
    return run, fault_id


@pytest.mark.parametrize("started_s", [0, 100])
def test_nothing_is_injected_before_the_steady_state_was_judged(started_s: int) -> None:
    run = RunMachine(machine().plan, KEY, started_s * S)
    assert (run.injecting_ns, run.settling_ns, run.stopped_by, run.stop_reason, run.refused) == (0, 0, "", "", ())
    assert run.handle(Tick((started_s + 2) * S - 1)) == []
    assert run.handle(Tick((started_s + 2) * S)) == [JudgeSteady()]
    assert run.handle(Tick((started_s + 3) * S)) == []
    confirmed, ordered, inject = run.handle(SteadyJudged((started_s + 4) * S, ()))
    assert confirmed == Say(EventKind.STEADY_CONFIRMED, "run", "", "every expectation held before the first fault")
    assert ordered == Say(EventKind.FAULT_ORDERED, "first", "app-1", "")
    assert isinstance(inject, Inject)
    assert (inject.instance.state, inject.instance.active_ns) == (State.ORDERED, None)


def test_an_unsteady_system_is_left_alone() -> None:
    run = machine()
    run.handle(Tick(2 * S))
    assert run.handle(SteadyJudged(2 * S, ("checkout fails now",))) == [End()]
    assert run.phase is Phase.ENDED
    assert run.refused == ("checkout fails now",)
    assert run.instances == {}


def test_a_fault_that_comes_after_another_waits_until_that_one_was_seen_clean() -> None:
    run, first = begun()
    run.handle(FaultSaid(3 * S, first, State.ACTIVE))
    run.handle(FaultSaid(8 * S, first, State.UNDOING))
    assert injected(run.handle(Tick(30 * S))) == []
    run.handle(FaultSaid(31 * S, first, State.CLEAN))
    assert injected(run.handle(Tick(int(31.9 * S)))) == []
    assert len(injected(run.handle(Tick(32 * S)))) == 1


def test_the_run_ends_when_every_fault_is_clean_and_the_time_after_has_passed() -> None:
    run, first = begun()
    run.handle(FaultSaid(8 * S, first, State.CLEAN))
    (second,) = injected(run.handle(Tick(9 * S)))
    run.handle(FaultSaid(14 * S, second, State.CLEAN))
    assert run.phase is Phase.SETTLING
    assert run.over_ns == {"first": 8 * S, "second": 14 * S}
    assert run.handle(Tick(16 * S)) == []
    assert (run.handle(Tick(17 * S)), run.phase) == ([End()], Phase.ENDED)
    assert run.handle(Tick(18 * S)) == []


def test_when_every_host_refused_there_is_nothing_to_wait_for() -> None:
    run, first = begun()
    run.handle(FaultSaid(3 * S, first, State.REFUSED))
    (second,) = injected(run.handle(Tick(4 * S)))
    instructions = run.handle(FaultSaid(5 * S, second, State.REFUSED))
    assert End() in instructions + run.handle(Tick(6 * S))


def test_a_halt_stops_what_is_open_and_waits_for_it() -> None:
    run, first = begun()
    run.handle(FaultSaid(3 * S, first, State.ACTIVE))
    (stop,) = run.handle(StopAsked(4 * S, "person", "INC-204"))
    assert isinstance(stop, Stop)
    assert stop.instance.fault_id == first
    assert run.handle(Tick(10 * S)) == []
    assert run.handle(FaultSaid(11 * S, first, State.CLEAN)) == [End()]
    assert (run.stopped_by, run.stop_reason) == ("person", "INC-204")


def test_a_second_halt_changes_nothing() -> None:
    run, _ = begun()
    run.handle(StopAsked(4 * S, "guard", "outage > 45s"))
    assert run.handle(StopAsked(5 * S, "person", "Ctrl-C")) == []
    assert run.stopped_by == "guard"


def test_no_new_fault_begins_after_a_halt() -> None:
    run, first = begun()
    run.handle(StopAsked(4 * S, "person", "x"))
    run.handle(FaultSaid(5 * S, first, State.CLEAN))
    assert injected(run.handle(Tick(60 * S))) == []


def test_a_silent_host_is_unknown_in_the_end_and_never_clean() -> None:
    run, first = begun()
    run.handle(FaultSaid(3 * S, first, State.ACTIVE))
    run.handle(HostSilent(4 * S, "app-1"))
    run.handle(Tick(4 * S + GIVE_UP_AFTER_NS - 1))
    assert run.instances[first].state is State.ACTIVE
    run.handle(Tick(4 * S + GIVE_UP_AFTER_NS))
    assert run.instances[first].state is State.UNKNOWN


def test_a_host_that_comes_back_late_can_still_say_that_it_is_clean() -> None:
    run, first = begun()
    run.handle(HostSilent(4 * S, "app-1"))
    run.handle(Tick(4 * S + GIVE_UP_AFTER_NS))
    run.handle(FaultSaid(60 * S, first, State.CLEAN))
    assert run.instances[first].state is State.CLEAN


def test_a_late_word_does_not_bring_a_clean_fault_back() -> None:
    run, first = begun()
    run.handle(FaultSaid(8 * S, first, State.CLEAN))
    run.handle(FaultSaid(9 * S, first, State.ACTIVE))
    assert run.instances[first].state is State.CLEAN


@pytest.mark.parametrize(
    ("known", "late"),
    [
        (State.ACTIVE, State.ORDERED),
        (State.RESIDUE, State.UNDOING),
        (State.UNKNOWN, State.UNDOING),
        (State.CLEAN, State.RESIDUE),
        (State.REFUSED, State.RESIDUE),
    ],
)
def test_no_state_goes_back_and_what_is_clean_or_refused_stays_so(known: State, late: State) -> None:
    run, first = begun()
    run.handle(FaultSaid(3 * S, first, known))
    run.handle(FaultSaid(4 * S, first, late))
    assert run.instances[first].state is known


def test_a_fault_is_active_from_when_that_was_first_heard() -> None:
    run, first = begun()
    run.handle(FaultSaid(3 * S, first, State.ORDERED))
    assert run.instances[first].active_ns is None
    for at_s, state in ((4, State.ACTIVE), (5, State.ACTIVE), (6, State.UNDOING)):
        run.handle(FaultSaid(at_s * S, first, state))
        assert run.instances[first].active_ns == 4 * S


def test_fault_ids_are_made_from_the_run_and_are_the_same_for_the_same_run() -> None:
    assert begun()[1] == begun()[1]
    other = RunMachine(machine().plan, str(uuid.UUID(int=8)), 0)
    other.handle(Tick(2 * S))
    assert injected(other.handle(SteadyJudged(2 * S, ()))) != [begun()[1]]


def test_a_host_that_was_silent_for_a_moment_is_not_given_up_later() -> None:
    run, first = begun(long=True)
    run.handle(FaultSaid(3 * S, first, State.ACTIVE))
    run.handle(HostSilent(10 * S, "app-1"))
    run.handle(FaultSaid(12 * S, first, State.ACTIVE))
    run.handle(Tick(10 * S + 2 * GIVE_UP_AFTER_NS))
    assert run.instances[first].state is State.ACTIVE


def test_words_that_come_late_never_turn_a_fault_back() -> None:
    run, first = begun()
    run.handle(FaultSaid(3 * S, first, State.UNDOING))
    run.handle(FaultSaid(4 * S, first, State.ACTIVE))
    assert run.instances[first].state is State.UNDOING


def test_an_indefinite_answer_leads_to_one_stop_and_to_another_when_the_host_is_back() -> None:
    run, first = begun()
    assert stopped(run.handle(AnswerLost(3 * S, first, "the injector closed the connection"))) == [first]
    assert stopped(run.handle(AnswerLost(4 * S, first, "it does not answer"))) == []
    assert stopped(run.handle(HostBack(5 * S, "app-2"))) == []
    assert stopped(run.handle(HostBack(6 * S, "app-1"))) == [first]
    run.handle(FaultSaid(7 * S, first, State.CLEAN))
    assert stopped(run.handle(HostBack(8 * S, "app-1"))) == []


def test_a_host_that_comes_back_is_not_told_to_stop_what_may_go_on() -> None:
    run, first = begun()
    run.handle(FaultSaid(3 * S, first, State.ACTIVE))
    run.handle(HostSilent(4 * S, "app-1"))
    assert stopped(run.handle(HostBack(5 * S, "app-1"))) == []


def test_a_fault_that_is_given_up_is_told_to_stop_all_the_same() -> None:
    run, first = begun()
    run.handle(HostSilent(4 * S, "app-1"))
    said, stop, *_ = run.handle(Tick(4 * S + GIVE_UP_AFTER_NS))
    message = "nothing was heard of it for so long that its own limits have passed; ask app-1"
    assert said == Say(EventKind.FAULT_UNKNOWN, "first", "app-1", message)
    assert stop == Stop(run.instances[first], "nothing was heard of it")


def test_what_was_stopped_or_answered_indefinitely_is_given_up_45_s_later_however_long_it_was_ordered_for() -> None:
    assert GIVE_UP_AFTER_NS == 45 * S
    for event in (
        lambda first: AnswerLost(4 * S, first, "the stream ended"),
        lambda _: StopAsked(4 * S, "person", "INC-204"),
    ):
        run, first = begun(long=True)
        (stop,) = run.handle(event(first))
        assert run.handle(Tick(49 * S - 1)) == []
        said, again, *_ = run.handle(Tick(49 * S))
        assert isinstance(said, Say)
        assert (said.kind, again) == (EventKind.FAULT_UNKNOWN, stop)


def test_a_stop_is_said_again_with_its_reason_to_a_host_that_comes_back() -> None:
    run, first = begun()
    stops = run.handle(StopAsked(4 * S, "guard", "outage > 45s"))
    assert stops == run.handle(HostBack(5 * S, "app-1")) == [Stop(run.instances[first], "outage > 45s")]


def test_an_answer_about_nothing_or_about_what_is_over_changes_nothing() -> None:
    run, first = begun()
    assert run.handle(AnswerLost(3 * S, "another", "late")) == []
    run.handle(FaultSaid(4 * S, first, State.RESIDUE))
    assert run.handle(AnswerLost(5 * S, first, "late")) == []
    assert (run.phase, run.instances[first].state) == (Phase.ENDED, State.RESIDUE)


AT_ONCE = """
version: 1
name: at-once
faults:
  - {name: early, inject: cpu.load, target: "host=app-1", with: {percent: 50}, for: 10m}
  - {name: late, inject: cpu.load, target: "host=app-2", with: {percent: 50}, at: 3s, for: 10m}
"""


def test_faults_side_by_side_begin_when_they_are_due_and_each_is_over_by_itself() -> None:
    run = machine(AT_ONCE)
    run.handle(Tick(60 * S))
    (early,) = injected(run.handle(SteadyJudged(60 * S, ())))
    assert injected(run.handle(Tick(63 * S - 1))) == []
    (late,) = injected(run.handle(Tick(63 * S)))
    run.handle(FaultSaid(70 * S, early, State.CLEAN))
    assert (run.over_ns, run.phase) == ({"early": 70 * S}, Phase.INJECTING)
    run.handle(FaultSaid(71 * S, late, State.CLEAN))
    assert run.over_ns == {"early": 70 * S, "late": 71 * S}


def test_a_silent_host_says_nothing_of_the_others() -> None:
    run = machine(AT_ONCE)
    run.handle(Tick(60 * S))
    run.handle(SteadyJudged(60 * S, ()))
    run.handle(Tick(63 * S))
    run.handle(HostSilent(70 * S, "app-2"))
    run.handle(Tick(70 * S + GIVE_UP_AFTER_NS))
    assert {one.host: one.state for one in run.instances.values()} == {
        "app-1": State.ORDERED,
        "app-2": State.UNKNOWN,
    }


@pytest.mark.parametrize("state", [State.RESIDUE, State.UNKNOWN])
def test_no_further_fault_begins_while_an_undo_is_not_confirmed(state: State) -> None:
    run, first = begun()
    instructions = run.handle(FaultSaid(8 * S, first, state))
    assert injected(instructions + run.handle(Tick(60 * S))) == []
    assert run.phase is Phase.ENDED
    assert run.stopped_by == "error"
    assert "the undo of first on app-1 is not confirmed" in run.stop_reason


def test_a_fault_that_nobody_can_take_when_it_is_due_is_left_out_and_told() -> None:
    run, (left_out,) = chosen_at_injection("fail")
    assert isinstance(left_out, LeaveOut)
    assert (left_out.instance.host, left_out.instance.state) == (NO_HOST, State.REFUSED)
    assert (left_out.reason, NO_HOST) == ("no host matched when it was due", "no host")
    assert list(run.instances) == [fault_id(KEY, "one", "")]
    assert (run.phase, run.over_ns) == (Phase.SETTLING, {"one": 60 * S})


def test_a_fault_that_may_be_skipped_is_no_failure() -> None:
    run, (said,) = chosen_at_injection("skip")
    reason = "left out: no host matched, and if_none is skip"
    assert said == Say(EventKind.FAULT_REFUSED, "one", "", reason)
    assert (run.instances, run.over_ns) == ({}, {"one": 60 * S})


def test_a_fault_that_was_planned_for_nobody_and_may_be_skipped_is_left_out_when_it_is_due() -> None:
    targets = "targets: {gone: {selector: host=app-9, if_none: skip}}\nfaults:"
    run = machine(TWO_FAULTS.replace("faults:", targets).replace('target: "host=app-1"', "target: gone"))
    instructions = run.handle(SteadyJudged(2 * S, ()))
    said = [one for one in instructions if isinstance(one, Say) and one.kind is EventKind.FAULT_REFUSED]
    assert [one.message for one in said] == ["left out: no host matched, and if_none is skip"]
    assert (run.instances, run.over_ns) == ({}, {"first": 2 * S})


@pytest.mark.parametrize("if_none", ["fail", "skip"])
def test_hosts_that_matched_and_have_no_peers_are_no_wish_to_skip(if_none: str) -> None:
    _, (left_out,) = chosen_at_injection(if_none, "a ring needs 4 hosts; there are 3")
    assert isinstance(left_out, LeaveOut)
    assert left_out.reason == "a ring needs 4 hosts; there are 3"


def test_hosts_that_were_chosen_at_injection_get_the_fault_that_they_were_chosen_for() -> None:
    run = machine("""
version: 1
name: moved
targets: {app: {selector: "role=app", resolve: at_injection}}
faults:
  - {name: one, inject: cpu.load, target: app, with: {percent: 50}, for: 5s}
  - {name: two, inject: cpu.load, target: app, with: {percent: 60}, for: 5s}
""")
    run.handle(Tick(60 * S))
    run.handle(SteadyJudged(60 * S, ()))
    for name, host in (("two", "app-2"), ("one", "app-1")):
        (ordered,) = injected(run.handle(HostsChosen(60 * S, name, (host,))))
        assert (run.instances[ordered].fault.name, run.instances[ordered].host) == (name, host)


def chosen_at_injection(if_none: str, why_none: str = "") -> tuple[RunMachine, list[Instruction]]:
    """A run whose one target matches nobody when its fault is due, and what is to be done then."""
    run = machine(f"""
version: 1
name: moved
targets: {{app: {{selector: "host=app-1", resolve: at_injection, if_none: {if_none}}}}}
faults: [{{name: one, inject: cpu.load, target: app, with: {{percent: 50}}, for: 5s}}]
""")
    run.handle(Tick(60 * S))
    (choose,) = (one for one in run.handle(SteadyJudged(60 * S, ())) if isinstance(one, ChooseHosts))
    return run, run.handle(HostsChosen(60 * S, choose.fault.name, (), why_none))
