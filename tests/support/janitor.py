"""What a program makes on this machine goes when the program is dead, however it died: another process sees to it."""

import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.support.control_groups import fault_parents, thaw

GROUP = "brownout-program-"
_GONE_WITHIN_S = 20.0
_POLL_S = 0.02


def employ() -> None:
    """Have a process of its own session clean up after this one and all that it starts or becomes.

    From here on control groups of ours are made below one of this program's own, and temporary files in a folder of its
    own. The janitor hears of the end by a pipe that every exec inherits, and no program that Python starts.
    """
    folder = Path(tempfile.mkdtemp(prefix=GROUP))
    groups = [parent / f"{GROUP}{os.getpid()}" for parent in fault_parents()]
    heard, held = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.close(held)
        os.read(heard, 1)  # nobody writes: it ends when nobody holds the other end any more
        _clean_up(groups, folder)
        os._exit(0)
    os.close(heard)
    os.set_inheritable(held, True)
    for group in groups:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _clean_up(groups: list[Path], folder: Path) -> None:
    deadline_s = time.monotonic() + _GONE_WITHIN_S
    while (left := [group for group in groups if group.exists()]) and time.monotonic() < deadline_s:
        for group in left:
            for one in (*group.glob("*/"), group):
                with suppress(OSError):  # its processes are dying yet
                    thaw(one)
                    for pid in (one / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                    one.rmdir()
        time.sleep(_POLL_S)
    shutil.rmtree(folder, ignore_errors=True)
