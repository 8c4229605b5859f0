"""A program that does as it is told, one word a line, and says what came of it; and a control group for it.

`open` and `close` a descriptor, `start` a child that lives on, start an `orphan` whose parent dies, start a `thread`,
`spread` a descriptor to number 100, `take` TAKEN_BYTES of memory, write as many to the file that the first word of its
command line names and so `cache` them.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.control_groups import JOIN, new_group

TAKEN_BYTES = 16 * 2**20
_PROGRAM = """
import errno, os, signal, sys, threading
opened, taken = [], []

def cache():
    with open(sys.argv[1], "ab") as file:
        for _ in range(16):
            file.write(bytes(2**20))

def lives_on():
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.pause()
    return pid

def orphan():
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"%d" % lives_on())
        os._exit(0)
    os.waitpid(pid, 0)
    told = int(os.read(reading, 20))
    os.close(reading)
    os.close(writing)
    return told

def thread():
    threading.Thread(target=signal.pause, daemon=True).start()

ORDERS = {
    "open": lambda: opened.append(os.open("/dev/null", os.O_RDONLY)),
    "close": lambda: os.close(opened.pop()),
    "spread": lambda: os.dup2(0, 100) and None,
    "start": lives_on,
    "orphan": orphan,
    "thread": thread,
    "take": lambda: taken.append(b"x" * (16 * 2**20)),
    "cache": cache,
}
for line in sys.stdin:
    try:
        print(ORDERS[line.strip()]() or "ok", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
    except RuntimeError as error:
        print(error, flush=True)
"""


class Told:
    """One such program."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.pid = process.pid
        self.started: list[int] = []

    def does(self, word: str) -> str:
        """What came of it: `ok`, a pid, the name of an error, or what a thread's start says."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if answer.isdecimal():
            self.started.append(int(answer))
        return answer


@contextmanager
def told_program(*words: str, group: Path | None = None, user: int | None = None) -> Iterator[Told]:
    """It runs inside, with these words on its command line; at the end it and all that it started are killed."""
    enter = [] if group is None else [sys.executable, "-S", "-c", JOIN, str(group / "cgroup.procs"), "--"]
    argv = [*enter, "/usr/bin/python3", "-I", "-S", "-c", _PROGRAM, *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, user=user, group=user) as process:
        told = Told(process)
        try:
            assert told.does("open") == "ok"
            assert told.does("close") == "ok"
            yield told
        finally:
            for pid in told.started:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()


@contextmanager
def pids_group() -> Iterator[Path]:
    """A control group of the test's own that counts processes; skips where none can be had."""
    with new_group("pids", "pids.max") as group:
        yield group
