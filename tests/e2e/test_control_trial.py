"""A small Brownout whose network fault cuts the agent off from its controller: the fault goes, the run goes on."""

import os
from pathlib import Path

import pytest
from brownout_controller.record import EventKind

from tests.support.small_fleet import small_fleet

pytestmark = [
    pytest.mark.injects,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
]

EXPERIMENT = """
version: 1
name: own-cord
steady_state: {before: 200ms, after: 200ms}
faults:
  - {name: cut, inject: network.blackhole, target: "host=app-1", with: {interface: lo, protocol: tcp}, for: 60s}
"""
"""Agent and controller share one loopback here: the agent's way to the controller is exempt, the way back is not."""


def test_a_fault_that_cuts_its_own_agent_off_undoes_itself_and_the_run_says_so(tmp_path: Path) -> None:
    with small_fleet(tmp_path, "app-1") as fleet:
        fleet.run(EXPERIMENT)
        assert fleet.ended() == 14, fleet.log()
        record = fleet.record()
        (fault,) = record.faults
        assert (fault.end_cause, fault.undo, fault.proved) == ("control_lost", "clean", False)
        assert "nobody confirmed that the agent still reaches its controller" in fault.explanation
        assert fault.active_ns is not None
        assert fault.ended_ns is not None
        assert fault.ended_ns - fault.active_ns < 5e9
        assert EventKind.FAULT_ENDED in {event.kind for event in record.events}
