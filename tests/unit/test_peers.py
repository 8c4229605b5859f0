"""Targets as the peers of network faults, and partitions by shape: which hosts, which addresses, which refusals."""

import io
from typing import Any

import pytest
from brownout_agent.agent.addresses import ADDRESSES_MAX, own_addresses
from brownout_controller.fleet.screening import Absurd, screen
from brownout_controller.language import parse_experiment
from brownout_controller.planning.fleet_view import HostView
from brownout_controller.planning.peers import addressed, unaddressed
from brownout_controller.planning.plan import Plan, PlannedFault, PlanRefused, choose, make_plan
from brownout_controller.reporting.plan import plan_document, plan_summary
from brownout_protos.v1 import fleet_pb2
from rich.console import Console

KINDS = frozenset({"network.partition", "network.latency", "cpu.load"})
TARGETS = """
  primary: {selector: "role=db", pick: 1}
  apps: {selector: "role=app", pick: all}
  late: {selector: "role=app", pick: all, resolve: at_injection}
  everybody: {selector: "site=a", pick: all}
  nowhere: {selector: "role=moon", if_none: skip}
"""


def host(name: str, role: str, number: int) -> HostView:
    labels = {"role": role, "host": name, "site": "a"}
    return HostView(name, labels, "staging", KINDS, addresses=(f"10.0.0.{number}", f"fd00::{number}"))


FLEET = [host("app-1", "app", 1), host("app-2", "app", 2), *(host(f"db-{n}", "db", 10 + n) for n in range(1, 5))]


def plan(fault: str, hosts: list[HostView] = FLEET, seed: int = 1) -> Plan:
    text = f"version: 1\nname: parted\ntargets:{TARGETS}faults:\n  - {{{fault}, for: 30s}}\n"
    return make_plan(parse_experiment(text), hosts, seed)


def planned(fault: str, hosts: list[HostView] = FLEET, seed: int = 1) -> PlannedFault:
    return plan(fault, hosts, seed).faults[0]


def problems(fault: str, hosts: list[HostView] = FLEET) -> list[tuple[str, str]]:
    with pytest.raises(PlanRefused) as refused:
        plan(fault, hosts)
    return [(problem.code, problem.message) for problem in refused.value.problems]


def test_a_target_named_as_a_peer_is_the_hosts_that_it_has_as_a_target() -> None:
    for seed in range(20):
        away = planned("inject: network.latency, target: apps, with: {latency: 9ms, to: primary}", seed=seed)
        itself = planned("inject: cpu.load, target: primary, with: {percent: 9}", seed=seed)
        assert away.hosts == ("app-1", "app-2")
        assert away.peers == {"app-1": itself.hosts, "app-2": itself.hosts}


def test_a_host_is_no_peer_of_its_own_and_one_that_has_no_other_is_left_out() -> None:
    ring = planned("inject: network.partition, target: apps, with: {to: [everybody]}")
    assert ring.peers is not None
    assert "app-1" not in ring.peers["app-1"]
    assert {"app-2", "db-1", "db-4"} <= {*ring.peers["app-1"]}
    own = planned("inject: network.partition, target: everybody, with: {to: primary}", seed=3)
    assert len(own.hosts) == len(FLEET) - 1
    assert own.peers is not None
    assert set(own.hosts).isdisjoint(own.peers[own.hosts[0]])


def test_what_is_no_target_is_meant_as_it_is_written() -> None:
    assert planned("inject: network.latency, target: apps, with: {latency: 9ms, to: db.test}").peers is None
    assert planned("inject: cpu.load, target: apps, with: {percent: 9}").peers is None


def test_a_shape_parts_the_targets_own_hosts_and_leaves_the_middle_of_a_bridge_out() -> None:
    bridge = planned("inject: network.partition, target: everybody, with: {shape: bridge}")
    assert bridge.peers is not None
    assert set(bridge.hosts) == set(bridge.peers)
    assert len(bridge.hosts) == len(bridge.matched) - 1


def test_the_plan_shows_and_its_digest_covers_who_is_parted_from_whom() -> None:
    made = plan("inject: network.partition, target: everybody, with: {shape: isolate}")
    other = plan("inject: network.partition, target: everybody, with: {shape: isolate}", seed=9)
    assert made.faults[0].peers != other.faults[0].peers
    assert made.digest != other.digest
    assert plan_document(made)["faults"][0]["peers"] == made.faults[0].peers
    said = io.StringIO()
    Console(width=200, file=said).print(plan_summary(made))
    for name, others in (made.faults[0].peers or {}).items():
        assert f"{name} from {', '.join(others)}" in said.getvalue()


