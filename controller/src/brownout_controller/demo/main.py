"""`brownout demo`: what happens to a shop's users when an app server is lost, on real HAProxy and nginx."""

import os
import shutil
import signal
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from brownout_controller.demo import one_host
from brownout_controller.demo.foreground import experiment, say
from brownout_controller.demo.hosts import ROLES, run_experiment
from brownout_controller.demo.leftovers import leftovers
from brownout_controller.demo.network import ADDRESSES, CommandFailed, run
from brownout_controller.demo.staging import Staging, StagingError, remove_abandoned
from brownout_controller.exit_codes import ExitCode

PROGRAMS = ("ip", "nsenter", "setpriv", "nft", "haproxy", "nginx")
"""What the staging network takes, beside root."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP: no error, and not to be caught as one."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def run_demo(report_dir: Path) -> int:
    """Show a failover in a staging network; without root, what one machine shows without it.

    Returns:
        The exit code of the experiment's run; 1 when the staging network did not come up; 13 when something of it
        stayed behind; 128 + n when signal n ended the demo.
    """
    report_dir = report_dir.resolve()
    report_dir.mkdir(parents=True, exist_ok=True)
    try:
        with _signals_interrupt():
            obstacle = _why_no_staging()
            return one_host.run(report_dir, obstacle) if obstacle else _in_staging(report_dir)
    except Interrupted as interrupt:
        say(f"Ended by {interrupt}.")
        return 128 + interrupt.number


def _in_staging(report_dir: Path) -> int:
    for name in remove_abandoned():
        say(f"Removed what an earlier demo, killed before its end, had left: {name}.")
    before = leftovers()
    staging = Staging()
    try:
        with staging:
            code = _lose_app_1(staging, report_dir)
    except (StagingError, CommandFailed) as error:
        say(f"error: {error}")
        code = ExitCode.INTERNAL_ERROR
    finally:
        remains = _tell_leftovers(staging.name, before)
    return ExitCode.UNDO_NOT_CONFIRMED if remains else code


def _lose_app_1(staging: Staging, report_dir: Path) -> int:
    nginx, haproxy = _version(["nginx", "-v"]), _version(["haproxy", "-v"])
    say("A shop in four network namespaces; this machine's own network is not touched.")
    say(f"  edge    {ADDRESSES['edge'].v4}  {haproxy}: checks both servers every 500 ms, two misses take one out")
    say(f"  app-1   {ADDRESSES['app-1'].v4}  {nginx}: serves")
    say(f"  app-2   {ADDRESSES['app-2'].v4}  {nginx}: stands by")
    say(f"An injector and an agent on each of {', '.join(ROLES)}; the controller beside them.\n")
    variables = {"shop": staging.url(), "haproxy": str(staging.haproxy_socket)}
    return run_experiment(staging, experiment("getting-started/lose-an-app-server"), report_dir, variables)


def _tell_leftovers(name: str, before: Collection[str]) -> list[str]:
    remains = leftovers(name, before) if name else []
    if remains:
        say("\nNOT removed, next: remove by hand, or run the demo again:")
        for line in remains:
            say(f"  {line}")
    else:
        say("\nEverything is removed: no namespace, process, mount, link, cgroup or nft table of the demo is left.")
    return remains


def _why_no_staging() -> str:
    """Why the staging network cannot be made here; empty when it can."""
    if os.geteuid() != 0:
        return "it takes root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"these programs are not installed: {', '.join(missing)} (`make demo` installs them)"
    trial = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        return f"this root may not make network namespaces: {trial.stderr.strip()}"
    return ""


def _version(argv: list[str]) -> str:
    """`HAProxy 2.6.12` of `HAProxy version 2.6.12-1 2026/10/17 - https://haproxy.org/`, `nginx 1.22.1` likewise."""
    text = run(argv) or subprocess.run(argv, capture_output=True, text=True, check=True).stderr
    line = text.splitlines()[0].removeprefix("nginx version: ").replace("/", " ", 1).replace(" version ", " ")
    return " ".join(word.split("-")[0] for word in line.split()[:2])


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into `Interrupted`; those that follow do not disturb the removal."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
