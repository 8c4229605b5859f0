"""The units that are shipped: how exposed systemd finds them, and what they must agree on."""

import subprocess
from pathlib import Path

import pytest
from brownout_agent.injector.confinement import describe
from brownout_agent.injector.main import DEFAULT_SOCKET, DEFAULT_STATE
from brownout_agent.kernel.credentials import STRESS_USER

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = DEPLOY / "systemd"
CEILINGS = {"brownout-agent.service": 1.5, "brownout-injector.service": 3.0, "brownout-reap.service": 3.0}
"""What `systemd-analyze security` may give at most, from 0 (confined) to 10."""


def settings(unit: str) -> dict[str, list[str]]:
    """Every setting of a unit file; one that stands several times has several values (systemd.syntax(7))."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def confinement(unit: str) -> str:
    """The marked part of a unit file, without its first line."""
    text = (UNITS / unit).read_text()
    return text.partition("# ---- confinement")[2].partition("# ---- end of confinement")[0].partition("\n")[2]


@pytest.mark.parametrize("unit", CEILINGS)
def test_the_exposure_stays_under_its_ceiling(unit: str) -> None:
    threshold = f"--threshold={CEILINGS[unit] * 10:.0f}"
    argv = ["systemd-analyze", "security", "--offline=yes", "--no-pager", threshold, str(UNITS / unit)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "Overall exposure level" in done.stdout, done.stderr
    assert done.returncode == 0, done.stdout


def test_a_unit_without_confinement_would_not_pass(tmp_path: Path) -> None:
    bare = tmp_path / "brownout-bare.service"
    bare.write_text("[Service]\nExecStart=/usr/bin/true\n")
    argv = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=30", str(bare)]
    assert subprocess.run(argv, capture_output=True, check=False).returncode != 0


def test_every_service_has_a_ceiling() -> None:
    assert {path.name for path in UNITS.glob("*.service")} == set(CEILINGS)


def test_injector_and_reaper_are_confined_alike() -> None:
    assert confinement("brownout-injector.service")
    assert confinement("brownout-injector.service") == confinement("brownout-reap.service")


def test_the_reaper_comes_before_the_injector_and_the_injector_before_the_agent() -> None:
    assert "brownout-injector.service" in settings("brownout-reap.service")["Before"][0].split()
    assert "brownout-reap.service" in settings("brownout-injector.service")["After"][0].split()
    assert "brownout-injector.service" in settings("brownout-agent.service")["After"][0].split()
    assert settings("brownout-reap.service")["WantedBy"] == ["multi-user.target"]
    assert settings("brownout-reap.timer")["OnUnitInactiveSec"] == ["15s"]
    assert settings("brownout-injector.service")["ExecStopPost"] == ["/usr/bin/brownout-injector reap"]


def test_a_frozen_injector_is_killed_well_within_the_bound_for_two_frozen_programs() -> None:
    injector = settings("brownout-injector.service")
    assert injector["WatchdogSignal"] == ["SIGKILL"], "no other signal ends a stopped process"
    assert int(injector["WatchdogSec"][0]) + 10 <= 30


def test_the_kernel_takes_agent_and_injector_last_when_memory_is_short() -> None:
    assert all(settings(unit)["OOMScoreAdjust"] == ["-900"] for unit in CEILINGS)


def test_units_folders_and_users_are_those_that_the_programs_mean() -> None:
    injector = settings("brownout-injector.service")
    assert Path("/run", injector["RuntimeDirectory"][0]) == DEFAULT_SOCKET.parent
    assert Path("/var/lib", injector["StateDirectory"][0]) == DEFAULT_STATE
    reaper = settings("brownout-reap.service")
    assert str(DEFAULT_STATE / "lock") in reaper["ExecCondition"][0].split()
    users = (DEPLOY / "sysusers.d/brownout.conf").read_text()
    agent_user = settings("brownout-agent.service")["User"][0]
    for name in (agent_user, STRESS_USER):
        assert any(line.split()[:2] == ["u", name] for line in users.splitlines() if line), name
    assert f"--agent-user {agent_user}" in injector["ExecStart"][0]
    assert injector["SupplementaryGroups"] == [agent_user], "else the socket could not be given to its group"


def test_systemd_makes_both_users_and_the_folders(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    users = ["systemd-sysusers", f"--root={tmp_path}", str(DEPLOY / "sysusers.d/brownout.conf")]
    subprocess.run(users, check=True, capture_output=True)
    names = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    assert {"brownout", STRESS_USER} <= names


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "confined, 7 capabilities at most"),
        ({"Seccomp": "0"}, "NOT confined, 7 capabilities at most; no seccomp filter"),
        ({"NoNewPrivs": "0"}, "NOT confined, 7 capabilities at most; new privileges are possible"),
    ],
)
def test_doctor_says_whether_a_process_is_confined(changed: dict[str, str], said: str) -> None:
    status = {"Name": "python", "CapBnd": "00000000008810e2", "NoNewPrivs": "1", "Seccomp": "2", **changed}
    assert describe("".join(f"{name}:\t{value}\n" for name, value in status.items())) == said
