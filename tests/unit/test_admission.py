"""What is read of an order, and whether it is taken on: every limit to its number, nothing noted before it passes."""

import asyncio
import errno
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Facts, Fault, FaultParameters, Host, Refusal
from brownout_agent.faults.cpu_load import CpuLoad
from brownout_agent.frames import to_value
from brownout_agent.host_log import HostLog
from brownout_agent.injector import admission as admissions
from brownout_agent.injector.admission import Admission, idle_s, prepare
from brownout_agent.injector.journal import Entry, Mark
from brownout_agent.injector.ledger import Ledger
from brownout_agent.injector.order import Order, check_id, read_order
from brownout_agent.injector.own_copy import OwnCopy
from brownout_agent.injector.policy import load
from brownout_agent.injector.stop_file import RELEASE
from brownout_agent.kernel.clock import boot_id, boottime_ns
from brownout_protos.v1 import fault_pb2

LATER = b"\xc2\x3e\x04soft"
"""Field 1000, four bytes of text: what a newer version may say."""
ORDER = Order("id-1", "run-1", "staging", "cpu.load", {"percent": 50}, 30.0, 10.0)


def admission(folder: Path, policy: str = "") -> Admission:
    """Under a policy that allows every fault for as long as any policy can, but for what `policy` says."""
    path = folder / "policy.yaml"
    rules = '{"*": {allow: true, max_seconds: 43200}}'
    path.write_text(f"version: 1\nenvironment: staging\nstop_file: {folder}/STOP\nfaults: {rules}\n{policy}")
    return Admission(load(path), Ledger(folder), OwnCopy(HostLog(folder)))


def passes(asked: Admission, order: Order = ORDER, running: int = 0, past: tuple[Entry, ...] = ()) -> bool:
    try:
        asked.check(order, running, past)
    except Refusal:
        return False
    return True


def refusal(asked: Admission, order: Order = ORDER, running: int = 0, past: tuple[Entry, ...] = ()) -> Refusal:
    with pytest.raises(Refusal) as caught:
        asked.check(order, running, past)
    return caught.value


# ---- reading an order ------------------------------------------------------------------------------------------------


def written(**more: Any) -> fault_pb2.Inject:
    plain = {"fault_id": "id-1", "run_id": "run-1", "environment": "staging", "kind": "cpu.load", "agent_id": "me"}
    order = fault_pb2.Inject(duration_ms=1_500, lease_ms=250, epoch=7, **plain, **more)
    order.parameters["percent"].CopyFrom(to_value(50))
    order.parameters["cores"].CopyFrom(to_value(["0", "1"]))
    return order


def test_an_order_is_read_field_by_field_in_seconds() -> None:
    parameters = {"percent": 50, "cores": ["0", "1"]}
    assert read_order(written(), "me") == Order("id-1", "run-1", "staging", "cpu.load", parameters, 1.5, 0.25, 7, "me")


def test_an_order_without_an_epoch_has_the_lowest() -> None:
    assert ORDER.epoch == fault_pb2.Inject().epoch == 0
    assert ORDER.agent_id == fault_pb2.Inject().agent_id == ""


def test_an_order_for_another_agent_is_refused_by_both_names() -> None:
    with pytest.raises(Refusal, match="for agent `me`; the one that is attached here is `you`"):
        read_order(written(), "you")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_a_newer_controller_says_beyond_this_version_refuses_the_whole_order(number: int) -> None:
    order = written()
    (order, order.parameters["percent"], order.parameters["cores"].texts)[number].MergeFromString(LATER)
    with pytest.raises(Refusal, match="the order has field 1000 of") as caught:
        read_order(order, "me")
    assert caught.value.remedy == "upgrade Brownout on this host"


def test_a_parameter_without_a_value_refuses_the_whole_order() -> None:
    order = written()
    order.parameters["of"].CopyFrom(fault_pb2.Value())
    with pytest.raises(Refusal, match="the parameter of has no value"):
        read_order(order, "me")


@pytest.mark.parametrize("fault_id", ["a", "x" * 100, "0:A-z._"])
def test_an_id_of_up_to_100_plain_characters_passes(fault_id: str) -> None:
    check_id(fault_id)


@pytest.mark.parametrize("fault_id", ["", "x" * 101, "a b", "a/b", "a\n", "ä", "\0", "a;b", "x" * 10_000])
def test_what_is_no_id_is_refused_in_few_words(fault_id: str) -> None:
    with pytest.raises(Refusal, match="is no id of a fault") as caught:
        check_id(fault_id)
    assert len(caught.value.reason) < 700


