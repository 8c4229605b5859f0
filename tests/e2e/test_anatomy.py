"""The anatomy of a real failover against HAProxy's own log and a client that logs every request."""

import os
from pathlib import Path

import pytest
from brownout_controller.exit_codes import ExitCode

from tests.support.failovers import ALLOWED_MS, run_failover

pytestmark = [
    pytest.mark.alone,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]


def test_every_mark_agrees_with_haproxys_log_and_with_the_client(tmp_path: Path) -> None:
    failover = run_failover(tmp_path)
    assert failover.exit_code == ExitCode.HELD
    assert {one.vantage for one in failover.differences} == {"controller", "edge"}
    assert len(failover.differences) == 2 * 7
    assert [one for one in failover.differences if abs(one.off_ms) > ALLOWED_MS] == []
