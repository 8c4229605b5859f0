"""The reaper: undoes what a dead injector left behind, from the journal alone.

It runs at every start of the injector, by `brownout-injector reap` (systemd: ExecStopPost, timer, boot), and in the
watchdog, a process of its own session that waits for the injector to die.
"""

import asyncio
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from brownout_agent.host_log import HostLog
from brownout_agent.injector.journal import Entry, Journal, JournalError, JournalHeld, Mark
from brownout_agent.injector.lifecycle import Cause
from brownout_agent.injector.threads import in_thread
from brownout_agent.injector.undoing import UNDO_TIMEOUT_S, undo_entry
from brownout_agent.kernel.locks import flock_holder
from brownout_agent.kernel.processes import ProcessKey, key_of, read_stat, send_signal, wait_dead

log = logging.getLogger(__name__)

TRIES = 15
RETRY_AFTER_S = 2.0
STOPPED_MAX_S = 15.0
"""How long an injector may be stopped (SIGSTOP); WatchdogSec= of its unit allows as much."""
_LOOK_EVERY_S = 1.0
_RESPAWN_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Reaped:
    """What one pass found: ids that are clean now, and what is left of the others."""

    clean: tuple[str, ...]
    residue: dict[str, tuple[str, ...]]
    unmarked: tuple[str, ...] = ()
    """Those that are clean, but the disk did not take the mark: the next pass looks at them again."""


def reap(journal: Journal) -> Reaped:
    """Undo and verify every unfinished entry; each is marked clean only when the kernel was seen clean."""
    left = undo_all(journal.unfinished)
    _keep(note_reaped(journal, left), HostLog(journal.folder))
    clean = tuple(fault_id for fault_id, residue in left.items() if not residue)
    unmarked = tuple(fault_id for fault_id in clean if journal.entries[fault_id].mark is not Mark.CLEAN)
    return Reaped(clean, {fault_id: residue for fault_id, residue in left.items() if residue}, unmarked)


def _keep(reaped: Iterable[Entry], own_copy: HostLog) -> None:
    """What became of them, in the injector's own copy; a disk that does not take it keeps nobody from the next undo."""
    for entry in reaped:
        try:
            why = "; ".join(entry.residue)
            own_copy.keep("reaper", "fault.state", entry.fault_id, entry.mark, why, kind=entry.kind, cause=entry.cause)
        except OSError as error:
            log.error("not in this host's own copy: %s is %s (%s)", entry.fault_id, entry.mark, error)


def undo_all(entries: Iterable[Entry]) -> dict[str, tuple[str, ...]]:
    """Undo entries side by side, so that none keeps another on; what is left of each, by id. Within UNDO_TIMEOUT_S."""
    undos = {entry.fault_id: in_thread(partial(undo_entry, entry), or_here=True) for entry in entries}
    wait(undos.values(), UNDO_TIMEOUT_S)
    hangs = (f"its undo has not come back after {UNDO_TIMEOUT_S:g} s",)
    return {fault_id: tuple(undo.result()) if undo.done() else hangs for fault_id, undo in undos.items()}


def note_reaped(journal: Journal, left: Mapping[str, tuple[str, ...]]) -> list[Entry]:
    """Mark what `undo_all` found; returns the entries that are other than they were."""
    noted = []
    for fault_id, residue in left.items():
        entry = journal.entries[fault_id]
        mark = Mark.RESIDUE if residue else Mark.CLEAN
        if (mark, residue) == (entry.mark, entry.residue):
            continue
        try:
            noted.append(journal.mark(fault_id, mark, cause=entry.cause or Cause.REAPED, residue=residue))
        except JournalError as error:
            log.error("%s: undone, but not marked: %s", fault_id, error)
    return noted


def watch(folder: Path, injector: ProcessKey) -> int:
    """Wait for the injector's death, see to it if it is frozen, then reap. Returns an exit code: 0 when all is clean.

    An injector that was started again meanwhile holds the journal, has reaped by itself and has its own watchdog.
    """
    _outwait(injector)
    for attempt in range(TRIES):
        if attempt:
            time.sleep(RETRY_AFTER_S)
        try:
            journal = Journal(folder)
        except JournalHeld as error:
            if flock_holder(folder / "lock") is None:
                continue  # a fork of the dead one, before its exec, has the lock yet: nobody else will undo
            log.info("left to another: %s", error)
            return 0
        except JournalError as error:
            log.error("%s", error)
            continue
        reaped = reap(journal)
        journal.close()
        log.info("clean: %s, left: %s", list(reaped.clean), reaped.residue)
        if not reaped.residue:
            return 0
    return 1


def _outwait(injector: ProcessKey) -> None:
    """Return when the injector is dead. One that stays stopped keeps no promise, so it is killed."""
    stopped_s = 0.0
    while wait_dead([injector], timeout_s=_LOOK_EVERY_S):
        stat = read_stat(injector.pid)
        stopped_s = stopped_s + _LOOK_EVERY_S if stat is not None and stat.state == "T" else 0.0
        if stopped_s >= STOPPED_MAX_S:
            log.warning("the injector was stopped for %g s; killing it, to undo what it cannot", stopped_s)
            send_signal(injector, signal.SIGKILL)


class Watchdog:
    """Keeps one watchdog process alive beside the injector."""

    def __init__(self, folder: Path, injector_pid: int) -> None:
        key = key_of(injector_pid)
        assert key is not None, "the injector asks for itself"
        self._argv = [sys.executable, "-I", "-m", "brownout_agent.injector.main", "watch", "--state-dir", str(folder)]
        self._argv += ["--pid", str(key.pid), "--start-ticks", str(key.start_ticks)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The watchdog's; 0 before there is one."""
        return self._process.pid if self._process else 0

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the watchdog in a session of its own, so that no terminal or process group takes it along.

        Raises:
            OSError: the kernel makes no process now.
        """
        # Not by asyncio, whose transport would kill it when the injector ends.
        self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, start_new_session=True)
        return self._process

    def end(self) -> None:
        """Everything is clean and the injector ends in good order: there is nothing left to watch over."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def keep(self, process: "subprocess.Popen[bytes]") -> None:
        """Start it again whenever it dies, until cancelled."""
        while True:
            code = await asyncio.wrap_future(in_thread(process.wait))
            log.warning("the watchdog ended with %d; starting it again", code)
            await asyncio.sleep(_RESPAWN_AFTER_S)
            while True:
                try:
                    process = self.start()
                    break
                except OSError as error:  # a fault may well leave no memory for a process
                    log.error("the watchdog cannot be started: %s", error)
                    await asyncio.sleep(_RESPAWN_AFTER_S)