# ---- the checks ------------------------------------------------------------------------------------------------------


def test_an_order_that_passes_gives_its_fault_and_parameters_and_leaves_no_note(tmp_path: Path) -> None:
    fault, parameters = admission(tmp_path).check(ORDER, 0, ())
    assert isinstance(fault, CpuLoad)
    assert parameters.model_dump()["percent"] == 50
    assert not (tmp_path / "ledger").exists()


def test_a_halted_host_refuses_and_says_how_it_is_released(tmp_path: Path) -> None:
    asked = admission(tmp_path)
    assert asked.halted == ""
    (tmp_path / "STOP").write_text("lunch")
    assert asked.halted.endswith("STOP: lunch")
    refused = refusal(asked)
    assert "halted" in refused.reason
    assert refused.remedy == RELEASE


def test_an_unknown_fault_is_refused_and_the_known_are_named(tmp_path: Path) -> None:
    assert "cpu.load, cpu.throttle" in refusal(admission(tmp_path), replace(ORDER, kind="cpu.melt")).reason


@pytest.mark.parametrize(
    ("kind", "parameters", "reason"),
    [
        ("cpu.load", {"percent": 101}, "cpu.load: parameter percent: 101 is not a percentage above 0 and up to 100"),
        (
            "network.latency",
            {"to": "10.0.0.1", "latency": "10ms", "jitter": "20ms"},
            "network.latency: `jitter` is larger than `latency`: no packet can be early by more than it is late",
        ),
    ],
)
def test_a_parameter_that_is_wrong_is_named_and_what_is_wrong_of_several_is_said(
    tmp_path: Path, kind: str, parameters: dict[str, object], reason: str
) -> None:
    assert refusal(admission(tmp_path), replace(ORDER, kind=kind, parameters=parameters)).reason == reason


@pytest.mark.parametrize(
    ("seconds", "good"),
    [(0, False), (1e-9, True), (1, True), (43_200, True), (43_200.001, False), (-1, False), (math.nan, False)],
)
def test_a_duration_is_above_nothing_and_at_most_12_hours(tmp_path: Path, seconds: float, good: bool) -> None:
    assert passes(admission(tmp_path), replace(ORDER, duration_s=seconds)) == good


@pytest.mark.parametrize(
    ("seconds", "good"),
    [(0, False), (1e-9, True), (1, True), (300, True), (300.001, False), (-1, False), (math.inf, False)],
)
def test_a_lease_is_above_nothing_and_at_most_5_minutes(tmp_path: Path, seconds: float, good: bool) -> None:
    assert passes(admission(tmp_path), replace(ORDER, lease_s=seconds)) == good


@pytest.mark.parametrize(
    ("parameters", "named"),
    [({"percent": 101}, "parameter percent:"), ({}, "parameter percent:"), ({"percent": 5, "x": 1}, "parameter x:")],
)
def test_a_wrong_parameter_is_named(tmp_path: Path, parameters: dict[str, Any], named: str) -> None:
    assert named in refusal(admission(tmp_path), replace(ORDER, parameters=parameters)).reason


def test_an_older_epoch_is_refused_and_the_same_or_a_newer_passes(tmp_path: Path) -> None:
    asked = admission(tmp_path)
    asked.take(replace(ORDER, epoch=5))
    refused = refusal(asked, replace(ORDER, epoch=4))
    assert "epoch 4 is older than 5" in refused.reason
    assert str(tmp_path / "ledger") in refused.remedy
    assert passes(asked, replace(ORDER, epoch=5))
    assert passes(asked, replace(ORDER, epoch=6))
    assert [asked.is_owner(epoch) for epoch in (4, 5, 6)] == [False, True, True]


def test_a_ledger_that_cannot_be_read_refuses_orders_and_owners(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("?")
    asked = admission(tmp_path)
    refused = refusal(asked)
    assert "cannot be kept" in refused.reason
    assert "forgets epochs and counts" in refused.remedy
    assert asked.is_owner(2**63) is False
    with pytest.raises(Refusal, match="cannot be kept"):
        asked.take(ORDER)


def test_an_owner_that_changed_since_the_check_is_refused(tmp_path: Path) -> None:
    asked = admission(tmp_path)
    asked.take(replace(ORDER, epoch=6))
    with pytest.raises(Refusal, match="epoch 5 is older than 6"):
        asked.take(replace(ORDER, epoch=5))


def test_what_is_obeyed_stands_in_the_hosts_own_copy_or_is_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, str]] = []
    monkeypatch.setattr(HostLog, "keep", lambda _, **record: kept.append(record))
    admission(tmp_path).take(ORDER)
    assert [(one["subject"], one["outcome"]) for one in kept] == [(ORDER.fault_id, "obeyed")]

    def refuse(*_: object, **__: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HostLog, "keep", refuse)
    with pytest.raises(Refusal, match=r"own copy of the order cannot be kept.*No space left") as caught:
        admission(tmp_path).take(ORDER)
    assert caught.value.remedy == "make room"


