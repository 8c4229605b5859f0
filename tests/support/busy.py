"""Programs that use all that they can get, in control groups: CPU time, a disk."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.control_groups import JOIN
from tests.support.polling import wait_until

_WRITE = """
import mmap, os, sys, time
block = mmap.mmap(-1, 65536)
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
while True:
    os.pwrite(file, block, 0)
    time.sleep(0.01)
"""

_PYTHON = ["/usr/bin/python3", "-I", "-S"]


@contextmanager
def busy_program(*groups: Path, word: str = "busy") -> Iterator[psutil.Process]:
    """It burns inside, with this word on its command line; at the end it is killed."""
    with _in_groups(groups, "while True: pass", word) as process:
        yield process


@contextmanager
def writing_program(file: Path, *groups: Path) -> Iterator[psutil.Process]:
    """It writes up to 6 MiB a second past the page cache inside; at the end it is killed."""
    with _in_groups(groups, _WRITE, str(file)) as process:
        yield process


@contextmanager
def _in_groups(groups: tuple[Path, ...], *program: str) -> Iterator[psutil.Process]:
    join = [sys.executable, "-S", "-c", JOIN, *(str(group / "cgroup.procs") for group in groups), "--"]
    with subprocess.Popen([*join, *_PYTHON, "-c", *program]) as process:
        try:
            running = psutil.Process(process.pid)
            wait_until(lambda: running.cmdline()[:2] == _PYTHON[:2], "it is in its groups and runs")
            yield running
        finally:
            process.kill()


def percent_of_a_core(process: psutil.Process, seconds: float) -> float:
    """The CPU time that it gets in the next seconds, by /proc/PID/stat."""
    begun_s, used_s = time.monotonic(), sum(process.cpu_times()[:2])
    time.sleep(seconds)  # what is measured is what happens in this time
    return 100 * (sum(process.cpu_times()[:2]) - used_s) / (time.monotonic() - begun_s)
