"""Planning: targets, picks and refusals, from a seed and a view of the fleet."""

import pytest
from brownout_controller.language import parse_experiment
from brownout_controller.planning.fleet_view import HostView
from brownout_controller.planning.plan import Plan, PlanRefused, make_plan
from hypothesis import given
from hypothesis import strategies as st

KINDS = frozenset({"cpu.load", "network.blackhole"})


def host(name: str, role: str = "app", **more: object) -> HostView:
    values: dict[str, object] = {"environment": "staging", "kinds": KINDS}
    return HostView(name, {"role": role, "host": name}, **{**values, **more})  # type: ignore[arg-type]


def fleet(count: int) -> list[HostView]:
    return [host(f"app-{number}") for number in range(count)]


def plan(hosts: list[HostView], target: str = '"role=app"', seed: int = 1, extra: str = "") -> Plan:
    text = f"""
version: 1
name: a-plan
targets: {{some: {{selector: "role=app", pick: 50%}}, all: {{selector: "role=app", pick: all, exclude: [app-0]}}}}
{extra}
faults:
  - {{inject: cpu.load, target: {target}, with: {{percent: 50}}, for: 30s}}
"""
    return make_plan(parse_experiment(text), hosts, seed)


def problems(hosts: list[HostView], **more: object) -> list[tuple[str, str, str]]:
    with pytest.raises(PlanRefused) as refused:
        plan(hosts, **more)  # type: ignore[arg-type]
    return [(problem.code, problem.message, problem.help) for problem in refused.value.problems]


def test_one_host_is_picked_unless_more_are_asked_for() -> None:
    assert len(plan(fleet(5)).faults[0].hosts) == 1
    assert plan(fleet(5)).faults[0].matched == tuple(f"app-{number}" for number in range(5))


@given(count=st.integers(min_value=1, max_value=40), seed=st.integers(min_value=0, max_value=2**32))
def test_percentages_round_up_and_the_seed_alone_decides_who(count: int, seed: int) -> None:
    first = plan(fleet(count), "some", seed).faults[0].hosts
    assert len(first) == (count + 1) // 2
    assert plan(list(reversed(fleet(count))), "some", seed).faults[0].hosts == first


def test_different_seeds_choose_different_hosts() -> None:
    assert len({plan(fleet(20), seed=seed).faults[0].hosts for seed in range(30)}) > 5


def test_excluded_hosts_are_never_chosen() -> None:
    assert plan(fleet(3), "all").faults[0].hosts == ("app-1", "app-2")


def test_a_target_that_matches_nobody_is_refused_and_the_closest_host_is_named() -> None:
    ((code, message, help_text),) = problems([host("db-1", role="database")])
    assert code == "no-target"
    assert message == "target `role=app` of fault `cpu-load` matches 0 hosts, so nothing was injected"
    assert help_text.startswith("closest: db-1 has role=database")


def test_without_any_host_the_next_command_is_named() -> None:
    ((_, _, help_text),) = problems([])
    assert "brownout doctor" in help_text


def test_a_host_that_cannot_do_it_is_refused_with_its_reason_and_remedy() -> None:
    unable = {"cpu.load": ("no cores", "buy some")}
    assert problems([host("app-1", unable=unable)]) == [("not-able", "app-1 cannot do cpu.load: no cores", "buy some")]


def test_a_host_of_another_environment_is_refused() -> None:
    ((code, message, _),) = problems([host("app-1", environment="production")])
    assert code == "wrong-environment"
    assert "matches 0 hosts of environment `staging`" in message
    assert message.endswith("elsewhere: app-1 (`production`)")
    probes = 'probes: {web: {http: "http://shop.test/", from: ["role=edge"]}}'
    fleet = [host("app-1"), *(host(f"edge-{n}", role="edge", environment="production") for n in range(5))]
    ((code, message, _),) = problems(fleet, extra=probes)
    assert code == "wrong-environment"
    assert message.endswith("elsewhere: edge-0 (`production`), edge-1 (`production`), edge-2 (`production`) and 2 more")


def test_of_hosts_in_several_environments_those_of_the_experiments_are_meant() -> None:
    fleet = [host(f"app-{n}", environment="staging" if n % 2 else "production") for n in range(20)]
    made = plan(fleet, "all")
    assert made.faults[0].hosts == tuple(sorted(f"app-{n}" for n in range(20) if n % 2))
    assert {one.name for one in made.hosts} == set(made.faults[0].hosts)


def test_a_host_without_a_policy_that_can_be_read_may_probe_and_gets_no_fault() -> None:
    probes = 'probes: {web: {http: "http://shop.test/", from: ["role=edge"]}}'
    bare = {"environment": "", "policy": "no file"}
    assert plan([host("app-1"), host("edge-1", role="edge", **bare)], extra=probes).observers[0].vantage == "edge-1"
    ((code, message, _),) = problems([host("app-1", **bare)])
    assert code == "wrong-environment"
    assert "app-1 has no policy that allows anything (no file)" in message


def test_a_host_without_injector_is_refused() -> None:
    ((code, _, _),) = problems([host("app-1", injector_attached=False)])
    assert code == "no-injector"


def test_a_vantage_that_matches_nobody_is_refused() -> None:
    probes = 'probes: {web: {http: "http://shop.test/", from: ["role=edge"]}}'
    ((code, message, _),) = problems(fleet(1), extra=probes)
    assert code == "no-vantage"
    assert "`role=edge` of probe `web`" in message


def test_every_vantage_gets_a_prober_of_its_own() -> None:
    probes = 'probes: {web: {http: "http://shop.test/", from: [controller, "role=edge"]}}'
    made = plan([host("app-1"), host("edge-1", role="edge"), host("edge-2", role="edge")], extra=probes)
    assert [observer.vantage for observer in made.observers] == ["controller", "edge-1", "edge-2"]


def test_the_digest_names_what_will_be_done() -> None:
    assert plan(fleet(3)).digest == plan(fleet(3)).digest
    assert plan(fleet(3), seed=1).digest != plan(fleet(3), seed=2).digest
    assert plan(fleet(3), "some").digest != plan(fleet(3), "all").digest


def test_the_digest_tells_a_guard_that_a_variable_has_weakened() -> None:
    text = """
version: 1
name: guarded
vars: {most: 5s}
probes: {shop: {tcp: "shop.test:80", every: 1s}}
guards: [{probe: shop, abort_if: "outage > ${vars.most}"}]
faults: [{inject: cpu.load, target: "role=app", with: {percent: 50}, for: 30s}]
"""
    first, second = (
        make_plan(parse_experiment(text, overrides={"most": most}), fleet(3), 1).digest for most in ("5s", "50m")
    )
    assert first != second
