"""No shell runs: a run on one machine and a fleet, watched by strace. `make bench-no-shell` watches all the suite."""

import sys
from pathlib import Path

import pytest

from tools.no_shell import is_ours, shells_of_ours, trace

ROOT = Path(__file__).parents[2]
PYTEST = Path(sys.executable).parent / "pytest"
WATCHED = (
    "test_one_machine.py::test_a_run_that_held_exits_0_and_leaves_a_report_and_a_record",
    "test_fleet.py::test_a_dead_injector_and_a_new_one_are_seen_in_the_fleet",
)
pytestmark = pytest.mark.injects


@pytest.mark.slow
def test_a_run_and_a_fleet_execute_no_shell() -> None:
    tests = [str(ROOT / "tests/e2e" / name) for name in WATCHED]
    code, executions = trace([str(PYTEST), "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *tests])
    assert code == 0
    programs = {Path(word).name for one in executions if is_ours(one.by) for word in one.program}
    assert {
        "brownout",
        "brownout-injector",
        "brownout_agent.injector.holder",
        "brownout_agent.injector.main",
    } <= programs
    assert shells_of_ours(executions) == []
