"""What a host may tell of what it was asked to watch: a hostile one must not fill the controller's memory."""

from collections.abc import Callable

import pytest
from brownout_agent.observing import MOST_WAITING
from brownout_controller.fleet.clocks import ClockEstimate, Exchange
from brownout_controller.record import Event, EventKind
from brownout_controller.running.collector import CHANGES_MAX, Collector, RunFacts
from brownout_controller.running.observation import Observation
from brownout_controller.running.timeline import Timeline
from brownout_protos.v1 import fleet_pb2

from tests.unit.test_collector import make_plan_of_the_test

Hear = Callable[[fleet_pb2.AgentMessage], None]


@pytest.fixture(name="told")
def _told() -> list[Event]:
    return []


@pytest.fixture(name="collector")
def _collector() -> Collector:
    return Collector(RunFacts("1", "somebody", make_plan_of_the_test(), Timeline.start()))


@pytest.fixture(name="hear")
def _hear(collector: Collector, told: list[Event]) -> Hear:
    observation = Observation(make_plan_of_the_test().observers, "key", collector, told.append, lambda *_: True)
    clock = ClockEstimate()
    clock.add(Exchange(at_ns=0, offset_ns=0, error_ns=1))
    return lambda message: observation.heard(message, clock)


def samples(first: int, count: int) -> fleet_pb2.AgentMessage:
    columns = fleet_pb2.ProbeSamples(
        observer_id="key/probe/web/app-1",
        sent_boottime_ns=range(first, first + count),
        took_us=[1] * count,
        ok=[True] * count,
        outcome=[0] * count,
        identity=[0] * count,
        outcomes=["200"],
        identities=[""],
    )
    return fleet_pb2.AgentMessage(samples=columns)


def test_more_samples_than_a_probe_was_to_take_are_not_kept_and_make_its_vantage_blind(
    collector: Collector, hear: Hear, told: list[Event]
) -> None:
    hear(samples(1, MOST_WAITING))
    assert told == []
    for turn in range(1, 5):
        hear(samples(1 + turn * 10_000, 10_000))
    (only,) = collector.series()
    assert len(only.ok) == MOST_WAITING
    assert [(event.kind, event.subject) for event in told] == [(EventKind.WATCH_FAILED, "web")]
    assert "more questions than it was to ask" in told[0].message


def test_more_changes_than_any_system_goes_through_are_not_kept(hear: Hear, told: list[Event]) -> None:
    for at_ns in range(CHANGES_MAX + 100):
        watch = fleet_pb2.WatchEvent(observer_id="key/watch/lb/app-1", at_boottime_ns=at_ns, subject="shop", after="UP")
        hear(fleet_pb2.AgentMessage(watch=watch))
    assert [event.kind for event in told].count(EventKind.WATCH_CHANGED) == CHANGES_MAX
    assert [event.message for event in told if event.kind is EventKind.WATCH_FAILED] == [
        f"more than {CHANGES_MAX} changes were told in this run; the rest is not taken"
    ]
