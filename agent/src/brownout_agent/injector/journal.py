"""The journal: what was begun on this host, durable before it was begun.

One preallocated file of lines ``crc32 json\\n``, written in place and synced line by line, so that a full disk can
neither stop an undo nor its being marked. A torn last line is what a crash in mid-write leaves: nothing had been
touched yet, so it is dropped. A broken line with good ones after it is damage: what can be read is undone, and new
orders are refused until a person has looked.

Order of work (each mark is on disk before the step after it)::

    recorded -> [holder starts inert] -> held -> [apply] -> active -> undoing -> [undo, verify] -> clean | residue

The file is readable by root alone: facts may hold the environment of a process that is to be started again.
"""

import fcntl
import json
import os
import time
import zlib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from brownout_agent.kernel.clock import boot_id, boottime_ns
from brownout_agent.kernel.processes import ProcessKey

CAPACITY_BYTES = 4 * 2**20
_RESERVED_BYTES = 2**20
"""Kept free for the marks of what is already recorded."""
_PAST_KEPT = 500
_LOCK_POLL_S = 0.02


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
        if line.startswith(b"\0"):
            continue  # the preallocated rest, or a hole that a lost write left
        entry = _decode_line(line.rstrip(b"\n").lstrip(b"\0")) if line.endswith(b"\n") else None
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
        """Lock, read and, where nothing is open, tidy the journal in `folder`, making it if need be.

        Another process that holds it is waited for, `wait_s` at most: a reaper is soon done.

        Raises:
            JournalError: another process holds it, or the disk will not take it.
        """
        self._folder = folder
        self._path = folder / "journal"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise JournalError(f"cannot use state directory {folder}: {error}") from error
        if not _lock_within(self._lock, wait_s):
            os.close(self._lock)
            raise JournalError(f"another injector or reaper holds {self._path}")
        contents = decode(self._path.read_bytes()) if self._path.exists() else Contents({}, 0, damaged=False)
        self.damaged = contents.damaged
        self.entries = contents.entries
        self._end = contents.end
        if not self.damaged:
            self._tidy()
        else:
            self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def close(self) -> None:
        """Give the journal up; another process may open it."""
        os.close(self._file)
        os.close(self._lock)

    @property
    def unfinished(self) -> list[Entry]:
        """Every fault that was begun and not yet seen clean, the oldest first."""
        return [entry for entry in self.entries.values() if entry.mark not in FINISHED]

    @property
    def has_room(self) -> bool:
        """False when a new fault could take the space that the marks of older ones need."""
        if self._end + _RESERVED_BYTES >= CAPACITY_BYTES and not self.unfinished and not self.damaged:
            os.close(self._file)
            self._tidy()
        return self._end + _RESERVED_BYTES < CAPACITY_BYTES

    def record(self, entry: Entry) -> None:
        """Make a fault durable before anything of it is done.

        Raises:
            JournalError: no room, or the disk refused; nothing was begun and nothing may begin.
        """
        if not self.has_room:
            raise JournalError(f"{self._path} is full of unfinished faults; next: brownout-injector doctor")
        self._write(replace(entry, mark=Mark.RECORDED, boot_id=boot_id(), at_boottime_ns=boottime_ns()))

    def mark(self, fault_id: str, mark: Mark, **changes: Any) -> Entry:
        """Note how far a fault has come; durable when it returns.

        Raises:
            JournalError: the disk refused.
        """
        entry = replace(self.entries[fault_id], mark=mark, at_boottime_ns=boottime_ns(), **changes)
        self._write(entry)
        return entry

    def bury(self, fault_id: str) -> None:
        """A stop came before its start: that start is refused for ever."""
        self._write(Entry(fault_id, Mark.REFUSED_FOR_EVER))

    def _write(self, entry: Entry) -> None:
        line = encode(entry)
        if self._end + len(line) > CAPACITY_BYTES:
            raise JournalError(f"{self._path} has no room for a mark of {entry.fault_id}")
        try:
            os.pwrite(self._file, line, self._end)
            os.fdatasync(self._file)
        except OSError as error:
            raise JournalError(f"cannot write {self._path}: {error}") from error
        self._end += len(line)
        self.entries.pop(entry.fault_id, None)
        self.entries[entry.fault_id] = entry

    def _tidy(self) -> None:
        """Write the file anew with what is unfinished and the latest past ids, and swap it in by rename."""
        past = [entry for entry in self.entries.values() if entry.mark in FINISHED][-_PAST_KEPT:]
        kept = [*(replace(entry, parameters={}, facts={}, holders=()) for entry in past), *self.unfinished]
        lines = b"".join(encode(entry) for entry in kept)
        fresh = self._folder / "journal.new"
        try:
            self._file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.posix_fallocate(self._file, 0, CAPACITY_BYTES)
            os.pwrite(self._file, lines, 0)
            os.fsync(self._file)
            fresh.rename(self._path)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)
        except OSError as error:
            raise JournalError(f"cannot write {fresh}: {error}; free {CAPACITY_BYTES} bytes there") from error
        self.entries = {entry.fault_id: entry for entry in kept}
        self._end = len(lines)


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
