"""Processes by pid *and* start time, since the kernel gives a pid to somebody else as soon as it is free."""

import errno
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, order=True)
class ProcessKey:
    """One process of this boot. `start_ticks` is field 22 of /proc/PID/stat (proc(5)), in clock ticks."""

    pid: int
    start_ticks: int

    def as_json(self) -> list[int]:
        return [self.pid, self.start_ticks]

    @classmethod
    def from_json(cls, pair: list[int]) -> "ProcessKey":
        return cls(int(pair[0]), int(pair[1]))


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat that Brownout reads."""

    comm: str
    state: str
    parent_pid: int
    cpu_ticks: int
    start_ticks: int


def read_stat(pid: int) -> Stat | None:
    """What /proc/PID/stat says now, or None where there is no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # comm is in parentheses and may itself hold blanks and parentheses: split at the last one.
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Stat(
        comm=head.partition("(")[2],
        state=fields[0],
        parent_pid=int(fields[1]),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        start_ticks=int(fields[19]),
    )


def key_of(pid: int) -> ProcessKey | None:
    """The key of the process that has this pid now, or None."""
    stat = read_stat(pid)
    return None if stat is None else ProcessKey(pid, stat.start_ticks)


def is_alive(key: ProcessKey) -> bool:
    """True while this very process runs; a zombie is dead, and so is one whose pid somebody else has now."""
    stat = read_stat(key.pid)
    return stat is not None and stat.start_ticks == key.start_ticks and stat.state not in "ZX"


def send_signal(key: ProcessKey, number: signal.Signals) -> bool:
    """Signal this very process. False when it is gone; never hits a process that inherited the pid.

    The pidfd is opened first and the start time read after it: from then on the pid cannot change hands unseen.
    """
    descriptor = _open(key.pid)
    if descriptor is None:
        return False
    try:
        if key_of(key.pid) != key:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_dead(keys: Iterable[ProcessKey], timeout_s: float) -> list[ProcessKey]:
    """Wait until these processes are dead, whoever's children they are; returns those that outlive the time.

    Dead to the last thread: only then has the kernel closed its files, and with them a lock or a table that it owned.
    """
    deadline = time.monotonic() + timeout_s
    left = []
    for key in keys:
        descriptor = _open(key.pid)
        if descriptor is None:
            continue
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            if key_of(key.pid) == key and not poller.poll(max(0.0, deadline - time.monotonic()) * 1_000):
                left.append(key)
        finally:
            os.close(descriptor)
    return left


def _open(pid: int) -> int | None:
    """A descriptor of the process that has this pid now, or None when there is none."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None  # what older kernels (6.1 for one) say of a process that is just being reaped


def all_pids() -> list[int]:
    """Every pid in /proc now."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def ancestors(pid: int) -> list[int]:
    """The pids of the parent, its parent, and so on up to 1."""
    chain = []
    stat = read_stat(pid)
    while stat is not None and stat.parent_pid > 0:
        chain.append(stat.parent_pid)
        stat = read_stat(stat.parent_pid)
    return chain
