"""The local policy to its very numbers: each bound from both sides, each default, and what it tells the faults."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Peer, Refusal
from brownout_agent.injector.policy import EMBEDDED, FaultRule, Limits, Policy, Situation, load
from pydantic import ValidationError

from tests.unit.test_policy import GOOD, MONDAY_10_H, PERCENT, check, write

NOBODY = 65534
PLAIN = 'version: 1\nenvironment: staging\nfaults: {"*": {allow: true}}\n'


@pytest.mark.parametrize(
    ("setting", "just_good", "just_not"),
    [
        ("limits: {{concurrent: {}}}", ["1", "128"], ["0", "129", "1.5"]),
        ("limits: {{per_day: {}}}", ["1", "10000"], ["0", "10001", "-1"]),
        ("limits: {{cooldown_s: {}}}", ["0", "0.5", "86400"], ["-0.1", "86400.1", ".inf", ".nan"]),
        ("protect_ports: [{}]", ["1", "65535"], ["0", "65536", "-1"]),
        ("stop_file: {}", ["/a"], ["/", "a", "''"]),
        ("on_controller_loss: {}", ["undo", "finish"], ["UNDO", "''", "[]"]),
    ],
)
def test_a_setting_is_good_up_to_its_bound_and_not_beyond(
    tmp_path: Path, setting: str, just_good: list[str], just_not: list[str]
) -> None:
    for value in just_good:
        policy = write(tmp_path, PLAIN + setting.format(value))
        assert policy.file is not None, (value, policy.why)
    for value in just_not:
        assert write(tmp_path, PLAIN + setting.format(value)).file is None, value


@pytest.mark.parametrize(
    ("rule", "good"),
    [
        ("max_seconds: 0.5", True),
        ("max_seconds: 43200", True),
        ("max_seconds: 0", False),
        ("max_seconds: 43200.1", False),
        ("max_seconds: .inf", False),
        ("max: {percent: .nan}", False),
        ("max: {percent: .inf}", False),
        ("max: {percent: null}", False),
        ("max: {percent: [1]}", False),
    ],
)
def test_a_rule_is_good_up_to_its_bound_and_not_beyond(tmp_path: Path, rule: str, good: bool) -> None:
    policy = write(tmp_path, f"version: 1\nenvironment: a\nfaults: {{cpu.load: {{allow: true, {rule}}}}}")
    assert (policy.file is not None) == good


def test_what_is_left_out_is_modest(tmp_path: Path) -> None:
    file = write(tmp_path, PLAIN).file
    assert file is not None
    assert file.faults == {"*": FaultRule(allow=True, max_seconds=900.0, max={})}
    assert file.limits == Limits(concurrent=1, per_day=None, cooldown_s=0.0)
    assert (file.on_controller_loss, file.protect_ports, file.hours) == ("undo", (22,), None)
    assert (file.protect_processes, file.protect_peers) == ((), ())


def test_a_policy_in_force_cannot_be_changed(tmp_path: Path) -> None:
    file = write(tmp_path, PLAIN).file
    assert file is not None
    with pytest.raises(ValidationError, match="frozen"):
        file.limits.concurrent = 128  # type: ignore[misc]


def test_what_others_ask_of_it_is_what_is_written_and_nothing_where_there_is_none(tmp_path: Path) -> None:
    policy = write(tmp_path, GOOD)
    assert (policy.environment, policy.per_day, policy.lease_s(7.0)) == ("staging", 20, 7.0)
    assert write(tmp_path, PLAIN).per_day == 0
    none = load(tmp_path / "none.yaml")
    assert (none.environment, none.per_day, none.lease_s(7.0)) == ("", 0, 7.0)


def test_a_quiet_host_is_within_every_limit(tmp_path: Path) -> None:
    policy = write(tmp_path, PLAIN + "limits: {concurrent: 1, per_day: 1, cooldown_s: 86400}")
    assert Situation(MONDAY_10_H) == Situation(MONDAY_10_H, 0, 0, float("inf"))
    check(policy, "cpu.load", PERCENT)
    with pytest.raises(Refusal, match="1 faults run here already"):
        check(policy, "cpu.load", PERCENT, running=1)


def test_a_refusal_says_when_to_try_again(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        check(write(tmp_path, GOOD), "cpu.load", PERCENT, idle_s=17.5)
    assert caught.value.remedy == "try again in 43 s"


def test_faults_learn_what_is_protected(tmp_path: Path) -> None:
    ours, peer = frozenset({7}), Peer("10.0.0.9", 443)
    text = "protect_peers: [10.0.0.1, 'fd00::1']\nprotect_processes: [postgres]\nprotect_ports: [22, 2222]\n"
    assert write(tmp_path, PLAIN + text).host((peer,), ours) == Host(
        exempt_peers=(peer, Peer("10.0.0.1"), Peer("fd00::1")),
        exempt_ports=(22, 2222),
        protected_pids=ours,
        protected_names=(*Host().protected_names, "postgres"),
    )
    refusing = load(tmp_path / "none.yaml").host((peer,), ours)
    assert refusing == Host(exempt_peers=(peer,), protected_pids=ours)


def test_one_machine_mode_allows_four_faults_at_once_for_a_quarter_of_an_hour() -> None:
    for kind, parameters in (("cpu.load", PERCENT), ("memory.load", PERCENT)):
        check(EMBEDDED, kind, parameters, 900, running=3)
    with pytest.raises(Refusal, match="this host allows 4"):
        check(EMBEDDED, "cpu.load", PERCENT, running=4)
    with pytest.raises(Refusal, match="this host is `staging`"):
        check(EMBEDDED, "cpu.load", PERCENT, environment="production")
    assert EMBEDDED.why.startswith("the built-in modest policy")


def test_the_largest_file_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    largest = PLAIN + "#" * (64 * 1024 - len(PLAIN))
    assert write(tmp_path, largest).file is not None
    assert "larger than 65536 bytes" in write(tmp_path, largest + "#").why


def test_an_error_names_the_setting_by_its_way_from_the_top(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    assert write(tmp_path, PLAIN + "limits: {per_day: 0}").why.startswith(f"{path}: limits.per_day: ")
    assert write(tmp_path, "").why.startswith(f"{path}: the file: ")
    os.unlink(path)  # noqa: PTH108 - beside mkfifo
    os.mkfifo(path)
    assert load(path).why == f"{path} is not a regular file"


def test_a_ceiling_below_every_parameter_and_an_unknown_fault_are_named(tmp_path: Path) -> None:
    text = "version: 1\nenvironment: a\nfaults: {%s: {allow: true}}"
    assert "this host knows no fault `cpu.lod`; did you mean cpu.load?" in write(tmp_path, text % "cpu.lod").why
    assert f"it knows {', '.join(catalogue())}" in write(tmp_path, text % "zzz").why


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files away")
def test_only_a_file_of_root_or_of_who_reads_it_counts() -> None:
    def read(owner: int) -> Policy:
        path = Path(folder) / "policy.yaml"
        path.write_text(PLAIN)
        os.chown(path, owner, owner)
        return load(path)

    def read_as_nobody(owner: int) -> Any:
        read(owner)
        with as_nobody():
            return load(Path(folder) / "policy.yaml").file

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        assert read(0).file is not None
        for stranger in (1, NOBODY):
            assert "must belong to root" in read(stranger).why
        assert read_as_nobody(0) is not None
        assert read_as_nobody(NOBODY) is not None
        assert read_as_nobody(1) is None


def test_a_ceiling_that_a_fault_does_not_have_hides_none_behind_it(tmp_path: Path) -> None:
    rules = '{"*": {allow: true, max: {size: 1GiB, percent: 30}}}'
    policy = write(tmp_path, f"version: 1\nenvironment: staging\nfaults: {rules}")
    with pytest.raises(Refusal, match="at most 30"):
        check(policy, "cpu.load", {"percent": 31})
