"""Be told when the entries of folders change: inotify(7), without a library."""

import asyncio
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

_IN_CREATE, _IN_DELETE, _IN_MOVED, _IN_CLOSE_WRITE = 0x100, 0x200, 0xC0, 0x8
_CHANGES = _IN_CREATE | _IN_DELETE | _IN_MOVED | _IN_CLOSE_WRITE
_BUFFER_BYTES = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """Wakes whoever waits when something in one of the folders changes, or after a time: one may be made later.

    Where the kernel gives no watch (its limits are per user) the time alone wakes.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = tuple(folders)
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._changed = asyncio.Event()

    def __enter__(self) -> "FolderWatch":
        if self._descriptor >= 0:
            asyncio.get_running_loop().add_reader(self._descriptor, self._drain)
            self._add()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)

    async def changed(self, at_most_s: float) -> None:
        """Return when something has changed since the last call returned, or after `at_most_s`."""
        try:
            async with asyncio.timeout(at_most_s):
                await self._changed.wait()
        except TimeoutError:
            self._add()  # something may have been mounted over a folder, which is not told
        self._changed.clear()

    def _add(self) -> None:
        if self._descriptor < 0:
            return
        for folder in self._folders:
            # Watching the same folder once more changes nothing; one that is not there is tried again.
            _libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _CHANGES)

    def _drain(self) -> None:
        os.read(self._descriptor, _BUFFER_BYTES)
        self._add()  # what changed may be that one of the folders was made
        self._changed.set()
