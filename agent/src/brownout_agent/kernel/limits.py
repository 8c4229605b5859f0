"""What makes the kernel end a process of ours without anybody's help: prctl(2), oom_score_adj."""

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(expected_parent_pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel signal this process when the *thread* that made it ends (PR_SET_PDEATHSIG, prctl(2)).

    Raises:
        SystemExit: the parent died before the call took effect.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != expected_parent_pid:
        raise SystemExit("the parent died first")


def be_first_victim_of_oom() -> None:
    """Make this process the one that the kernel kills first when memory is short (oom_score_adj 1000, proc(5))."""
    Path("/proc/self/oom_score_adj").write_text("1000")
