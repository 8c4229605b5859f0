"""A host's own copy of what it was ordered and whom it turned away: no controller can rewrite it.

Lines of a chain (`chain.py`) in a file that is only added to; a full one becomes the older of two, so it is bounded.
`brownout audit verify --file FILE` reads both.
"""

import logging
import os
import threading
import time
from pathlib import Path

from brownout_agent.chain import GENESIS, Link, link, read_line
from brownout_agent.kernel.durable import reserve

NAME = "audit.jsonl"
FILE_BYTES_MAX = 4 * 2**20
"""About 10,000 orders."""
_ROOM_BYTES = 64 * 2**10
"""Reserved ahead: a disk that has become full takes some 150 records more, those of undoing among them."""
_TEXT_MAX = 500
_SAME_AGAIN_S = 600.0
_SAID_MAX = 1_000

log = logging.getLogger(__name__)


class HostLog:
    """The copy in one folder. Safe for several threads of one process."""

    def __init__(self, folder: Path, bytes_max: int = FILE_BYTES_MAX) -> None:
        self.path = folder / NAME
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._last: Link | None = None
        self._said: dict[str, tuple[str, float]] = {}

    def keep(self, actor: str, action: str, subject: str, outcome: str, reason: str = "", **detail: str) -> None:
        """Add one record; durable when it returns.

        Raises:
            OSError: it could not be kept.
        """
        texts = {"actor": actor, "action": action, "subject": subject, "outcome": outcome, "reason": reason}
        with self._lock:
            last = self._last or _last_of(self.path) or _last_of(self._older)
            number, previous = (last.sequence + 1, last.hash) if last else (1, GENESIS)
            document = {"sequence": number, "at_ns": time.time_ns(), **_bounded(texts), "detail": _bounded(detail)}
            fresh = link(previous, document)
            self._add(fresh.line().encode("ascii") + b"\n")
            self._last = fresh

    def keep_if_new(self, actor: str, action: str, subject: str, outcome: str, reason: str) -> None:
        """The same for what may come again and again: the same once in ten minutes, and no error for want of disk."""
        now_s = time.monotonic()
        said, at_s = self._said.get(subject, ("", 0.0))
        if said == reason and now_s - at_s < _SAME_AGAIN_S:
            return
        if len(self._said) >= _SAID_MAX:
            self._said.clear()
        self._said[subject] = (reason, now_s)
        try:
            self.keep(actor, action, subject, outcome, reason)
        except OSError as error:
            log.error("not in this host's own copy: %s %s %s: %s (%s)", actor, action, subject, reason, error)

    @property
    def _older(self) -> Path:
        return self.path.with_suffix(".1.jsonl")

    def _add(self, line: bytes) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size + len(line) > self._bytes_max:
            self.path.replace(self._older)
        descriptor = os.open(self.path, flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size % _ROOM_BYTES + len(line) > _ROOM_BYTES or not size:
                reserve(descriptor, size, 2 * _ROOM_BYTES)
            try:
                if os.write(descriptor, line) < len(line):
                    raise OSError("not all of a record was taken")
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)  # half a line would break the chain
                raise
        finally:
            os.close(descriptor)


def _bounded(texts: dict[str, str]) -> dict[str, str]:
    return {name: text[:_TEXT_MAX] for name, text in texts.items()}


def _last_of(path: Path) -> Link | None:
    """The last whole record. What a power cut left half-written is cut off, so that the chain goes on behind it."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(path, len(whole))
    lines = whole.splitlines()
    try:
        return read_line(lines[-1].decode("ascii")) if lines else None
    except ValueError as error:
        raise OSError(f"{path} is damaged: {error}; move it away to begin a new one") from error
