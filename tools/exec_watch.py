"""Every program that a command and its descendants execute, told by the kernel's tracepoints.

It slows the command down by nothing that can be seen, where strace(1) makes the tests several times as long. In return
it takes root and tracefs, and tells of a program its file alone.
"""

import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TRACING = Path("/sys/kernel/tracing")
_EVENTS = ("sched/sched_process_fork", "sched/sched_process_exec", "sched/sched_process_exit")
_BUFFER_KIB = 8_192
_END = "the command has ended"
_FORK = re.compile(r": sched_process_fork: .* pid=(?P<pid>\d+) child_comm=.* child_pid=(?P<child>\d+)$")
_EXEC = re.compile(r": sched_process_exec: filename=(?P<file>.*) pid=(?P<pid>\d+) old_pid=(?P<old>\d+)$")
_EXIT = re.compile(r": sched_process_exit: .* pid=(?P<pid>\d+) prio=")


@dataclass
class Lineage:
    """Who executes what, as the lines of a trace tell it, of one process and all that come of it. No I/O."""

    root_pid: int
    executions: list[tuple[str, str]] = field(default_factory=list)
    """(the file that was executed, the file that the process had executed before: "" for the first)."""
    _files: dict[int, str] = field(default_factory=dict)
    """What each thread's process has executed last."""

    def __post_init__(self) -> None:
        self._files[self.root_pid] = ""

    def read(self, line: str) -> None:
        """Take one line of `trace_pipe`; they come in the order of time."""
        if (fork := _FORK.search(line)) and int(fork["pid"]) in self._files:
            self._files[int(fork["child"])] = self._files[int(fork["pid"])]
        elif (execution := _EXEC.search(line)) and int(execution["old"]) in self._files:
            by = self._files.pop(int(execution["old"]))  # its thread gets the number of its process
            self._files[int(execution["pid"])] = execution["file"]
            self.executions.append((execution["file"], by))
        elif (ended := _EXIT.search(line)) and int(ended["pid"]) in self._files:
            del self._files[int(ended["pid"])]  # the number may be a stranger's next


def watch(argv: list[str]) -> tuple[int, list[tuple[str, str]]]:
    """Run a command; its exit code, and `Lineage.executions` up to its end.

    Raises:
        OSError: there is no tracefs, or it is not ours to use.
        RuntimeError: the kernel lost events, so that nothing can be said.
    """
    lineage = Lineage(os.getpid())
    with _instance() as instance:
        reading = threading.Thread(target=_read, args=(instance, lineage), name="trace_pipe")
        reading.start()
        try:
            code = subprocess.run(argv, check=False).returncode
        finally:
            (instance / "trace_marker").write_text(_END)
            reading.join()
        if lost := _lost(instance):
            raise RuntimeError(f"the kernel lost {lost} events")
    return code, lineage.executions


def _read(instance: Path, lineage: Lineage) -> None:
    with (instance / "trace_pipe").open(encoding="utf-8", errors="replace") as pipe:
        for line in pipe:
            if line.endswith(f"tracing_mark_write: {_END}\n"):
                return
            lineage.read(line.rstrip("\n"))


@contextlib.contextmanager
def _instance() -> Iterator[Path]:
    """Buffers of our own, so that nobody else's tracing is disturbed."""
    if not (TRACING / "instances").exists():
        raise FileNotFoundError(f"no tracefs at {TRACING}; next: mount -t tracefs none {TRACING}")
    instance = TRACING / "instances" / f"exec-watch-{os.getpid()}"
    instance.mkdir()
    try:
        (instance / "trace_clock").write_text("mono")  # the default one differs between cores
        (instance / "buffer_size_kb").write_text(str(_BUFFER_KIB))
        for event in _EVENTS:
            (instance / "events" / event / "enable").write_text("1")
        yield instance
    finally:
        instance.rmdir()


def _lost(instance: Path) -> int:
    found = [re.findall(r"^(?:overrun|dropped events): (\d+)$", one.read_text(), re.MULTILINE)
             for one in instance.glob("per_cpu/cpu*/stats")]  # fmt: skip
    return sum(int(count) for counts in found for count in counts)
