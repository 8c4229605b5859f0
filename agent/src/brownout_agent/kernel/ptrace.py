"""Stopping a process so that the kernel sets it going again when we die: ptrace(2) with PTRACE_SEIZE.

A tracer's death detaches and resumes all that it traced, whatever killed it. SIGSTOP has no such end.
"""

import ctypes
import errno
import os
import time

from brownout_agent.kernel.processes import PROC, read_stat

_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_PTRACE_O_TRACECLONE = 0x8
_WALL = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long

TRACING_STOP = "t"
_POLL_S = 0.002


def thread_states(pid: int) -> dict[int, str]:
    """The state letter of every living thread of a process (proc(5)); empty where there is none."""
    try:
        tids = [int(entry.name) for entry in (PROC / str(pid) / "task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    stats = {tid: read_stat(tid) for tid in tids}
    return {tid: stat.state for tid, stat in stats.items() if stat is not None and stat.state not in "ZX"}


def is_stopped(pid: int) -> bool:
    """True while the process lives and every thread of it is in tracing stop."""
    states = thread_states(pid)
    return bool(states) and set(states.values()) == {TRACING_STOP}


def tracer_of(tid: int) -> int:
    """The pid of the process that traces this thread; 0 when nobody does or the thread is gone."""
    try:
        status = (PROC / str(tid) / "status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("TracerPid:"))


def stop(pid: int, timeout_s: float) -> bool:
    """Stop every thread of a process, those too that it starts meanwhile. False when the process is gone.

    The calling *thread* becomes the tracer: the process runs on when that thread ends. A system call that blocks in
    the process may return EINTR when it runs on, as after SIGSTOP and SIGCONT (signal(7)).

    Raises:
        PermissionError: not ours to trace, or traced by somebody else.
        TimeoutError: a thread does not stop, since it sleeps uninterruptibly (state D).
    """
    deadline = time.monotonic() + timeout_s
    seized: set[int] = set()
    while states := thread_states(pid):
        fresh = set(states) - seized
        for tid in fresh:
            _seize_and_interrupt(tid)
        seized |= fresh
        # A second look without a new thread: a stopped thread starts no other.
        if not fresh and set(states.values()) == {TRACING_STOP}:
            return True
        if time.monotonic() > deadline:
            running = ", ".join(f"{tid} in state {state}" for tid, state in states.items() if state != TRACING_STOP)
            raise TimeoutError(f"process {pid} was not stopped after {timeout_s:g} s: thread {running}")
        if not fresh:
            time.sleep(_POLL_S)
    return False


def reap_until_all_are_gone() -> None:
    """Wait while any traced thread is left, and collect the dead.

    A traced process that somebody kills is hidden from its own parent until its tracer has collected it; a
    supervisor would not see the death of its child.
    """
    while True:
        try:
            os.waitpid(-1, _WALL)
        except ChildProcessError:
            return


def _seize_and_interrupt(tid: int) -> None:
    """Trace the thread and stop it. A thread that is gone, or came to us by PTRACE_O_TRACECLONE, is fine."""
    for request, data in ((_PTRACE_SEIZE, _PTRACE_O_TRACECLONE), (_PTRACE_INTERRUPT, None)):
        if _libc.ptrace(request, tid, None, data) == 0:
            continue
        number = ctypes.get_errno()
        if number == errno.ESRCH:
            return
        tracer = tracer_of(tid)
        if not (number == errno.EPERM and tracer == os.getpid()):
            why = f"process {tracer} traces it" if tracer else os.strerror(number)
            raise OSError(number, f"cannot trace thread {tid}: {why}")
