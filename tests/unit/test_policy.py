"""The local policy: whatever is wrong with it, nothing is allowed; and nothing passes that goes beyond it."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Refusal
from brownout_agent.injector.order import Order
from brownout_agent.injector.policy import EMBEDDED, Policy, Situation, load
from brownout_agent.injector.stop_file import WELL_KNOWN

GOOD = """
version: 1
environment: staging
faults:
  cpu.load: {allow: true, max_seconds: 60, max: {percent: 90}}
  disk.fill: {allow: true, max: {size: 2GiB}}
  disk.io: {allow: true, max: {write: 20MiB/s}}
  memory.load: {allow: false}
limits: {concurrent: 2, per_day: 20, cooldown_s: 60}
"""
MONDAY_10_H = datetime(2026, 11, 23, 10, tzinfo=UTC)
PERCENT = {"percent": 50}


def check(
    policy: Policy, kind: str, parameters: dict[str, Any], seconds: float = 10, environment: str = "staging", **met: Any
) -> None:
    """Ask the policy about an order that meets a quiet Monday morning, but for `met`."""
    fault = catalogue()[kind]
    order = Order("id", "run", environment, kind, parameters, seconds, 10.0)
    policy.check(order, fault, fault.Parameters.model_validate(parameters), Situation(**{"now": MONDAY_10_H, **met}))


@pytest.fixture
def good(tmp_path: Path) -> Policy:
    return write(tmp_path, GOOD)


def write(folder: Path, text: str, mode: int = 0o644) -> Policy:
    path = folder / "policy.yaml"
    path.write_text(text)
    path.chmod(mode)
    return load(path)


@pytest.mark.parametrize(
    ("kind", "parameters", "seconds", "met"),
    [
        ("cpu.load", {"percent": 90}, 60, {"running": 1, "begun_in_a_day": 19, "idle_s": 60}),
        ("disk.fill", {"path": "/var", "size": "2GiB"}, 10, {}),
        ("disk.io", {"write": "20MiB/s"}, 10, {}),
        ("disk.io", {"read": "900MiB/s"}, 10, {}),
    ],
)
def test_what_is_allowed_passes_up_to_the_very_limit(
    good: Policy, kind: str, parameters: dict[str, Any], seconds: float, met: dict[str, Any]
) -> None:
    check(good, kind, parameters, seconds, **met)


@pytest.mark.parametrize(
    ("kind", "parameters", "seconds", "environment", "met", "reason"),
    [
        ("cpu.load", {"percent": 95}, 10, "staging", {}, "percent 95; this host allows at most 90"),
        ("cpu.load", {"percent": "90.1%"}, 10, "staging", {}, "percent 90.1%; this host allows at most 90"),
        ("disk.fill", {"path": "/", "size": "3GiB"}, 10, "staging", {}, "size 3GiB; this host allows at most 2GiB"),
        (
            "disk.fill",
            {"path": "/", "percent": 99},
            10,
            "staging",
            {},
            "by `percent`; this host has a ceiling for `siz",
        ),
        (
            "disk.fill",
            {"path": "/", "leave": "1MiB"},
            10,
            "staging",
            {},
            "by `leave`; this host has a ceiling for `siz",
        ),
        ("disk.io", {"write": "21MiB/s"}, 10, "staging", {}, "write 21MiB/s; this host allows at most 20MiB/s"),
        ("cpu.load", PERCENT, 60.001, "staging", {}, "this host allows at most 60 s"),
        ("cpu.load", PERCENT, 10, "production", {}, "for environment `production`, this host is `staging`"),
        ("cpu.load", PERCENT, 10, "staging", {"running": 2}, "2 faults run here already"),
        ("cpu.load", PERCENT, 10, "staging", {"begun_in_a_day": 20}, "20 faults were begun here in the last 24 hours"),
        ("cpu.load", PERCENT, 10, "staging", {"idle_s": 59.9}, "this host rests 60 s"),
        ("memory.load", PERCENT, 10, "staging", {}, "does not allow memory.load"),
        ("network.loss", PERCENT, 10, "staging", {}, "does not allow network.loss"),
    ],
)
def test_what_goes_beyond_is_refused_with_the_figure(
    good: Policy,
    kind: str,
    parameters: dict[str, Any],
    seconds: float,
    environment: str,
    met: dict[str, Any],
    reason: str,
) -> None:
    with pytest.raises(Refusal, match=reason):
        check(good, kind, parameters, seconds, environment, **met)


def test_a_ceiling_of_every_fault_binds_those_that_have_the_parameter(tmp_path: Path) -> None:
    policy = write(tmp_path, 'version: 1\nenvironment: staging\nfaults: {"*": {allow: true, max: {percent: 30}}}')
    check(policy, "cpu.load", {"percent": 30})
    check(policy, "process.kill", {"process": "nginx"})
    with pytest.raises(Refusal, match="at most 30"):
        check(policy, "network.loss", {"percent": 31})


def test_a_ceiling_of_a_share_binds_who_says_nothing_which_is_everyone(tmp_path: Path) -> None:
    rule = "{network.blackhole: {allow: true, max: {share: 30}}}"
    policy = write(tmp_path, f"version: 1\nenvironment: staging\nfaults: {rule}")
    check(policy, "network.blackhole", {"share": "30%"})
    for parameters, asked in (({"share": 31}, "31"), ({}, "100.0")):
        with pytest.raises(Refusal, match=rf"with share {asked}; this host allows at most 30"):
            check(policy, "network.blackhole", parameters)


def test_a_floor_bounds_what_does_the_more_harm_the_smaller_it_is(tmp_path: Path) -> None:
    rules = "{cpu.throttle: {allow: true, min: {quota: 20%}}, disk.fill: {allow: true, min: {leave: 1GiB}}}"
    policy = write(tmp_path, f"version: 1\nenvironment: staging\nfaults: {rules}")
    check(policy, "cpu.throttle", {"unit": "nginx.service", "quota": 20})
    with pytest.raises(Refusal, match=r"with quota 19\.9%; this host allows at least 20%"):
        check(policy, "cpu.throttle", {"unit": "nginx.service", "quota": "19.9%"})
    check(policy, "disk.fill", {"path": "/srv", "leave": "1GiB"})
    with pytest.raises(Refusal, match="by `size`; this host has a floor for `leave`") as caught:
        check(policy, "disk.fill", {"path": "/srv", "size": "1GiB"})
    assert caught.value.remedy == "write `leave` in the experiment, or a floor for `size` in the policy"


def test_a_floor_of_every_fault_binds_those_that_have_the_parameter_and_a_wrong_one_refuses_everything(
    tmp_path: Path,
) -> None:
    text = "version: 1\nenvironment: staging\nfaults: {'%s': {allow: true, min: {%s}}}"
    policy = write(tmp_path, text % ("*", "quota: 20%"))
    check(policy, "cpu.load", {"percent": 1})
    with pytest.raises(Refusal, match="at least 20%"):
        check(policy, "cpu.throttle", {"unit": "nginx.service", "quota": 1})
    assert (
        "faults.cpu.load.min: cpu.load has no parameter `quota`" in write(tmp_path, text % ("cpu.load", "quota: 1")).why
    )
    assert "faults.*.min: no fault has a parameter `quta`" in write(tmp_path, text % ("*", "quta: 1")).why


def test_bounds_of_a_kind_are_its_own_and_those_of_every_fault_hold_where_there_is_no_rule(tmp_path: Path) -> None:
    rules = '{disk.io: {allow: true}, disk.fill: {allow: false}, "*": {allow: true, paths: [/srv], interfaces: [eth1]}}'
    policy = write(tmp_path, f"version: 1\nenvironment: staging\nfaults: {rules}")
    bounds = {kind: policy.host((), frozenset(), kind) for kind in ("disk.io", "network.loss", "")}
    assert (bounds["disk.io"].folders, bounds["disk.io"].interfaces) == (None, None)
    assert (bounds["network.loss"].folders, bounds["network.loss"].interfaces) == (("/srv",), ("eth1",))


@pytest.mark.parametrize(
    ("rules", "may"),
    [
        ("{disk.fill: {allow: true}}", (True, True, True)),
        ("{disk.fill: {allow: true, paths: [/srv]}, disk.io: {allow: false}}", (True, True, False)),
        ("{disk.fill: {allow: true, paths: [/srv/x]}, disk.io: {allow: true, paths: [/srv/y]}}", (False, True, False)),
        ("{disk.fill: {allow: false}, cpu.load: {allow: true}}", (False, False, False)),
        ('{"*": {allow: true, paths: [/srv]}}', (True, True, False)),
    ],
)
def test_only_where_a_disk_fault_may_work_is_a_folder_looked_at(
    tmp_path: Path, rules: str, may: tuple[bool, ...]
) -> None:
    policy = write(tmp_path, f"version: 1\nenvironment: staging\nfaults: {rules}")
    assert tuple(policy.may_look_at(path) for path in ("/srv", "/srv/x", "/srv2")) == may
    assert not load(tmp_path / "none.yaml").may_look_at("/srv")


def test_ceilings_for_two_ways_of_saying_how_much_let_either_pass(tmp_path: Path) -> None:
    rule = "{disk.fill: {allow: true, max: {size: 2GiB, percent: 80}}}"
    policy = write(tmp_path, f"version: 1\nenvironment: staging\nfaults: {rule}")
    check(policy, "disk.fill", {"path": "/", "size": "1GiB"})
    check(policy, "disk.fill", {"path": "/", "percent": 80})
    with pytest.raises(Refusal, match="by `leave`"):
        check(policy, "disk.fill", {"path": "/", "leave": "1GiB"})


def test_outside_of_its_hours_and_beyond_their_end_a_host_refuses(tmp_path: Path) -> None:
    policy = write(tmp_path, GOOD + 'hours: {days: [mon, tue], from: "09:00", to: "17:00", tz: Europe/Berlin}\n')
    check(policy, "cpu.load", PERCENT, 60, now=datetime(2026, 11, 23, 15, 59, tzinfo=UTC))
    with pytest.raises(Refusal, match=r"60 s; this host's hours .* end in 59 s"):
        check(policy, "cpu.load", PERCENT, 60, now=datetime(2026, 11, 23, 15, 59, 1, tzinfo=UTC))
    for outside in (datetime(2026, 11, 23, 7, 59, tzinfo=UTC), datetime(2026, 11, 25, 10, tzinfo=UTC)):
        with pytest.raises(Refusal, match=r"outside of this host's hours .*09:00-17:00 Europe/Berlin on mon tue"):
            check(policy, "cpu.load", PERCENT, 10, now=outside)


def test_without_a_controller_faults_are_undone_unless_the_host_chose_otherwise(tmp_path: Path, good: Policy) -> None:
    assert good.lease_s(10.0) == 10.0
    finishing = write(tmp_path, GOOD + "on_controller_loss: finish\n")
    assert finishing.lease_s(10.0) > 12 * 3600


def test_the_stop_file_has_a_place_by_itself_and_with_a_policy_that_is_broken(tmp_path: Path, good: Policy) -> None:
    assert good.stop_file == WELL_KNOWN
    assert load(tmp_path / "none.yaml").stop_file == WELL_KNOWN
    assert write(tmp_path, GOOD + "stop_file: /srv/STOP\n").stop_file == Path("/srv/STOP")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the file"),
        ("version: 2\nenvironment: staging\nfaults: {}", "version"),
        ("version: 1\nenvironment: staging\nfaults: {}\nextra: 1", "extra"),
        ("version: 1\nenvironment: staging\nfaults: {cpu.load: {allow: maybe}}", "allow"),
        ("version: 1\nenvironment: staging\nfaults: {cpu.load: {allow: true, max_seconds: -1}}", "max_seconds"),
        ("version: 1\nenvironment: staging\nfaults: {cpu.laod: {allow: true}}", "did you mean cpu.load"),
        ("version: 1\nenvironment: staging\nfaults: {cpu.load: {allow: true, max: {percnt: 9}}}", "`percnt`"),
        ("version: 1\nenvironment: staging\nfaults: {cpu.load: {allow: true, max: {percent: 101}}}", "percent"),
        ("version: 1\nenvironment: staging\nfaults: {cpu.load: {allow: true, max: {of: own}}}", "no quantity"),
        ("version: 1\nenvironment: staging\nfaults: {disk.io: {allow: true, max: {read: 20}}}", "not a rate"),
        ("version: 1\nenvironment: staging\nfaults: {disk.fill: {allow: true, max: {size: 20}}}", "20MiB"),
        (
            'version: 1\nenvironment: staging\nfaults: {"*": {allow: true, min: {speed: 20}}}',
            "faults.*.min: no fault has",
        ),
        (
            'version: 1\nenvironment: staging\nfaults: {"*": {allow: true, max: {speed: 20}}}',
            "faults.*.max: no fault has",
        ),
        (
            "version: 1\nenvironment: staging\nfaults: {disk.fill: {allow: true, paths: [srv]}}",
            "srv is not the absolute",
        ),
        (
            "version: 1\nenvironment: staging\nfaults: {disk.io: {allow: true, paths: [/srv/../etc]}}",
            "not the absolute",
        ),
        ("version: 1\nenvironment: staging\nfaults: {disk.io: {allow: true, paths: []}}", "paths"),
        ('version: 1\nenvironment: staging\nfaults: {"*": {allow: true, paths: [srv]}}', "srv is not the absolute"),
        (
            "version: 1\nenvironment: staging\nfaults: {cpu.load: {allow: true, paths: [/srv]}}",
            "`paths` bounds nothing",
        ),
        (
            "version: 1\nenvironment: staging\nfaults: {disk.io: {allow: true, interfaces: [lo]}}",
            "`interfaces` bounds n",
        ),
        ("version: 1\nenvironment: staging\nfaults: {network.loss: {allow: true, interfaces: []}}", "interfaces"),
        ("version: 1\nenvironment: staging\nfaults: {}\nlimits: {per_day: 0}", "per_day"),
        ("version: 1\nenvironment: staging\nfaults: {}\nlimits: {cooldown_s: .nan}", "cooldown_s"),
        ("version: 1\nenvironment: staging\nfaults: {}\nstop_file: STOP", "absolute"),
        ("version: 1\nenvironment: staging\nfaults: {}\non_controller_loss: ignore", "on_controller_loss"),
        ("version: 1\nenvironment: staging\nfaults: {}\nhours: {days: [mon], from: 9, to: 17, tz: UTC}", "quotes"),
        ('version: 1\nenvironment: a\nfaults: {}\nhours: {days: [], from: "09:00", to: "17:00", tz: UTC}', "days"),
        ('version: 1\nenvironment: a\nfaults: {}\nhours: {days: [mon], from: "09:00", to: "9:30", tz: UTC}', "to"),
        ('version: 1\nenvironment: a\nfaults: {}\nhours: {days: [mon], from: "09:00", to: "09:00", tz: UTC}', "24:00"),
        ('version: 1\nenvironment: a\nfaults: {}\nhours: {days: [mon], from: "09:00", to: "17:00", tz: MEZ}', "zone"),
        (
            'version: 1\nenvironment: a\nfaults: {}\nhours: {days: [mon], from: "09:00", to: "17:00", tz: Europe}',
            "zone",
        ),
        ('version: 1\nenvironment: a\nfaults: {}\nhours: {days: [mon], from: "09:00", to: "17:00", tz: ../x}', "zone"),
        ("[unclosed", "not YAML"),
        ("!!python/object/apply:os.system [id]", "not YAML"),
        ("x" * 70_000, "larger than"),
    ],
)
def test_an_invalid_file_refuses_everything_and_says_why(tmp_path: Path, text: str, why: str) -> None:
    policy = write(tmp_path, text)
    assert policy.file is None
    assert why in policy.why
    with pytest.raises(Refusal, match="refuses every fault"):
        check(policy, "cpu.load", PERCENT, 1)


def test_a_missing_file_refuses_everything(tmp_path: Path) -> None:
    assert load(tmp_path / "none.yaml").file is None


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write_refuses_everything(tmp_path: Path, mode: int) -> None:
    policy = write(tmp_path, GOOD, mode)
    assert policy.file is None
    assert "chmod 644" in policy.why


def test_a_link_refuses_everything(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text(GOOD)
    (tmp_path / "policy.yaml").symlink_to(tmp_path / "real.yaml")
    assert load(tmp_path / "policy.yaml").file is None


def test_a_fifo_refuses_everything_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "policy.yaml")
    assert load(tmp_path / "policy.yaml").file is None


def test_one_machine_mode_has_a_modest_policy_and_says_so() -> None:
    check(EMBEDDED, "cpu.load", PERCENT, 900, running=3)
    assert "built-in" in EMBEDDED.why
    with pytest.raises(Refusal):
        check(EMBEDDED, "cpu.load", PERCENT, 901)
