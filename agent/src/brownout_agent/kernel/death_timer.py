"""A timer in the kernel that kills this very process, even one that is stopped.

timer_create(2) on CLOCK_BOOTTIME with SIGKILL for its signal. setitimer(2) could only send SIGALRM, which waits in a
stopped process until somebody continues it, and its clock stands still while the host is suspended. This clock runs on,
so that a time that passed in suspend has passed at resume, and no step of the wall clock moves it.
"""

import ctypes
import os
import signal
import time
from functools import cache
from typing import Any

_SIGEV_SIGNAL = 0
_TIMER_ABSTIME = 1
_NS_PER_S = 1_000_000_000


class _SigEvent(ctypes.Structure):
    """struct sigevent (sigevent(7)): 64 bytes on every 64-bit Linux."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("padding", ctypes.c_byte * 48),
    )


class _ITimerSpec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


@cache
def _library() -> Any:
    # Before glibc 2.34 these calls are in librt; since then it leads to libc, which has them.
    return ctypes.CDLL("librt.so.1", use_errno=True)


class DeathTimer:
    """Kills the process that made it at the time that was set last. Neither a fork nor an exec inherits it.

    Raises:
        OSError: the kernel gives no timer.
    """

    def __init__(self) -> None:
        event = _SigEvent(signo=signal.SIGKILL, notify=_SIGEV_SIGNAL)
        self._timer = ctypes.c_void_p()
        _check(
            "timer_create", _library().timer_create(time.CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer))
        )

    def set(self, at_boottime_ns: int) -> None:
        """Die at this time of CLOCK_BOOTTIME instead of at any that was set before; now, if it has passed.

        Raises:
            OSError: the kernel refused; what was set before stands.
        """
        seconds, nanoseconds = divmod(max(at_boottime_ns, 1), _NS_PER_S)  # all zeros would disarm it
        spec = _ITimerSpec(0, 0, seconds, nanoseconds)
        _check("timer_settime", _library().timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(spec), None))


def die_at(at_boottime_ns: int) -> DeathTimer:
    """Have the kernel kill this process then, whatever it is doing."""
    timer = DeathTimer()
    timer.set(at_boottime_ns)
    return timer


def _check(call: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
