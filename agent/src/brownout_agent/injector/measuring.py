"""Readings of one fault, each in a thread: an instrument may hang, and a fault's meter may be wrong."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial

from brownout_agent.faults.contract import Effect, Meter
from brownout_agent.injector.threads import in_thread

LAST_READING_WITHIN_S = 0.5
STALE_AFTER_S = 5.0
"""A judgement whose latest reading is older than this at the fault's end proves nothing."""

log = logging.getLogger(__name__)


class Readings:
    """All readings of one fault, one at a time. `effect` is the judgement so far; None before there is one."""

    def __init__(self, fault_id: str, make_meter: Callable[[], Meter]) -> None:
        self.effect: Effect | None = None
        self._fault_id = fault_id
        self._meter: Meter | None = None
        self._read_s = 0.0
        self._is_over = False
        self._lock = threading.Lock()
        self._latest = in_thread(partial(self._begin, make_meter))

    def take(self) -> "Future[None] | None":
        """Take one more reading; None while the one before has not come back."""
        if not self._latest.done():
            return None
        self._latest = in_thread(self._read)
        return self._latest

    def take_last(self) -> None:
        """Take the last reading, waiting LAST_READING_WITHIN_S at most; `effect` changes no more after it."""
        if self._is_over:
            return
        deadline_s = time.monotonic() + LAST_READING_WITHIN_S
        wait([self._latest], LAST_READING_WITHIN_S)
        if (last := self.take()) is not None:
            wait([last], max(0.0, deadline_s - time.monotonic()))
        with self._lock:
            self._is_over = True
            age_s = time.monotonic() - self._read_s
            if self.effect is not None and age_s > STALE_AFTER_S:
                doubt = f"{self.effect.explanation}; nothing could be read in its last {age_s:.0f} s"
                self.effect = replace(self.effect, proved=False, explanation=doubt)

    def _begin(self, make_meter: Callable[[], Meter]) -> None:
        try:
            self._meter = make_meter()
        except Exception:
            log.exception("%s cannot be measured", self._fault_id)

    def _read(self) -> None:
        if self._meter is None:
            return
        try:
            self._meter.sample()
            effect = self._meter.effect()
        except Exception:
            log.exception("%s: a reading failed", self._fault_id)
            return
        with self._lock:
            if not self._is_over:
                self.effect = effect
                self._read_s = time.monotonic()
