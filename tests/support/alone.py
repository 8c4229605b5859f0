"""Run a program as the first of a pid, mount and network namespace of its own: when it ends, all that it made ends."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

_FLAG = "--alone"


def is_beside_others() -> bool:
    """Whether `be_alone` is still to come."""
    return _FLAG not in sys.argv


def alone_argv(module: str, *kinds: str) -> list[str]:
    """This program in the namespaces of `be_alone`, and in these of unshare(1) besides."""
    kinds = ("--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "--mount", "--net", "--ipc", *kinds)
    return ["unshare", *kinds, sys.executable, "-m", module, *sys.argv[1:], _FLAG]


def be_alone(module: str) -> None:
    """Returns inside of the namespaces, with memory mounted at /run/netns; outside it becomes `unshare` and never does.

    Call it first thing in `python -m MODULE`.
    """
    if is_beside_others():
        argv = alone_argv(module)
        os.execvp(argv[0], argv)
    sys.argv.remove(_FLAG)
    child = os.fork()
    if child:
        _reap_until_dead(child)
    Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)


def _reap_until_dead(child: int) -> NoReturn:
    """What the first process of a pid namespace is for: orphans come to it. Ends as the child does."""
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # the child has it as well, and cleans up
            pid, status = os.wait()
            if pid == child:
                sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
