"""What a run collects: samples late, twice and out of order; changes twice; reports of a fault in any order."""

import uuid

import pytest
from brownout_agent.observe import Change, Sample
from brownout_controller.fleet.clocks import Exchange
from brownout_controller.language import parse_experiment
from brownout_controller.planning.fleet_view import HostView
from brownout_controller.planning.plan import Plan, make_plan
from brownout_controller.record import FaultOutcome, Series
from brownout_controller.running.collector import Collector, RunFacts
from brownout_controller.running.messages import Instance, State
from brownout_controller.running.timeline import Timeline
from brownout_protos.v1 import fault_pb2
from hypothesis import given
from hypothesis import strategies as st

MS = 1_000_000
CLOCK = Exchange(at_ns=0, offset_ns=500, error_ns=40)
BETTER_CLOCK = Exchange(at_ns=0, offset_ns=520, error_ns=10)
ID = str(uuid.UUID(int=1))
PROBE = "probe/web/app-1"
TEXT = """
version: 1
name: collected
probes: {web: {http: "http://shop.test/", every: 100ms, from: ["host=app-1"]}}
watch: {lb: {haproxy: {socket: /run/h.sock, backend: shop}, from: "host=app-1"}}
faults: [{inject: cpu.load, target: "host=app-1", with: {percent: 50}, for: 5s}]
"""


@pytest.fixture(name="collector")
def _collector() -> Collector:
    return make_collector()


def make_plan_of_the_test() -> Plan:
    host = HostView("app-1", {"role": "app", "host": "app-1"}, "staging", frozenset({"cpu.load"}))
    return make_plan(parse_experiment(TEXT), [host], seed=1)


def make_collector() -> Collector:
    timeline = Timeline(wall_ns=0, monotonic_ns=0, boottime_ns=0)
    return Collector(RunFacts("1", "somebody", make_plan_of_the_test(), timeline))


def series(collector: Collector) -> Series:
    (only,) = collector.series()
    return only


def sample(number: int) -> Sample:
    return Sample(sent_ns=number * 100 * MS, took_us=number, ok=True, outcome="200")


@given(order=st.permutations(range(8)), again=st.lists(st.integers(min_value=0, max_value=7)))
def test_samples_may_come_late_and_twice_and_in_any_order(order: list[int], again: list[int]) -> None:
    collector = make_collector()
    for number in [*order, *again]:
        # The second time the offset is better known: it is the same sample all the same.
        collector.samples(PROBE, [sample(number)], 0, BETTER_CLOCK if number in again else CLOCK)
    seen = series(collector)
    assert seen.took_ns == tuple(number * 1_000 for number in range(8))
    assert list(seen.sent_ns) == sorted(set(seen.sent_ns))


def test_a_batch_that_is_said_again_counts_its_misses_once(collector: Collector) -> None:
    for _ in range(2):
        collector.samples(PROBE, [sample(1), sample(2)], 3, CLOCK)
    assert series(collector).missed == 3


def test_the_worst_clock_error_of_a_series_is_told(collector: Collector) -> None:
    for number, clock in enumerate((BETTER_CLOCK, CLOCK, BETTER_CLOCK)):
        collector.samples(PROBE, [sample(number)], 0, clock)
    assert series(collector).vantage.clock_error_ns == CLOCK.error_ns


def test_a_change_that_is_said_twice_is_one_event(collector: Collector) -> None:
    observer = next(one for one in collector._facts.plan.observers if one.is_watcher)
    change = Change(at_ns=5 * MS, not_before_ns=4 * MS, subject="shop/app-1", before="UP", after="DOWN")
    assert collector.change(observer, change, CLOCK) is not None
    assert collector.change(observer, change, BETTER_CLOCK) is None
    assert len(collector.events) == 1


def test_samples_of_a_probe_that_nobody_planned_are_dropped(collector: Collector) -> None:
    collector.samples("probe/other/app-1", [sample(1)], 0, CLOCK)
    assert series(collector).sent_ns == ()


def fault_after(collector: Collector, state: State, *reports: fault_pb2.FaultReport) -> FaultOutcome:
    instance = Instance(ID, collector._facts.plan.faults[0], "app-1", State.ORDERED, 0, 0)
    collector.ordered(instance)
    for report in reports:
        collector.report(report, CLOCK)
    instance.state = state
    (outcome,) = collector.record((), "", "").faults
    return outcome


def report(state: fault_pb2.FaultState, at_ns: int, **more: object) -> fault_pb2.FaultReport:
    return fault_pb2.FaultReport(fault_id=ID, state=state, at_boottime_ns=at_ns, **more)  # type: ignore[arg-type]


def proved(samples: int) -> fault_pb2.Effect:
    return fault_pb2.Effect(
        asked=50, achieved=50, measured=True, proved=True, samples=samples, explanation="it was measured."
    )


def test_a_fault_that_went_its_full_time_is_proved(collector: Collector) -> None:
    outcome = fault_after(
        collector,
        State.CLEAN,
        report(fault_pb2.ACTIVE, 1_000),
        report(fault_pb2.CLEAN, 9_000, end_cause=fault_pb2.DURATION, effect=proved(5)),
    )
    assert (outcome.proved, outcome.undo, outcome.end_cause) == (True, "clean", "duration")


@pytest.mark.parametrize("cause", [fault_pb2.REAPED, fault_pb2.HOLDER_DIED, fault_pb2.LEASE_LOST, fault_pb2.SHUTDOWN])
def test_a_fault_that_ended_before_its_time_proves_nothing(collector: Collector, cause: fault_pb2.EndCause) -> None:
    outcome = fault_after(
        collector,
        State.CLEAN,
        report(fault_pb2.ACTIVE, 1_000, effect=proved(5)),
        report(fault_pb2.CLEAN, 9_000, end_cause=cause),
    )
    assert not outcome.proved
    assert "It ended before its time" in outcome.explanation


def test_reports_out_of_order_keep_the_earliest_begin_and_the_fullest_measurement(collector: Collector) -> None:
    outcome = fault_after(
        collector,
        State.CLEAN,
        report(fault_pb2.ACTIVE, 3_000),
        report(fault_pb2.CLEAN, 9_000, end_cause=fault_pb2.DURATION, effect=proved(5)),
        report(fault_pb2.ACTIVE, 1_000, effect=fault_pb2.Effect(samples=1)),
    )
    assert outcome.active_ns == 1_000 - CLOCK.offset_ns
    assert outcome.proved


def test_a_fault_of_which_nothing_more_was_heard_is_unknown_and_not_proved(collector: Collector) -> None:
    outcome = fault_after(collector, State.ACTIVE, report(fault_pb2.ACTIVE, 1_000))
    assert (outcome.undo, outcome.proved) == ("unknown", False)
