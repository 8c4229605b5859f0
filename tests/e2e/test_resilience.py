"""Runs in which something dies, is cut off, or is missing: they go on or end honestly, and what did not happen is never
a pass. Every program is the real one, in a network namespace of the test's own; what is on is asked of the kernel."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from brownout_controller.analysis.coverage import gaps, observed_span
from brownout_controller.analysis.verdict import judge
from brownout_controller.record import EventKind, FaultOutcome, RunRecord, Series, Verdict

from tests.support.polling import wait_until
from tests.support.small_fleet import WEB, SmallFleet, small_fleet

pytestmark = [
    pytest.mark.injects,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
]
LEASE_S = 10.0
GIVE_UP_S = 45.0
TIMES = "steady_state: {before: 1s, after: 1s}"
PROBES = f'probes: {{web: {{http: "{WEB}", every: 100ms, from: [controller, "host=app-1"]}}}}'
EXPECT = 'expect: {web: ["outage < 30s"]}'


def experiment(*faults: str, more: str = f"{TIMES}\n{PROBES}\n{EXPECT}") -> str:
    return f"version: 1\nname: resilience\nhypothesis: It is told as it was.\n{more}\nfaults:\n" + "".join(
        f"  - {fault}\n" for fault in faults
    )


def pause(fleet: SmallFleet, host: str, for_: str, more: str = "") -> str:
    target = "" if "target:" in more else f'target: "host={host}", '
    return f"{{inject: process.pause, {target}with: {{command: {fleet.victim(host)}}}, for: {for_}{more}}}"


def begin(fleet: SmallFleet, for_: str) -> None:
    """A run with one fault, on app-1, which is on when this returns."""
    fleet.run(experiment(pause(fleet, "app-1", for_)))
    fleet.said("ACTIVE")
    assert fleet.stands_still("app-1")


def only_fault(record: RunRecord) -> FaultOutcome:
    (fault,) = record.faults
    return fault


def seen_from(record: RunRecord, vantage: str) -> Series:
    return next(series for series in record.series if series.vantage.name == vantage)


def kinds(record: RunRecord) -> list[EventKind]:
    return [event.kind for event in record.events]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[SmallFleet]:
    with small_fleet(tmp_path, "app-1") as made:
        yield made


# ---- who dies --------------------------------------------------------------------------------------------------------


def test_an_agent_that_comes_back_is_gone_on_with_and_its_silence_is_no_answer(fleet: SmallFleet) -> None:
    begin(fleet, "8s")
    fleet.kill("agent-app-1")
    fleet.said("host lost")
    assert fleet.stands_still("app-1"), "the fault is the injector's: it goes on"
    fleet.start_agent("app-1")
    assert fleet.ended() == 0, fleet.log()
    record = fleet.record()
    fault = only_fault(record)
    assert (fault.end_cause, fault.undo, fault.proved) == ("duration", "clean", True)
    assert {EventKind.HOST_LOST, EventKind.HOST_BACK} <= set(kinds(record))
    (silence,) = gaps(seen_from(record, "app-1"), observed_span(record))
    lost = next(event for event in record.events if event.kind is EventKind.HOST_LOST)
    assert silence.begun_ns < lost.at_ns < silence.ended_ns
    assert gaps(seen_from(record, "controller"), observed_span(record)) == ()


def test_an_injector_that_comes_back_has_reaped_and_the_fault_that_ended_early_proves_nothing(
    fleet: SmallFleet,
) -> None:
    begin(fleet, "60s")
    fleet.kill("injector-app-1")
    wait_until(lambda: not fleet.stands_still("app-1"), "the kernel ended the fault", 5)
    fleet.said("its injector is away")
    fleet.start_injector("app-1")
    assert fleet.ended() == 14, fleet.log()
    fault = only_fault(fleet.record())
    assert (fault.end_cause, fault.undo, fault.proved) == ("reaped", "clean", False)
    assert "ended before its time" in fault.explanation
    assert judge(fleet.record()).verdict is Verdict.INCONCLUSIVE
    assert "its injector answers again" in fleet.log()


# ---- what takes long: these go on side by side, while others are tested --------------------------------------------


def _injector_stays_dead(folder: Path) -> None:
    with small_fleet(folder, "app-1") as fleet:
        begin(fleet, "290s")
        fleet.kill("injector-app-1")
        killed_s = time.monotonic()
        wait_until(lambda: not fleet.stands_still("app-1"), "the kernel ended the fault", 5)
        assert fleet.ended() == 13, fleet.log()
        assert time.monotonic() - killed_s < GIVE_UP_S + 15
        fault = only_fault(fleet.record())
        assert (fault.undo, fault.proved) == ("unknown", False)
        assert "UNDO NOT CONFIRMED" in fleet.log()
        assert EventKind.FAULT_UNKNOWN in kinds(fleet.record())


def _link_is_cut(folder: Path) -> None:
    with small_fleet(folder, "app-1") as fleet:
        begin(fleet, "120s")
        fleet.cut()
        cut_s = time.monotonic()
        wait_until(lambda: not fleet.stands_still("app-1"), "the lease ended the fault", LEASE_S + 5)
        assert time.monotonic() - cut_s > LEASE_S - 3, "it was renewed shortly before"
        fleet.said("host lost", 1)
        assert "undone" not in fleet.log(), "nobody can know yet"
        fleet.heal()
        assert fleet.ended() == 14, fleet.log()
        record = fleet.record()
        fault = only_fault(record)
        assert (fault.end_cause, fault.undo, fault.proved) == ("lease_lost", "clean", False)
        assert EventKind.HOST_BACK in kinds(record)
        there, here = seen_from(record, "app-1"), seen_from(record, "controller")
        # The agent went on asking and said it all afterwards, each answer once and in its place.
        assert gaps(there, observed_span(record)) == ()
        assert len(set(there.sent_ns)) == len(there.sent_ns)
        assert abs(len(there.sent_ns) - len(here.sent_ns)) < 0.1 * len(here.sent_ns)
        assert fault.ended_ns is not None
        assert fault.active_ns is not None
        assert LEASE_S - 3 < (fault.ended_ns - fault.active_ns) / 1e9 < LEASE_S + 10


@pytest.fixture(scope="module", autouse=True)
def side_by_side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    stories = {"dead": _injector_stays_dead, "cut": _link_is_cut}
    with ThreadPoolExecutor() as pool:
        yield {name: pool.submit(story, tmp_path_factory.mktemp(name)) for name, story in stories.items()}


# ---- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vantage", ["controller", "host=app-1"])
def test_a_watcher_that_cannot_start_is_named_and_nothing_is_injected(fleet: SmallFleet, vantage: str) -> None:
    watch = f'watch: {{lb: {{haproxy: {{socket: /run/nowhere.sock, backend: shop}}, from: "{vantage}"}}}}'
    fleet.run(experiment(pause(fleet, "app-1", "5s"), more=f"{TIMES}\n{watch}"))
    assert fleet.ended() == 4, fleet.log()
    assert f"lb from {vantage.removeprefix('host=')} cannot observe: " in fleet.log()
    assert "/run/nowhere.sock" in fleet.log() or "No such file" in fleet.log()
    assert fleet.record().faults == ()


def test_a_probe_of_a_host_that_does_not_resolve_is_no_steady_state(fleet: SmallFleet) -> None:
    probes = 'probes: {web: {http: "http://nowhere.invalid/", every: 100ms}}'
    fleet.run(experiment(pause(fleet, "app-1", "5s"), more=f"{TIMES}\n{probes}\n{EXPECT}"))
    assert fleet.ended() == 4, fleet.log()
    assert "web from controller fails now: dns" in fleet.log()


def test_too_few_hosts_are_unreachable_and_the_next_step_is_named(fleet: SmallFleet) -> None:
    fleet.run(experiment(pause(fleet, "app-1", "5s")), "--wait-hosts", 2, "--wait-timeout", 4)
    assert fleet.ended() == 5
    assert "2 hosts wanted, connected within 4 s: app-1" in fleet.log()
    assert "next: on each host: brownout-agent run" in fleet.log()


# ---- several faults --------------------------------------------------------------------------------------------------


def test_faults_follow_each_other_over_hosts_and_a_skipped_one_is_no_failure(tmp_path: Path) -> None:
    targets = """targets:
  second: {selector: "host=app-2", resolve: at_injection}
  nobody: {selector: "role=database", if_none: skip}"""
    with small_fleet(tmp_path, "app-1", "app-2") as fleet:
        faults = (
            pause(fleet, "app-1", "2s", ", name: first"),
            pause(fleet, "app-2", "1s", ", name: then, target: second, after: first, wait: 500ms"),
            pause(fleet, "app-2", "1s", ", name: never, target: nobody"),
        )
        fleet.run(experiment(*faults, more=f"{TIMES}\n{PROBES}\n{EXPECT}\n{targets}"))
        assert fleet.ended() == 0, fleet.log()
        first, then = sorted(fleet.record().faults, key=lambda fault: fault.ordered_ns or 0)
        assert [(one.name, one.host, one.undo, one.proved) for one in (first, then)] == [
            ("first", "app-1", "clean", True), ("then", "app-2", "clean", True),
        ]  # fmt: skip
        assert first.ended_ns is not None
        assert then.ordered_ns is not None
        assert 0.5 <= (then.ordered_ns - first.ended_ns) / 1e9 < 3
        assert "never  left out: no host matched" in fleet.log()


# ---- last, since they began first ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_injector_that_stays_dead_leaves_the_undo_unknown_and_exits_13_in_time(
    side_by_side: dict[str, "Future[None]"],
) -> None:
    side_by_side["dead"].result(150)


@pytest.mark.slow
def test_a_link_that_is_cut_for_longer_than_the_lease_ends_the_fault_and_heals_without_loss(
    side_by_side: dict[str, "Future[None]"],
) -> None:
    side_by_side["cut"].result(150)
