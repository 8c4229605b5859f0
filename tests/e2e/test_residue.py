"""What a test strands on purpose on a host in the middle of a run is found, named, and ends the run with 13."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from brownout_controller.record import EventKind, ResidueState

from tests.support.small_fleet import NAMESPACES, SmallFleet, small_fleet

pytestmark = [
    pytest.mark.injects,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
]
EXPERIMENT = """
version: 1
name: residue
steady_state: {{before: 500ms, after: 500ms}}
faults:
  - {{inject: process.pause, target: "host=app-1", with: {{command: {victim}}}, for: {for_}}}
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[SmallFleet]:
    with small_fleet(tmp_path, "app-1") as made:
        yield made


def begin(fleet: SmallFleet, for_: str) -> None:
    fleet.run(EXPERIMENT.format(victim=fleet.victim("app-1"), for_=for_))
    fleet.said("ACTIVE")


def nft(fleet: SmallFleet, *argv: str) -> None:
    subprocess.run(["nsenter", f"--net={NAMESPACES / fleet.namespace}", "--", "nft", *argv], check=True)


def test_a_run_that_leaves_nothing_says_so(fleet: SmallFleet) -> None:
    begin(fleet, "1s")
    assert fleet.ended() == 0, fleet.log()
    (found,) = fleet.record().residue
    assert (found.host, found.state, found.left, found.unread) == ("app-1", ResidueState.CLEAN, (), ())
    assert "residue audit: clean on app-1" in " ".join(fleet.log().split())


def test_a_table_and_a_process_that_are_stranded_are_told_in_every_report_and_end_the_run_with_13(
    fleet: SmallFleet,
) -> None:
    bystander = fleet.spawn("bystander", sys.executable, "-c", "import time; time.sleep(300)")
    begin(fleet, "2s")
    nft(fleet, "add", "table", "inet", "brownout-5eed5eed5eed")
    nft(fleet, "add", "table", "inet", "of-somebody")
    bystander.send_signal(signal.SIGSTOP)
    assert fleet.ended() == 13, fleet.log()
    record = fleet.record()
    (found,) = record.residue
    stopped = f"process {bystander.pid} "
    assert [fault.undo for fault in record.faults] == ["clean"], "the fault itself was undone"
    assert found.state is ResidueState.RESIDUE
    assert "+ nft: table inet brownout-5eed5eed5eed" in found.left
    assert any(line.startswith("+ stopped: ") and stopped in line for line in found.left)
    assert "+ nft: table inet of-somebody" in found.changed_meanwhile
    assert "UNDO NOT CONFIRMED for app-1 (residue audit: 2 differences)" in " ".join(fleet.log().split())
    page = (fleet.folder / "reports/brownout-1.md").read_text()
    assert "nft: table inet brownout-5eed5eed5eed" in page
    assert stopped in page
    assert [event.subject for event in record.events if event.kind is EventKind.RESIDUE_AUDITED] == ["residue"]


def test_a_host_that_cannot_be_asked_at_the_end_is_unknown_though_its_fault_was_undone(fleet: SmallFleet) -> None:
    begin(fleet, "1s")
    fleet.said("undone")
    fleet.programs["injector-app-1"].send_signal(signal.SIGSTOP)
    try:
        assert fleet.ended() == 13, fleet.log()
    finally:
        fleet.programs["injector-app-1"].send_signal(signal.SIGCONT)
    (found,) = fleet.record().residue
    assert (found.state, found.left) == (ResidueState.UNKNOWN, ())
    assert found.unread == ("it was not looked at after the last undo: it did not answer in time",)


def test_nothing_is_injected_on_a_host_that_does_not_say_what_is_on_it(fleet: SmallFleet) -> None:
    fleet.run(EXPERIMENT.format(victim=fleet.victim("app-1"), for_="1s").replace("before: 500ms", "before: 4s"))
    fleet.said("in session with controller", name="agent-app-1")
    fleet.programs["injector-app-1"].send_signal(signal.SIGSTOP)
    try:
        assert fleet.ended() == 4, fleet.log()
    finally:
        fleet.programs["injector-app-1"].send_signal(signal.SIGCONT)
    assert "app-1 did not say what is on it before the first fault: it did not answer in time" in fleet.log()
    assert fleet.record().faults == ()
