"""The STOP file: while it is there, whoever made it, this host is halted. The latch that needs no program of ours.

`touch /etc/brownout/STOP` halts the host, and what stands in the file is told as the reason; `rm` releases it. A policy
may name another path, which then halts as well: the well-known one works also where the policy cannot be read.
"""

import os
from contextlib import suppress
from pathlib import Path

from brownout_agent.kernel.durable import sync_folder

WELL_KNOWN = Path("/etc/brownout/STOP")
RELEASE = "on the host: brownout-injector resume"
_REASON_BYTES_MAX = 500


class StopFile:
    """The latch. Any kind of file counts, and so does one that cannot be looked at."""

    def __init__(self, path: Path) -> None:
        """Take the path that the policy names."""
        self.path = path
        self.paths = tuple(dict.fromkeys((path, WELL_KNOWN)))

    def reason(self) -> str | None:
        """Why the host is halted, in one line that names the file; None when it is not."""
        for path in self.paths:
            try:
                path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                return f"{path}, which cannot be looked at: {error.strerror}"
            words = _words(path)
            return f"{path}: {words}" if words else str(path)
        return None

    def pull(self, reason: str) -> None:
        """Make the file, durably. One that is there keeps its words.

        Raises:
            OSError: it is not there, or may not be there after a power failure.
        """
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return
        try:
            with suppress(OSError):  # a full disk takes the name, which is what halts
                os.write(descriptor, reason.encode(errors="replace")[:_REASON_BYTES_MAX] + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(self.path.parent)

    def release(self) -> bool:
        """Take the file away, durably; False when there was none.

        Raises:
            OSError: it is still there.
        """
        there = [path for path in self.paths if os.path.lexists(path)]
        for path in there:
            path.unlink()
            sync_folder(path.parent)
        return bool(there)


def _words(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return " ".join(os.read(descriptor, _REASON_BYTES_MAX).decode(errors="replace").split())
    except OSError:  # a folder, or a FIFO that somebody writes to later
        return ""
    finally:
        os.close(descriptor)
