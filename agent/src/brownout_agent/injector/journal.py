"""The journal: what was begun on this host, durable before it was begun.

One preallocated file of lines ``crc32 json\\n``, written in place and synced line by line, so that a full disk can
neither stop an undo nor its being marked. A torn last line is what a crash in mid-write leaves: nothing had been
touched yet, so it is dropped. A broken line with good ones after it is damage: what can be read is undone, and new
orders are refused until a person has looked.

Order of work (each mark is on disk before the step after it)::

    recorded -> [holder starts inert] -> held -> [apply] -> active -> undoing -> [undo, verify] -> clean | residue

The file is readable by root alone: facts may hold the environment of a process that is to be started again.
"""

import errno
import fcntl
import json
import logging
import os
import stat
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from brownout_agent.kernel.clock import boot_id, boottime_ns
from brownout_agent.kernel.durable import sync_folder
from brownout_agent.kernel.processes import ProcessKey

CAPACITY_BYTES = 4 * 2**20
_RESERVED_BYTES = 2**20
"""Kept free for the marks of what is already recorded."""
_PAST_KEPT = 500
_LOCK_POLL_S = 0.02

log = logging.getLogger(__name__)


class Mark(StrEnum):
    """How far a fault has come."""

    RECORDED = "recorded"
    HELD = "held"
    ACTIVE = "active"
    UNDOING = "undoing"
    CLEAN = "clean"
    RESIDUE = "residue"
    REFUSED_FOR_EVER = "tombstone"


FINISHED = frozenset({Mark.CLEAN, Mark.REFUSED_FOR_EVER})


class JournalError(Exception):
    """The journal cannot be used; the text says why and what to do."""


class JournalHeld(JournalError):
    """Another process has it, and looks after what stands in it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One fault as the journal knows it."""

    fault_id: str
    mark: Mark
    kind: str = ""
    run_id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0
    boot_id: str = ""
    holders: tuple[ProcessKey, ...] = ()
    cause: str = ""
    residue: tuple[str, ...] = ()
    at_boottime_ns: int = 0
    """When this mark was made."""