def test_nobody_to_be_parted_from_and_too_few_for_a_shape_are_refused() -> None:
    assert problems("inject: network.partition, target: apps, with: {shape: ring}") == [
        ("no-peers", "fault `network-partition`: a ring needs 4 hosts; there are 2")
    ]
    assert problems("inject: network.partition, target: primary, with: {to: primary}") == [
        ("no-peers", "fault `network-partition`: its peers are nobody: `primary` has no host but the fault's own")
    ]
    assert problems("inject: network.partition, target: apps, with: {to: nowhere}") == [
        ("no-peers", "fault `network-partition`: its peers are nobody: `nowhere` has no host")
    ]


def test_a_peer_that_has_told_no_address_is_refused() -> None:
    silent = HostView("db-1", {"role": "db", "host": "db-1"}, "staging", KINDS, agent_version="0.0.9")
    hosts = [*FLEET[:2], silent]
    ((code, message),) = problems("inject: network.partition, target: apps, with: {to: primary}", hosts)
    assert code == "no-address"
    assert message == "db-1 is a peer of fault `network-partition` and has told no address by which it is reached"


def test_a_target_that_was_planned_keeps_its_hosts_when_others_are_chosen_at_injection() -> None:
    made = plan("inject: network.partition, target: late, with: {to: primary}")
    (primary,) = made.targets["primary"]
    assert "late" not in made.targets
    left = [host for host in FLEET if host.name not in {primary, "app-2"}]
    chosen, peers = choose(made.experiment, made.experiment.faults[0], left, made.targets, made.seed)
    assert (chosen, peers) == (("app-1",), {"app-1": (primary,)})


@pytest.mark.parametrize("fault", ["target: late, with: {to: primary}", "target: primary, with: {to: late}"])
def test_who_is_known_only_at_injection_is_not_planned(fault: str) -> None:
    found = planned(f"inject: network.partition, {fault}")
    assert (found.chosen_at_injection, found.hosts, found.peers) == (True, (), None)


def test_one_host_gets_its_peers_addresses_beside_what_is_written_and_no_shape() -> None:
    runtime = "172.17.0.1"
    own = HostView("a", {}, "staging", KINDS, addresses=("10.0.0.1", runtime))
    peer = HostView("b", {}, "staging", KINDS, addresses=("10.0.0.2", runtime))
    written: dict[str, Any] = {"to": ["db", "192.0.2.0/24"], "port": 5432}
    assert addressed(written, ["db"], own, [peer]) == {"to": ["192.0.2.0/24", "10.0.0.2"], "port": 5432}
    assert addressed({"shape": "halves"}, [], own, [peer]) == {"to": ["10.0.0.2"]}
    alike = HostView("c", {}, "staging", KINDS, addresses=(runtime,))
    assert unaddressed(own, [peer, alike]) == [alike]


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::1", "224.0.0.1", "fe80::1", "db.test", "10.0.0.0/8"])
def test_an_address_that_cannot_be_a_hosts_own_ends_the_agents_stream(address: str) -> None:
    for message in (
        fleet_pb2.AgentMessage(hello=fleet_pb2.Hello(host="a", addresses=[address])),
        fleet_pb2.AgentMessage(addresses=fleet_pb2.HostAddresses(addresses=["10.0.0.1", address])),
    ):
        with pytest.raises(Absurd, match="addresses"):
            screen(message)


def test_as_many_addresses_as_an_agent_tells_are_taken_and_no_more() -> None:
    told = [f"10.0.{number}.1" for number in range(ADDRESSES_MAX)]
    screen(fleet_pb2.AgentMessage(addresses=fleet_pb2.HostAddresses(addresses=told)))
    with pytest.raises(Absurd, match="the limit is 256"):
        screen(fleet_pb2.AgentMessage(addresses=fleet_pb2.HostAddresses(addresses=[*told, "10.1.0.1"])))


def test_what_this_host_tells_of_itself_is_taken() -> None:
    screen(fleet_pb2.AgentMessage(addresses=fleet_pb2.HostAddresses(addresses=own_addresses())))
