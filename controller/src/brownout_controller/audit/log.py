"""The audit log of one program: entries from any thread, written by one, sealed in time.

What waits together is written together, in one transaction: so the rate does not hang on the disk's syncs. Whoever
records something waits until it is durable, or is told that it is not and must not go on. Stopping does not wait: its
entries stay here while the database is away, and are kept when it is back, with the time at which it happened.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from brownout_controller.audit import checkpoint as checkpoints
from brownout_controller.audit.checkpoint import SealingKey
from brownout_controller.audit.entry import AuditEntry
from brownout_controller.audit.folding import Folding
from brownout_controller.store.audit import AuditStore, Head
from brownout_controller.store.database import StoreError

SEAL_ROWS = 1_000
SEAL_NS = 600 * 10**9
LATE_MAX = 10_000
CLOSE_WITHIN_S = 35.0
"""As long as a database may be busy, and a little more."""
_BATCH_MAX = 500
_LOOK_EVERY_S = 1.0
_SEAL_LOOK_EVERY_S = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    entry: AuditEntry
    kept: "Future[None]"


class AuditLog:
    """The Auditor that keeps entries in the database's chain."""

    def __init__(self, store: AuditStore, key: SealingKey, export_to: Path | None = None) -> None:
        """Begin; `export_to` is a folder for copies of the checkpoints, which belongs on another machine."""
        self._store = store
        self._key = key
        self._export_to = export_to
        self._export_failed = False
        self._look_again_s = 0.0
        self._queue: queue.SimpleQueue[_Waiting | AuditEntry | None] = queue.SimpleQueue()
        self._late: list[AuditEntry] = []
        self._folding = Folding()
        self._ending = False
        self._trouble = ""
        self._writer = threading.Thread(target=self._write, name="audit", daemon=True)
        self._writer.start()

    def record(self, entry: AuditEntry) -> None:
        """Keep one entry durably; many of nobody in particular are counted and kept as one.

        Raises:
            StoreError: it could not be kept.
        """
        waiting = _Waiting(entry, Future())
        self._queue.put(waiting)
        while self._writer.is_alive():
            with suppress(TimeoutError):
                return waiting.kept.result(_LOOK_EVERY_S)
        if not waiting.kept.done():
            raise StoreError("the audit log is closed")
        return waiting.kept.result()

    def record_later(self, entry: AuditEntry) -> None:
        """Keep one entry as soon as can be; returns at once."""
        log.info("to be audited: %s", entry)  # the program's log has it even if the database never answers again
        happened = {"happened_ns": str(time.time_ns())}
        self._queue.put(replace(entry, detail={**entry.detail, **happened}))

    def close(self) -> None:
        """Write what waits, seal the chain, and end."""
        self._queue.put(None)
        self._writer.join(CLOSE_WITHIN_S)
        if self._writer.is_alive():
            log.error("the audit log does not end: the database has not answered for %g s", CLOSE_WITHIN_S)

    # ---- the one thread that writes ----------------------------------------------------------------------------------

    def _write(self) -> None:
        while not self._ending:
            self._keep(self._take())
            if not self._trouble and time.monotonic() >= self._look_again_s:
                self._seal_if_due()
        self._late += self._folding.over(all_of_them=True)
        self._keep([])
        for entry in self._late:
            log.error("not audited, since the database was away to the end: %s", entry)
        if not self._trouble:
            self._seal()

    def _take(self) -> list[_Waiting]:
        """Everything that waits now; the next thing that comes, when nothing does."""
        taken: list[_Waiting] = []
        try:
            one = self._queue.get(timeout=_LOOK_EVERY_S)
            while True:
                self._sort(one, taken)
                if len(taken) + len(self._late) >= _BATCH_MAX:
                    break
                one = self._queue.get_nowait()
        except queue.Empty:
            pass
        self._late += self._folding.over()
        return taken

    def _sort(self, one: _Waiting | AuditEntry | None, taken: list[_Waiting]) -> None:
        if one is None:
            self._ending = True
        elif isinstance(one, AuditEntry):
            if len(self._late) >= LATE_MAX:
                log.error("not audited, since %d entries wait already: %s", LATE_MAX, one)
            else:
                self._late.append(one)
        elif self._folding.is_repeat(one.entry):
            one.kept.set_result(None)
        else:
            taken.append(one)

    def _keep(self, waiting: list[_Waiting]) -> None:
        entries = [*self._late, *(one.entry for one in waiting)]
        if not entries:
            return
        try:
            head = self._store.append(entries)
        except Exception as error:  # noqa: BLE001 - whatever it was, whoever waits must hear that nothing is kept
            self._failed(error, waiting)
            return
        self._late.clear()
        if head.sequence - head.sealed_sequence >= SEAL_ROWS:
            self._look_again_s = 0.0
        if self._trouble:
            log.warning("the audit log can be written again; nothing of it is lost")
            self._trouble = ""
        for one in waiting:
            one.kept.set_result(None)

    def _failed(self, error: Exception, waiting: list[_Waiting]) -> None:
        if str(error) != self._trouble:
            self._trouble = str(error) or type(error).__name__
            log.error("the audit log cannot be written; stopping goes on without it, nothing else does: %s", error)
        refusal = error if isinstance(error, StoreError) else StoreError(f"the audit log cannot be written: {error}")
        for one in waiting:
            one.kept.set_exception(refusal)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def _seal_if_due(self) -> None:
        self._look_again_s = time.monotonic() + _SEAL_LOOK_EVERY_S
        try:
            due = self._is_due(self._store.head())
        except StoreError as error:
            log.warning("nobody can tell whether the audit log is to be sealed: %s", error)
            return
        if due:
            self._seal()
        elif self._export_failed:
            self._export()

    def _is_due(self, head: Head) -> bool:
        """Many entries, or old ones, have no checkpoint yet; the first one of a chain gets its own."""
        unsealed = head.sequence - head.sealed_sequence
        return unsealed > 0 and (unsealed >= SEAL_ROWS or self._store.now_ns() - head.sealed_ns >= SEAL_NS)

    def _seal(self) -> None:
        try:
            self._store.seal(self._key.sign)
            self._export()
        except StoreError as error:
            log.error("the audit log could not be sealed, and will be later: %s", error)

    def _export(self) -> None:
        """Write the checkpoints that the folder does not have yet, other controllers' as well."""
        if self._export_to is None:
            return
        try:
            self._export_to.mkdir(mode=0o700, parents=True, exist_ok=True)
            for one in self._store.checkpoints(checkpoints.newest_exported(self._export_to)):
                checkpoints.export(one, self._export_to)
        except OSError as error:
            log.error("checkpoints of the audit log cannot be written to %s: %s", self._export_to, error)
            self._export_failed = True
        except StoreError as error:
            log.warning("checkpoints cannot be read: %s", error)
            self._export_failed = True
        else:
            self._export_failed = False


@contextmanager
def audit_log(store: AuditStore, key_folder: Path, export_to: Path | None = None) -> Iterator[AuditLog]:
    """An audit log, closed and sealed at the end.

    Raises:
        CheckpointError: the key that signs checkpoints is open to others, or damaged.
        OSError: it cannot be made.
    """
    kept = AuditLog(store, SealingKey(key_folder), export_to)
    try:
        yield kept
    finally:
        kept.close()
