"""Numbers that one process counts and another one of ours reads: memory without a name (memfd_create(2)).

It is reached by its descriptor in /proc, so it lives as long as who counts, and needs neither file nor socket.
"""

import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from brownout_agent.kernel.processes import ProcessKey, is_alive

_NUMBER_BYTES = 8


class Tally:
    """Counters by name, all 0 at first. The counting end; the object is for one thread."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raises OSError when there is no memory to be had."""
        self.descriptor = os.memfd_create("brownout-tally")
        size = len(names) * _NUMBER_BYTES
        os.ftruncate(self.descriptor, size)
        self._numbers = memoryview(mmap.mmap(self.descriptor, size)).cast("q")
        self._index = {name: at for at, name in enumerate(names)}

    def add(self, name: str, count: int = 1) -> None:
        """Count on."""
        self._numbers[self._index[name]] += count


def read_tally(key: ProcessKey, descriptor: int, names: Sequence[str]) -> dict[str, int]:
    """What the process has counted so far. `names` as it has them.

    Raises:
        OSError: it is gone, or not ours to read.
    """
    raw = Path(f"/proc/{key.pid}/fd/{descriptor}").read_bytes()
    if not is_alive(key):  # else these may be another process's
        raise ProcessLookupError(f"process {key.pid} is gone")
    return {
        name: int.from_bytes(raw[at * _NUMBER_BYTES :][:_NUMBER_BYTES], sys.byteorder, signed=True)
        for at, name in enumerate(names)
    }
