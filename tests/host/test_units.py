"""The units of deploy/systemd, under a real systemd on a host with a kernel of its own, undo what dies.

By ExecStopPost after SIGKILL, by the service's watchdog after SIGSTOP, by the timer when neither is left, and by the
boot unit after a power cut.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_WITHIN_S = 400
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(_WITHIN_S + 20),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces"),
    pytest.mark.skipif(not shutil.which("linux.uml"), reason="needs user-mode Linux"),
]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the host said, from its first boot to its second."""
    results = tmp_path_factory.mktemp("units") / "findings"
    argv = [sys.executable, "-m", "tests.support.units_story", str(results)]
    ran = subprocess.run(argv, check=False, cwd=ROOT, capture_output=True, text=True, timeout=_WITHIN_S)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [json.loads(line) for line in results.read_text().splitlines()]


def _step(findings: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(finding for finding in findings if finding.get("step") == name)


def test_when_the_injector_is_killed_its_unit_undoes_by_exec_stop_post(findings: list[dict[str, Any]]) -> None:
    killed = _step(findings, "killed")
    assert [(mark, cause) for mark, cause, _ in killed["marks"]] == [("clean", "REAPED")] * 7
    assert max(marked_us for _, _, marked_us in killed["marks"]) < killed["started_again"]
    assert killed["gone_after_s"] < 30


def test_an_injector_that_is_stopped_is_killed_by_its_watchdog_and_undone(findings: list[dict[str, Any]]) -> None:
    assert _step(findings, "frozen")["gone_after_s"] < 30


def test_the_timer_undoes_when_injector_and_watchdog_are_dead_and_nothing_starts_them(
    findings: list[dict[str, Any]],
) -> None:
    timer = _step(findings, "timer")
    assert timer["is_injector"] == "failed"
    assert timer["gone_after_s"] < 30


@pytest.mark.parametrize(
    ("kind", "before", "during"),
    [
        ("cpu.throttle", "max 100000", "20000 100000"),
        ("process.freeze", "0", "1"),
        ("memory.limit", "max", str(48 * 2**20)),
        ("disk.throttle", "", "rbps=max wbps=1048576 riops=max wiops=max"),
    ],
)
def test_a_unit_is_limited_in_version_2_and_then_as_before(
    findings: list[dict[str, Any]], kind: str, before: str, during: str
) -> None:
    limited = _step(findings, f"limited by {kind}")
    texts = [text.strip().removeprefix("98:16 ") for text in limited["texts"]]
    assert texts == [before, during, before]
    is_proved, _, explanation = limited["effect"]
    assert is_proved, explanation
    assert limited["residue"] == []


def test_what_a_unit_gets_of_version_2_is_what_its_effect_says(findings: list[dict[str, Any]]) -> None:
    """By /proc/PID of its main process and by /proc/diskstats."""
    limited = {
        kind: _step(findings, f"limited by {kind}") for kind in ("cpu.throttle", "memory.limit", "disk.throttle")
    }
    achieved = {kind: step["effect"][1] for kind, step in limited.items()}
    assert limited["cpu.throttle"]["cpu_percent"] == pytest.approx(achieved["cpu.throttle"], abs=5)
    assert 0.8 * achieved["memory.limit"] < limited["memory.limit"]["anonymous_bytes"] < 1.1 * achieved["memory.limit"]
    assert limited["disk.throttle"]["disk_rate"] == pytest.approx(2**20 * achieved["disk.throttle"] / 100, rel=0.15)
    assert _step(findings, "limited by process.freeze")["cpu_percent"] == 0


def test_after_a_power_cut_the_reaper_is_through_before_the_injector_takes_orders_and_the_agent_comes_last(
    findings: list[dict[str, Any]],
) -> None:
    first, second = (finding for finding in findings if "booted" in finding)
    assert (first["booted"], second["booted"]) == (False, True)
    for boot in (first, second):
        order = boot["order"]
        assert 0 < order["reaped"] < order["injector takes orders"] < order["agent begins"]
        assert boot["unfinished"] == []
        assert boot["still"] == []
    assert {"ready": "uml-1"} in findings  # its agent has connected, with its injector
