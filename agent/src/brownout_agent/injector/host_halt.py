"""`brownout-injector halt`: everything on this host ends now, and whoever typed it sees that it did.

It needs no network, no agent and no living injector::

    latch         the STOP file, durable: from here on no order is taken, by this injector or the next
    ask           the injector that holds the journal; its answer comes after the kernel was seen clean
    take over     from one that is frozen, hangs or is dead: kill it, so that its holders die, and reap
"""

import asyncio
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from brownout_protos.v1 import fault_pb2, injector_pb2

from brownout_agent.frames import BadFrame, frame, read_frame
from brownout_agent.injector.journal import FINISHED, Entry, Journal, JournalError, JournalHeld, Mark, decode
from brownout_agent.injector.reaper import reap
from brownout_agent.injector.stop_file import StopFile
from brownout_agent.injector.undoing import UNDO_TIMEOUT_S
from brownout_agent.kernel.locks import flock_holder
from brownout_agent.kernel.processes import ProcessKey, key_of, read_stat, send_signal, wait_dead

HALT_WITHIN_S = 2 * UNDO_TIMEOUT_S
"""After this nobody is waited for any more: an undo that hangs has had its time, and one more was tried."""
RETRY_FOR_S = 8.0
"""After this what undo has left is told, and not tried again."""
BEGIN_WITHIN_S = 3.0
"""An injector that has not begun to undo by then is not at work."""
QUIET_FOR_S = 2.5
"""An injector whose socket is elsewhere has looked for the STOP file by then: it does once a second."""
_POLL_S = 0.05
_DEAD_WITHIN_S = 5.0
_BEGUN = frozenset({Mark.UNDOING, Mark.RESIDUE})


@dataclass(frozen=True, slots=True)
class HostHalt:
    """What became of every fault that was on, and what went wrong beside that."""

    ended: tuple[Entry, ...]
    left: dict[str, str]
    """Fault id -> what is known of it."""
    troubles: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether all is verified clean and stays so until somebody releases the host."""
        return not self.left and not self.troubles


def halt_host(stop_file: StopFile, state: Path, socket: Path, reason: str) -> HostHalt:
    """Latch, and end every fault that the journal in `state` knows; takes HALT_WITHIN_S at most, and a little."""
    troubles = []
    before = _unfinished(state)  # a living injector needs milliseconds from the latch to clean
    try:
        stop_file.pull(reason)
    except OSError as error:
        troubles.append(f"not latched, so new orders may come: {error}; next: stop brownout-injector")
    try:
        left = _Ending(state, socket, reason).carry_out()
    except JournalError as error:
        left = {entry.fault_id: str(error) for entry in _unfinished(state).values()}
        troubles.append(str(error))
    ended = tuple(entry for fault_id, entry in before.items() if fault_id not in left)
    return HostHalt(ended, left, tuple(troubles))


class _Ending:
    """One try after another, until nothing is left or time is up."""

    def __init__(self, state: Path, socket: Path, reason: str) -> None:
        self._state = state
        self._socket = socket
        self._reason = reason
        self._began_s = time.monotonic()
        self._busy_s = self._began_s
        """When something was last seen to be on."""

    def carry_out(self) -> dict[str, str]:
        """What is left, by fault id.

        Raises:
            JournalError: nobody can tell what was on.
        """
        left: dict[str, str] | None = None
        while left or left is None:
            if self._elapsed_s > (RETRY_FOR_S if left else HALT_WITHIN_S):
                return left or dict.fromkeys(_unfinished(self._state), "nobody has undone it yet")
            if not (self._state / "journal").exists():
                return {}  # whoever begins a fault has one
            try:
                journal = Journal(self._state)
            except JournalHeld:
                left = self._by_its_holder()
            else:
                left = _reap(journal)
            if left or left is None:
                time.sleep(_POLL_S)
        return left

    def _by_its_holder(self) -> dict[str, str] | None:
        """What is left once the process that holds the journal has done its work; None when that must be seen again."""
        pid = flock_holder(self._state / "lock")
        key = key_of(pid) if pid else None
        if key is None:
            return None
        if not _is_stopped(key):
            halted = asyncio.run(self._ask(key))
            if halted is not None:
                known = _unfinished(self._state)
                return {fault_id: _told(known.get(fault_id)) for fault_id in halted.remaining}
            if not _is_stopped(key) and not self._is_idle(key):
                return {} if self._is_quiet() else None
        send_signal(key, signal.SIGKILL)
        wait_dead([key], _DEAD_WITHIN_S)
        return None

    async def _ask(self, key: ProcessKey) -> fault_pb2.Halted | None:
        """Have the injector halt, as long as it is at work; None when it is not, or is no injector but a reaper."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            return None
        halt = fault_pb2.Halt(halt_id="host", reason=self._reason)
        writer.write(frame(injector_pb2.ToInjector(halt=halt)))
        answer = asyncio.create_task(read_frame(reader, injector_pb2.FromInjector))
        try:
            while not answer.done() and not _is_stopped(key) and not self._is_idle(key):
                await asyncio.wait({answer}, timeout=_POLL_S)
            message = answer.result() if answer.done() else None
            return message.halted if message is not None and message.HasField("halted") else None
        except (BadFrame, OSError):
            return None
        finally:
            answer.cancel()
            writer.close()

    def _is_idle(self, key: ProcessKey) -> bool:
        """Whether this process has had its time and does not end what is on."""
        if self._elapsed_s <= BEGIN_WITHIN_S or read_stat(key.pid) is None:
            return False
        begun = all(entry.mark in _BEGUN for entry in _unfinished(self._state).values())
        return not begun or self._elapsed_s > UNDO_TIMEOUT_S + BEGIN_WITHIN_S

    def _is_quiet(self) -> bool:
        """Whether nothing has been on for as long as a living injector needs to obey the STOP file by itself."""
        if _unfinished(self._state):
            self._busy_s = time.monotonic()
        return time.monotonic() - self._busy_s > QUIET_FOR_S

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_s


def _reap(journal: Journal) -> dict[str, str]:
    try:
        left = {fault_id: "; ".join(residue) for fault_id, residue in reap(journal).residue.items()}
        if journal.damaged:
            raise JournalError("the journal is damaged: what could be read of it is undone, and nobody knows of more")
        return left
    finally:
        journal.close()


def _unfinished(state: Path) -> dict[str, Entry]:
    """What the journal says now, whoever holds it."""
    try:
        entries = decode((state / "journal").read_bytes()).entries
    except OSError:
        return {}
    return {fault_id: entry for fault_id, entry in entries.items() if entry.mark not in FINISHED}


def _told(entry: Entry | None) -> str:
    return "; ".join(entry.residue) if entry is not None and entry.residue else "not verified gone"


def _is_stopped(key: ProcessKey) -> bool:
    stat = read_stat(key.pid)
    return stat is not None and stat.state in "Tt"
