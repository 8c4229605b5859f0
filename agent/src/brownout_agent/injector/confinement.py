"""What confines us on this host, in words for people: `brownout-injector doctor` prints it."""

import subprocess
from pathlib import Path

from brownout_agent.kernel import own_groups
from brownout_agent.kernel.credentials import STRESS_USER, stress_user

_SERVICE = "brownout-injector.service"


def lines() -> list[str]:
    """One line about the injector, and one about stressors."""
    return [f"injector  {_injector()}", f"stressors {_stressors()}"]


def _injector() -> str:
    if not Path("/run/systemd/system").is_dir():  # sd_booted(3)
        return "no systemd here: it has every right of whoever starts it"
    argv = ["systemctl", "show", "--property=MainPID", "--value", _SERVICE]
    pid = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    if pid in ("", "0"):
        return f"{_SERVICE} does not run; next: systemctl status {_SERVICE}"
    try:
        return f"pid {pid}, {_SERVICE}: {describe(Path(f'/proc/{pid}/status').read_text())}"
    except OSError as error:
        return f"pid {pid}, {_SERVICE}: {error}"


def describe(status: str) -> str:
    """Whether a process is confined as our unit does it, from its /proc/PID/status (proc(5)). Pure."""
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    rights = int(fields["CapBnd"], 16).bit_count()
    gaps = [
        *(["no seccomp filter"] if fields["Seccomp"].strip() != "2" else []),
        *(["new privileges are possible"] if fields["NoNewPrivs"].strip() != "1" else []),
    ]
    return f"{'NOT ' if gaps else ''}confined, {rights} capabilities at most" + "".join(f"; {gap}" for gap in gaps)


def _stressors() -> str:
    user = stress_user()
    if user is None:
        return "run as the injector does, which is not root or has nobody else to become"
    groups = "in control groups of their own" if own_groups.parents() else "without control groups, which are read-only"
    if user.name == STRESS_USER:
        return f"run as {user.name}, {groups}"
    return f"run as {user.name}, {groups}; next, for a user that only they have: systemd-sysusers ({STRESS_USER})"
