"""The reaper: undoes what a dead injector left behind, from the journal alone.

It runs at every start of the injector, by `brownout-injector reap` (systemd: ExecStopPost, timer, boot), and in the
watchdog, a process of its own session that waits for the injector to die.
"""

import asyncio
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from brownout_agent.injector.journal import Journal, JournalError, Mark
from brownout_agent.injector.lifecycle import Cause
from brownout_agent.injector.undoing import undo_entry
from brownout_agent.kernel.processes import ProcessKey, key_of, wait_dead

log = logging.getLogger(__name__)

TRIES = 3
RETRY_AFTER_S = 2.0
_RESPAWN_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Reaped:
    """What one pass found: ids that are clean now, and what is left of the others."""

    clean: tuple[str, ...]
    residue: dict[str, tuple[str, ...]]


def reap(journal: Journal) -> Reaped:
    """Undo and verify every unfinished entry; each is marked clean only when the kernel was seen clean."""
    clean = []
    left: dict[str, tuple[str, ...]] = {}
    for entry in journal.unfinished:
        residue = tuple(undo_entry(entry))
        mark = Mark.RESIDUE if residue else Mark.CLEAN
        try:
            journal.mark(entry.fault_id, mark, cause=entry.cause or Cause.REAPED, residue=residue)
        except JournalError as error:
            log.error("%s: undone, but not marked: %s", entry.fault_id, error)
        if residue:
            left[entry.fault_id] = residue
        else:
            clean.append(entry.fault_id)
    return Reaped(tuple(clean), left)


def watch(folder: Path, injector: ProcessKey) -> int:
    """Wait for the injector's death, then reap. Returns an exit code: 0 when all is clean.

    An injector that was started again meanwhile holds the journal and has reaped by itself.
    """
    while wait_dead([injector], timeout_s=3600):
        continue
    for attempt in range(TRIES):
        try:
            journal = Journal(folder)
        except JournalError as error:
            log.info("left to another: %s", error)
            return 0
        reaped = reap(journal)
        journal.close()
        log.info("clean: %s, left: %s", list(reaped.clean), reaped.residue)
        if not reaped.residue:
            return 0
        if attempt + 1 < TRIES:
            time.sleep(RETRY_AFTER_S)
    return 1


class Watchdog:
    """Keeps one watchdog process alive beside the injector."""

    def __init__(self, folder: Path, injector_pid: int) -> None:
        key = key_of(injector_pid)
        assert key is not None, "the injector asks for itself"
        self._argv = [sys.executable, "-I", "-m", "brownout_agent.injector.main", "watch", "--state-dir", str(folder)]
        self._argv += ["--pid", str(key.pid), "--start-ticks", str(key.start_ticks)]
        self.pid = 0

    async def start(self) -> asyncio.subprocess.Process:
        """Start the watchdog in a session of its own, so that no terminal or process group takes it along."""
        process = await asyncio.create_subprocess_exec(
            *self._argv, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        self.pid = process.pid
        return process

    async def keep(self, process: asyncio.subprocess.Process) -> None:
        """Start it again whenever it dies, until cancelled."""
        while True:
            code = await process.wait()
            log.warning("the watchdog ended with %d; starting it again", code)
            await asyncio.sleep(_RESPAWN_AFTER_S)
            process = await self.start()
