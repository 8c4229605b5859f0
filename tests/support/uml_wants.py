"""What a service of a user-mode Linux host wants without end: CPU time, memory or a disk.

    python uml_wants.py cpu|memory|disk

Memory only when WANT is there, 96 MiB in all: what it has before is no matter of a limit.
"""

import mmap
import os
import sys
import time
from pathlib import Path

WANT = Path("/run/want")
_MIB = 2**20
_MEMORY_MIB = 96


def _want_cpu() -> None:
    while True:
        pass


def _want_memory() -> None:
    while not WANT.exists():
        time.sleep(0.05)
    # A shared one would be memory of a file (tmpfs), and no anonymous memory.
    taken = mmap.mmap(-1, _MEMORY_MIB * _MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, len(taken), mmap.PAGESIZE):
        taken[at] = 1
    time.sleep(3600)


def _want_disk() -> None:
    block = mmap.mmap(-1, 64 * 1024)
    file = os.open("/var/lib/brownout/wanted", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
    while True:
        os.pwrite(file, block, 0)


if __name__ == "__main__":
    {"cpu": _want_cpu, "memory": _want_memory, "disk": _want_disk}[sys.argv[1]]()
