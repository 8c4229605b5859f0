"""Processes that stand still or are traced, and processes by their command line: one pass over /proc each."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brownout_agent.kernel.processes import PROC, all_pids, read_stat

_GONE = (FileNotFoundError, ProcessLookupError)
_STANDARD_STREAMS = range(3)


@dataclass(frozen=True, slots=True)
class Halted:
    """A process of this network namespace that is stopped (proc(5): T, t), or traced by process `tracer_pid`."""

    pid: int
    start_ticks: int
    comm: str
    is_stopped: bool
    tracer_pid: int


def halted_processes() -> Iterator[Halted]:
    """Every process that is stopped or traced, as far as it shares the caller's network namespace.

    That is where process faults look for processes; one that was named by its pid is looked at when it is undone.
    """
    for pid in all_pids():
        fields = _status(pid)
        is_stopped = fields.get("State", "")[:1] in {"T", "t"}
        tracer_pid = int(fields.get("TracerPid", "0"))
        if not (is_stopped or tracer_pid) or not shares_our_network(pid):
            continue
        now = read_stat(pid)
        if now is not None:
            yield Halted(pid, now.start_ticks, now.comm, is_stopped, tracer_pid)


def command_lines(part: str) -> Iterator[tuple[int, list[str]]]:
    """Pid and arguments of each living process one of whose arguments is `part`."""
    wanted = b"\0" + os.fsencode(part) + b"\0"
    for pid in all_pids():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                raw = file.read()
        except _GONE:
            continue
        if wanted in raw:
            yield pid, [os.fsdecode(argument) for argument in raw.split(b"\0")[:-1]]


def starter_uid(pid: int) -> int | None:
    """The real uid of a process, that is whose it is whatever rights its program lends it; None when it is gone."""
    uids = _status(pid).get("Uid")
    return int(uids.split()[0]) if uids else None


def shares_our_network(pid: int) -> bool:
    """Whether a living process is in this process's network namespace, or in one that is not ours to read."""
    ours = (PROC / "self/ns/net").readlink()
    try:
        return (PROC / str(pid) / "ns/net").readlink() == ours
    except PermissionError:
        return True
    except _GONE:
        return False


def unnamed_files(pid: int) -> list[str]:
    """`SIZE bytes on DEVICE` for each regular file without a name that a process has opened; none when it is gone.

    Where it was given its input and output is left out: that is its starter's, and another one after a restart.

    Raises:
        PermissionError: another user's process.
    """
    lines = []
    try:
        for entry in os.scandir(PROC / str(pid) / "fd"):
            try:
                status = entry.stat()
            except _GONE:
                continue
            if int(entry.name) in _STANDARD_STREAMS:
                continue
            # A memfd has no name either, and takes no room on any disk.
            if status.st_nlink == 0 and stat.S_ISREG(status.st_mode) and not _is_memory(entry.path):
                device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
                lines.append(f"{status.st_blocks * 512} bytes on device {device}")
    except _GONE:
        return []
    return lines


def _is_memory(entry: str) -> bool:
    try:
        return str(Path(entry).readlink()).startswith("/memfd:")
    except _GONE:
        return True


def _status(pid: int) -> dict[str, str]:
    """The first fields of /proc/PID/status, down to tracer and users; none where there is no such process."""
    fields = {}
    try:
        with open(f"/proc/{pid}/status", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
                if name == "Uid":
                    break
    except _GONE:
        return {}
    return fields