def test_what_runs_was_begun_and_has_just_ended_meets_the_policy(tmp_path: Path) -> None:
    asked = admission(tmp_path, "limits: {concurrent: 2, per_day: 2, cooldown_s: 60}")
    assert passes(asked, running=1)
    assert "2 faults run here" in refusal(asked, running=2).reason
    just_now = Entry("id-0", Mark.CLEAN, boot_id=boot_id(), at_boottime_ns=boottime_ns())
    assert "this host rests 60 s" in refusal(asked, past=(just_now,)).reason
    for _ in range(2):
        asked.take(ORDER)
    assert "2 faults were begun here" in refusal(asked).reason


def test_an_order_is_noted_with_its_epoch_and_time_where_the_days_faults_are_counted(tmp_path: Path) -> None:
    before_ns = time.time_ns()
    admission(tmp_path, "limits: {per_day: 3}").take(replace(ORDER, epoch=9))
    page = json.loads((tmp_path / "ledger").read_text())
    assert page["epoch"] == 9
    assert before_ns <= page["begun_ns"][0] <= time.time_ns()
    admission(tmp_path).take(replace(ORDER, epoch=9))
    assert json.loads((tmp_path / "ledger").read_text()) == page, "nobody counts any more"


def test_what_is_taken_has_the_lease_that_the_host_chose_and_is_else_what_was_asked(tmp_path: Path) -> None:
    assert admission(tmp_path).take(ORDER) == ORDER
    finishing = admission(tmp_path, "on_controller_loss: finish").take(ORDER)
    assert finishing == replace(ORDER, lease_s=finishing.lease_s)
    assert finishing.lease_s == 13 * 3600


def test_rest_is_counted_from_the_latest_clean_end_of_this_boot() -> None:
    def entry(mark: Mark, at_ns: int, boot: str = "now") -> Entry:
        return Entry("id", mark, boot_id=boot, at_boottime_ns=at_ns)

    second = 10**9
    assert idle_s((), "now", 10 * second) == math.inf
    assert idle_s((entry(Mark.ACTIVE, 9 * second),), "now", 10 * second) == math.inf
    ended = (entry(Mark.CLEAN, 3 * second), entry(Mark.CLEAN, 7 * second), entry(Mark.CLEAN, 5 * second))
    assert idle_s(ended, "now", 10 * second) == 3.0
    assert idle_s((entry(Mark.CLEAN, 9 * second, "before"),), "now", 10 * second) == 10.0


# ---- looking at the host ---------------------------------------------------------------------------------------------


class Looking(CpuLoad):
    """`cpu.load`, whose look at the host does what a test wants."""

    def __init__(self, look: Callable[[Host], Facts]) -> None:
        self._look = look

    def prepare(self, parameters: Any, host: Host) -> Facts:
        return self._look(host)


def looked(look: Callable[[Host], Facts]) -> Facts:
    fault: Fault[Any] = Looking(look)
    parameters: FaultParameters = catalogue()["cpu.load"].Parameters.model_validate({"percent": 50})
    return asyncio.run(prepare(fault, parameters, Host(scratch="/here")))


def test_what_a_fault_found_on_its_host_comes_back() -> None:
    assert looked(lambda host: {"scratch": host.scratch}) == {"scratch": "/here"}


def raising(error: Exception) -> Callable[[Host], Facts]:
    def look(_: Host) -> Facts:
        raise error

    return look


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Refusal("not here", "elsewhere"), "^not here$"),
        (OSError(13, "Permission denied"), "cpu.load could not look at this host: .*Permission denied"),
        (KeyError("table"), "cpu.load has a mistake: KeyError: 'table'"),
    ],
)
def test_whatever_a_look_raises_is_a_refusal(error: Exception, says: str) -> None:
    with pytest.raises(Refusal, match=says) as caught:
        looked(raising(error))
    assert (caught.value is error) == isinstance(error, Refusal)


def test_a_look_that_takes_too_long_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admissions, "PREPARE_TIMEOUT_S", 0.05)
    ended = threading.Event()
    try:
        with pytest.raises(Refusal, match=r"still looking at this host after 0.05 s"):
            looked(lambda _: {"late": ended.wait(20)})
    finally:
        ended.set()
