"""Keeping a run while it goes on. A store that fails in mid-run costs the record, never the run."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from brownout_controller.analysis.verdict import judge
from brownout_controller.record import Event, RunRecord
from brownout_controller.reporting.document import to_document
from brownout_controller.store.database import StoreError
from brownout_controller.store.store import RunTaken, Store

KEEP_EVERY_S = 1.0
DRAFT_EVERY_S = 10.0
DRAFT_SHARE = 0.02
"""Of the time: a long run's record takes long to keep, and is kept more rarely."""


class RunKeeper:
    """Puts a run's events into the store about once a second, off the event loop, and its record at the end."""

    def __init__(self, store: Store, number: int, controller_id: str | None = None) -> None:
        self.number = number
        self.trouble = ""
        """Why what was to be kept last is not kept; empty when all is."""
        self._store = store
        self._controller_id = controller_id
        self._kept = 0
        self._fresh: list[Event] = []
        self._lock = threading.Lock()

    def take(self, event: Event) -> None:
        """An event happened."""
        self._fresh.append(event)

    async def keep(self, record: Callable[[], RunRecord]) -> None:
        """Keep on until cancelled: events about once a second, and now and then the record as it stands.

        Raises:
            RunTaken: this run is not ours any more.
        """
        draft_s = 0.0
        while True:
            begun_s = time.monotonic()
            await asyncio.to_thread(self.flush)
            if begun_s >= draft_s and self._controller_id is not None:
                await asyncio.to_thread(self._keep_draft, record(), self._controller_id)
                took_s = time.monotonic() - begun_s
                draft_s = begun_s + max(DRAFT_EVERY_S, took_s / DRAFT_SHARE)
            await asyncio.sleep(KEEP_EVERY_S)

    def _keep_draft(self, record: RunRecord, controller_id: str) -> None:
        try:
            self._store.keep_draft(self.number, to_document(record, judge(record)), controller_id)
        except RunTaken:
            raise
        except StoreError as error:
            self.trouble = str(error)

    def flush(self) -> None:
        """Keep what is not kept yet; what cannot be kept now is tried again.

        Raises:
            RunTaken: this run is not ours any more.
        """
        with self._lock:  # the last call of `keep` may still be at work
            batch = list(self._fresh)
            try:
                self._store.append_events(self.number, self._kept, batch, self._controller_id)
            except RunTaken:
                raise
            except StoreError as error:
                self.trouble = str(error)
                return
            self.trouble = ""
            self._kept += len(batch)
            del self._fresh[: len(batch)]

    def finish(self, document: dict[str, Any], verdict: str, exit_code: int, headline: str) -> None:
        """Close the run; `trouble` says afterwards whether that is kept."""
        try:
            self.flush()
            self._store.finish_run(self.number, document, verdict, exit_code, headline, self._controller_id)
        except StoreError as error:
            self.trouble = str(error)
