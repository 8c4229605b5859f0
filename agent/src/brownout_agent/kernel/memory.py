"""Memory that stays: an anonymous mapping that can grow, shrink and be kept in RAM; and what the host has left."""

import ctypes
import errno
import mmap
from collections.abc import Iterator
from pathlib import Path

from brownout_agent.kernel.processes import PROC, ProcessKey, is_alive

PAGE_BYTES = mmap.PAGESIZE
_MADV_POPULATE_WRITE = 23  # Linux 5.14, madvise(2); not among Python's constants
_MADV_DONTNEED_LOCKED = 24  # Linux 5.18
_MLOCK_ONFAULT = 1
_MAP_NORESERVE = 0x4000
_libc = ctypes.CDLL(None, use_errno=True)
_MEMINFO = Path("/proc/meminfo")
_VMSTAT = Path("/proc/vmstat")


def parse_meminfo(text: str) -> dict[str, int]:
    """The bytes of every size in a /proc/meminfo text: `MemTotal`, `MemAvailable`, ..."""
    rows = (line.split() for line in text.splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[2:] == ["kB"]}


def read_meminfo() -> dict[str, int]:
    return parse_meminfo(_MEMINFO.read_text())


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since boot."""
    rows = (line.split() for line in _VMSTAT.read_text().splitlines())
    return next((int(row[1]) for row in rows if row[0] == "oom_kill"), 0)


def resident_bytes(key: ProcessKey, start: int, end: int) -> int | None:
    """How much of this process's addresses [start, end) is in RAM, from /proc/PID/smaps; None when it is gone."""
    try:
        text = (PROC / str(key.pid) / "smaps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = sum(rss for low, high, rss in parse_smaps(text) if start <= low and high <= end)
    return found if is_alive(key) else None


def parse_smaps(text: str) -> Iterator[tuple[int, int, int]]:
    """(first address, end address, resident bytes) of every mapping in a /proc/PID/smaps text."""
    low = high = 0
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            low, high = (int(address, 16) for address in name.split("-"))
        elif name == "Rss:":
            yield low, high, int(rest.split()[0]) * 1024


class ResidentMemory:
    """A private anonymous mapping of which the first `held_bytes` are in RAM and stay there.

    `is_locked` says how: by mlock2(2), which is asked once and for all, so that a process may give up the right to it;
    or, where that is not allowed, by touching it again (`keep_resident`).

    Raises:
        OSError: the kernel does not promise that much address space (strict overcommit).
    """

    def __init__(self, most_bytes: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._mapping = mmap.mmap(-1, most_bytes, flags=flags)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self.end = self.start + -(-most_bytes // PAGE_BYTES) * PAGE_BYTES
        self.held_bytes = 0
        self.is_locked = self._call("mlock2", 0, most_bytes, ctypes.c_uint(_MLOCK_ONFAULT))

    def resize(self, to_bytes: int) -> None:
        """Hold `to_bytes`, a multiple of the page size.

        Raises:
            OSError: the kernel has no memory to give.
        """
        if to_bytes > self.held_bytes:
            self._populate(self.held_bytes, to_bytes - self.held_bytes)
        elif to_bytes < self.held_bytes:
            self._give_back(to_bytes, self.held_bytes - to_bytes)
        self.held_bytes = to_bytes

    def keep_resident(self) -> None:
        """Bring back what was swapped out. Nothing to do where the memory is locked."""
        if not self.is_locked and self.held_bytes:
            self._populate(0, self.held_bytes)

    def _give_back(self, offset: int, length: int) -> None:
        if self.is_locked:
            try:
                self._mapping.madvise(_MADV_DONTNEED_LOCKED, offset, length)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.is_locked = not self._call("munlock", 0, self.end - self.start)
        if not self.is_locked:
            self._mapping.madvise(mmap.MADV_DONTNEED, offset, length)

    def _populate(self, offset: int, length: int) -> None:
        try:
            self._mapping.madvise(_MADV_POPULATE_WRITE, offset, length)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            for position in range(offset, offset + length, PAGE_BYTES):
                self._mapping[position] = 1

    def _call(self, name: str, offset: int, length: int, *more: ctypes.c_uint) -> bool:
        function = getattr(_libc, name)
        return int(function(ctypes.c_void_p(self.start + offset), ctypes.c_size_t(length), *more)) == 0