def encode(entry: Entry) -> bytes:
    """One line of the journal."""
    plain = {
        "id": entry.fault_id, "mark": entry.mark, "kind": entry.kind, "run": entry.run_id,
        "parameters": entry.parameters, "facts": entry.facts, "duration_s": entry.duration_s,
        "boot": entry.boot_id, "holders": [key.as_json() for key in entry.holders],
        "cause": entry.cause, "residue": list(entry.residue), "at": entry.at_boottime_ns,
    }  # fmt: skip
    body = json.dumps(plain, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _decode_line(line: bytes) -> Entry | None:
    checksum, _, body = line.partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        plain = json.loads(body)
        return Entry(
            fault_id=plain["id"], mark=Mark(plain["mark"]), kind=plain["kind"], run_id=plain["run"],
            parameters=plain["parameters"], facts=plain["facts"], duration_s=plain["duration_s"],
            boot_id=plain["boot"], holders=tuple(ProcessKey.from_json(pair) for pair in plain["holders"]),
            cause=plain["cause"], residue=tuple(plain["residue"]), at_boottime_ns=plain["at"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a journal file says: the latest entry of each fault, where writing goes on, and whether it is damaged."""

    entries: dict[str, Entry]
    end: int
    damaged: bool


def decode(raw: bytes) -> Contents:
    """Read a journal file's bytes; never raises for what stands in them."""
    entries: dict[str, Entry] = {}
    end = position = 0
    broken = False
    damaged = False
    for line in raw.splitlines(keepends=True):
        position += len(line)
        text = line.lstrip(b"\0")
        if not text:
            continue  # the preallocated rest
        broken = broken or text != line  # a hole that a lost write left
        entry = _decode_line(text.rstrip(b"\n")) if line.endswith(b"\n") else None
        if entry is None:
            broken = True
            continue
        damaged = damaged or broken
        entries.pop(entry.fault_id, None)
        entries[entry.fault_id] = entry
        end = position
    return Contents(entries, end, damaged)


class Journal:
    """The journal of one state directory, held by one process at a time (flock)."""

    def __init__(self, folder: Path, wait_s: float = 0.0) -> None:
        """Lock, read and tidy the journal in `folder`, making it if need be.

        On a full disk it is used as it is. On one that has become read-only it is read, so that what stands in it can
        be undone, and every write raises. Another process that holds it is waited for, `wait_s` at most: a reaper is
        soon done.

        Raises:
            JournalHeld: another process holds it.
            JournalError: there is none and the disk has no room for one, or somebody else could write into it.
        """
        self._path = folder / "journal"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_strangers(folder)
            self._lock = _open_to_write(folder / "lock", os.O_CREAT)
        except OSError as error:
            raise JournalError(f"cannot use state directory {folder}: {error}") from error
        try:
            if not _lock_within(self._lock, wait_s):
                raise JournalHeld(
                    f"another injector or reaper holds {self._path}: it undoes by itself and tries again what is left; "
                    "next: its log, or stop it and try again"
                )
            self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> None:
        self._file: int | None = None
        contents = Contents({}, 0, damaged=False)
        try:
            if self._path.exists():
                self._file = _open_to_write(self._path)
                contents = decode(self._path.read_bytes())
        except OSError as error:
            raise JournalError(f"cannot read {self._path}: {error}") from error
        self.damaged = contents.damaged
        self.entries = contents.entries
        self._end = contents.end
        try:
            self._tidy()
        except JournalError as error:
            if self._file is None:
                raise
            log.warning("%s; the journal is used as it is", error)

    def close(self) -> None:
        """Give the journal up; another process may open it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        os.close(self._lock)

    @property
    def folder(self) -> Path:
        """The state directory that it stands for: who holds it may write what else is there."""
        return self._path.parent

    @property
    def unfinished(self) -> list[Entry]:
        """Every fault that was begun and not yet seen clean, the oldest first."""
        return [entry for entry in self.entries.values() if entry.mark not in FINISHED]

    @property
    def begun(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Kind and facts of each of these."""
        return tuple((entry.kind, entry.facts) for entry in self.unfinished)

    def record(self, entry: Entry) -> None:
        """Make a fault durable before anything of it is done.

        Raises:
            JournalError: no room, or the disk refused; nothing was begun and nothing may begin.
        """
        entry = replace(entry, mark=Mark.RECORDED, boot_id=boot_id(), at_boottime_ns=boottime_ns())
        self._write(entry, keep_free_bytes=_RESERVED_BYTES)

    def mark(self, fault_id: str, mark: Mark, **changes: Any) -> Entry:
        """Note how far a fault has come; durable when it returns.

        Raises:
            JournalError: the disk refused.
        """
        entry = replace(self.entries[fault_id], mark=mark, at_boottime_ns=boottime_ns(), **changes)
        self._write(entry)
        return entry

    def bury(self, fault_id: str) -> Entry:
        """A stop came before its start: that start is refused for ever.

        Raises:
            JournalError: the disk refused.
        """
        entry = Entry(fault_id, Mark.REFUSED_FOR_EVER, boot_id=boot_id(), at_boottime_ns=boottime_ns())
        self._write(entry)
        return entry

    def _write(self, entry: Entry, keep_free_bytes: int = 0) -> None:
        try:
            line = encode(entry)
        except (TypeError, ValueError) as error:
            raise JournalError(f"the facts of {entry.kind} are not plain JSON: {error}") from error
        room = CAPACITY_BYTES - keep_free_bytes - len(line)
        if self._end > room:
            self._tidy()
        if self._end > room:
            raise JournalError(f"{self._path} is full of unfinished faults; next: brownout-injector reap")
        if self._file is None:
            raise JournalError(f"{self._path} is closed")
        try:
            _write_durably(self._file, line, self._end)
        except OSError as error:
            raise JournalError(f"cannot write {self._path}: {error}") from error
        self._end += len(line)
        self.entries.pop(entry.fault_id, None)
        self.entries[entry.fault_id] = entry

    def _tidy(self) -> None:
        """Write the file anew with what is unfinished and the latest past ids, and swap it in by rename.

        A damaged file is left for a person to look at. What fails leaves the old file in use.
        """
        if self.damaged:
            return
        past = [entry for entry in self.entries.values() if entry.mark in FINISHED][-_PAST_KEPT:]
        kept = [*(replace(entry, parameters={}, facts={}, holders=()) for entry in past), *self.unfinished]
        lines = b"".join(encode(entry) for entry in kept)
        try:
            fresh = _replace_durably(self._path, lines)
        except OSError as error:
            raise JournalError(f"cannot renew {self._path}: {error}; it takes {CAPACITY_BYTES} free bytes") from error
        if self._file is not None:
            os.close(self._file)
        self._file = fresh
        self.entries = {entry.fault_id: entry for entry in kept}
        self._end = len(lines)


def _open_to_write(path: Path, more_flags: int = 0) -> int:
    """Open for reading and writing; what stands on a read-only disk for reading alone, which is enough to lock it.

    Raises:
        OSError: it cannot be opened.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | more_flags | flags, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | flags)


def _write_durably(file: int, data: bytes, offset: int) -> None:
    """Write all of `data`, or raise: where blocks are not really reserved, a full disk takes a part and says so softly.

    Raises:
        OSError: not all of it is on disk.
    """
    written = os.pwrite(file, data, offset)
    if written < len(data):
        raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes were taken")
    os.fdatasync(file)


def _replace_durably(path: Path, data: bytes) -> int:
    """Put a preallocated file with `data` in the place of `path`; returns its descriptor.

    Raises:
        OSError: the disk refused; `path` is what it was.
    """
    fresh = path.with_name("journal.new")
    file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(file, 0, CAPACITY_BYTES)
        _write_durably(file, data, 0)
        os.fsync(file)
        fresh.rename(path)
    except OSError:
        os.close(file)
        fresh.unlink()  # its space is needed for the next try
        raise
    # From here on the new file is the journal. Should a power failure bring back the old name, no fault outlives it.
    with suppress(OSError):
        sync_folder(path.parent)
    return file


def _refuse_strangers(folder: Path) -> None:
    """Undo does what the journal says, as root: nobody else may write it.

    Raises:
        OSError: somebody else owns the folder or may write into it.
    """
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        reason = f"it must belong to user {os.geteuid()} and be writable by nobody else; next: chmod 700"
        raise PermissionError(errno.EPERM, reason)


def _lock_within(descriptor: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOCK_POLL_S)  # flock cannot be waited for with a deadline
        else:
            return True
