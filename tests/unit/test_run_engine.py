"""What the engine takes from hosts: each may speak of its own faults only, whatever it was that let it come so far."""

import pytest
from brownout_controller.fleet.sessions import Arrival, Fleet, HostState
from brownout_controller.language import parse_experiment
from brownout_controller.planning.fleet_view import HostView
from brownout_controller.planning.plan import make_plan
from brownout_controller.running.engine import Engine
from brownout_controller.running.messages import Inject, State, SteadyJudged, Tick
from brownout_protos.v1 import fault_pb2, fleet_pb2

TEXT = """
version: 1
name: two-hosts
steady_state: {before: 1s, after: 1s}
faults: [{inject: cpu.load, target: "role=app", with: {percent: 50}, for: 5s}]
"""
HOSTS = [HostView(f"app-{n}", {"role": "app", "host": f"app-{n}"}, "staging", frozenset({"cpu.load"})) for n in (1, 2)]


def ordered() -> tuple[Engine, Fleet, str, str]:
    """A run of one host, whose fault has just been ordered: engine, fleet, the fault's id, its host."""
    fleet = Fleet()
    engine = Engine(make_plan(parse_experiment(TEXT), HOSTS, seed=1), fleet, "1", "mary")
    fleet.listen(engine._arrived)
    now_ns = engine.timeline.now() + 2 * 10**9
    engine.machine.handle(Tick(now_ns))
    (instance,) = [one.instance for one in engine.machine.handle(SteadyJudged(now_ns, ())) if isinstance(one, Inject)]
    engine.collector.ordered(instance)
    return engine, fleet, instance.fault_id, instance.host


def says(fleet: Fleet, host: str, message: fleet_pb2.AgentMessage) -> None:
    state = HostState(f"agent-of-{host}", host, {"host": host}, fleet_pb2.Hello(host=host))
    fleet.arrive(Arrival(state, 1, message=message))


@pytest.mark.parametrize("outcome", [fault_pb2.OrderReply.REFUSED, fault_pb2.OrderReply.INDEFINITE])
def test_a_host_cannot_answer_an_order_of_another(outcome: "fault_pb2.OrderReply.Outcome.ValueType") -> None:
    engine, fleet, fault_id, host = ordered()
    (other,) = {view.name for view in HOSTS} - {host}
    instance = engine.machine.instances[fault_id]
    before = repr(instance)
    reply = fault_pb2.OrderReply(fault_id=fault_id, outcome=outcome, reason="says another")
    says(fleet, other, fleet_pb2.AgentMessage(reply=reply))
    assert repr(instance) == before
    says(fleet, host, fleet_pb2.AgentMessage(reply=reply))
    assert repr(instance) != before


def test_a_host_cannot_report_of_a_fault_of_another() -> None:
    engine, fleet, fault_id, host = ordered()
    (other,) = {view.name for view in HOSTS} - {host}
    report = fault_pb2.FaultReport(fault_id=fault_id, state=fault_pb2.CLEAN, at_boottime_ns=1)
    says(fleet, other, fleet_pb2.AgentMessage(report=report))
    assert engine.machine.instances[fault_id].state is State.ORDERED
