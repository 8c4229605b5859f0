"""Keeping a run while it goes on. A store that fails in mid-run costs the record, never the run."""

import asyncio
import threading
from typing import Any

from brownout_controller.record import Event
from brownout_controller.store.database import StoreError
from brownout_controller.store.store import Store

KEEP_EVERY_S = 1.0


class RunKeeper:
    """Puts a run's events into the store about once a second, off the event loop, and its record at the end."""

    def __init__(self, store: Store, number: int) -> None:
        self.number = number
        self.trouble = ""
        """Why what was to be kept last is not kept; empty when all is."""
        self._store = store
        self._kept = 0
        self._fresh: list[Event] = []
        self._lock = threading.Lock()

    def take(self, event: Event) -> None:
        """An event happened."""
        self._fresh.append(event)

    async def keep(self) -> None:
        """Keep on until cancelled."""
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        """Keep what is not kept yet; what cannot be kept now is tried again."""
        with self._lock:  # the last call of `keep` may still be at work
            batch = list(self._fresh)
            try:
                self._store.append_events(self.number, self._kept, batch)
            except StoreError as error:
                self.trouble = str(error)
                return
            self.trouble = ""
            self._kept += len(batch)
            del self._fresh[: len(batch)]

    def finish(self, document: dict[str, Any], verdict: str, exit_code: int, headline: str) -> None:
        """Close the run; `trouble` says afterwards whether that is kept."""
        self.flush()
        try:
            self._store.finish_run(self.number, document, verdict, exit_code, headline)
        except StoreError as error:
            self.trouble = str(error)
