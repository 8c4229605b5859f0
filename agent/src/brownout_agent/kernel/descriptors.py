"""Which descriptors a process has, and the limit on them: RLIMIT_NOFILE, one above the highest number that it may get.

The limit of another user's process may be set by whoever has CAP_SYS_RESOURCE, or whose real user and group are the
process's own (prlimit(2)). The injector has no such capability, but may become anybody: so a thread of its own takes on
the real ids of the process, sets the limit, and ends. For that moment that user may signal the thread (tgkill(2)), and
so end the injector, upon which its watchdog undoes everything.
"""

import ctypes
import os
import platform
import resource
import threading
from dataclasses import dataclass

from brownout_agent.kernel.processes import PROC

_GONE = (FileNotFoundError, ProcessLookupError)
_LINE = "Max open files"
_SETRESUID_SETRESGID = {"x86_64": (117, 119), "aarch64": (147, 149)}
"""The calls by their numbers, since those of the C library change every thread of the process (nptl(7))."""
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Limit:
    """`soft` is what counts; a process may raise its own up to `hard`. -1 is no limit."""

    soft: int
    hard: int


def read_limit(pid: int) -> Limit | None:
    """What /proc/PID/limits says now; None when the process is gone."""
    try:
        text = (PROC / str(pid) / "limits").read_text()
    except _GONE:
        return None
    line = next((line for line in text.splitlines() if line.startswith(_LINE)), None)
    if line is None:  # it died while we read
        return None
    soft, hard = (-1 if word == "unlimited" else int(word) for word in line.removeprefix(_LINE).split()[:2])
    return Limit(soft, hard)


def set_limit(pid: int, limit: Limit) -> None:
    """Set both; what is open above stays open.

    Raises:
        ProcessLookupError: the process is gone.
        PermissionError: it is not ours to limit.
    """
    _prlimit(pid, (limit.soft, limit.hard))


def may_set_limit(pid: int) -> bool:
    """Whether `set_limit` would be allowed: reading the limit by prlimit(2) takes the same right. Changes nothing.

    Raises:
        ProcessLookupError: the process is gone.
    """
    try:
        _prlimit(pid, None)
    except PermissionError:
        return False
    return True


def open_numbers(pid: int) -> set[int]:
    """The descriptors that a process has; none when it is gone.

    Raises:
        PermissionError: another user's process.
    """
    try:
        return {int(entry.name) for entry in os.scandir(PROC / str(pid) / "fd")}
    except _GONE:
        return set()


def limit_for(taken: set[int], leave: int) -> int:
    """The limit below which exactly `leave` numbers are free: the kernel gives the lowest that is free. Pure."""
    number, free = 0, 0
    while number in taken or free < leave:
        free += number not in taken
        number += 1
    return number


def free_below(limit: int, taken: set[int]) -> int:
    """How many more a process can get. Pure."""
    return sum(number not in taken for number in range(limit))


def _prlimit(pid: int, limits: tuple[int, int] | None) -> None:
    try:
        _ask(pid, limits)
    except PermissionError:
        _as_owner(pid, limits)


def _ask(pid: int, limits: tuple[int, int] | None) -> None:
    if limits is None:
        resource.prlimit(pid, resource.RLIMIT_NOFILE)
    else:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def _as_owner(pid: int, limits: tuple[int, int] | None) -> None:
    """In a thread with the real ids of the process; its effective ids, and so its rights, stay what they are."""
    failed: list[OSError] = []

    def work() -> None:
        try:
            _take_on_real_ids(pid)
            _ask(pid, limits)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _take_on_real_ids(pid: int) -> None:
    numbers = _SETRESUID_SETRESGID.get(platform.machine())
    if numbers is None:
        raise PermissionError("limits of other users' processes take CAP_SYS_RESOURCE on this kind of machine")
    try:
        status = (PROC / str(pid) / "status").read_text(errors="replace")
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {pid} is gone") from error
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    setresuid, setresgid = numbers
    for number, field in ((setresgid, "Gid"), (setresuid, "Uid")):
        if _libc.syscall(number, int(fields[field].split()[0]), -1, -1) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"cannot take on the {field} of process {pid}: {os.strerror(code)}")
