"""Connections that came to nothing.

gRPC turns a wrong certificate away inside the TLS handshake and tells nobody: no address, no reason, no hook. What it
does ask, at each handshake, is which certificate to show. So handshakes are counted there and sessions where they
begin, and the difference is what was turned away (or said nothing). Addresses stand in gRPC's own log only.
"""

import threading
import time
from collections import deque

from brownout_controller.fleet.limits import HANDSHAKE_MS

OVERDUE_S = HANDSHAKE_MS / 1_000 + 1.0
"""No honest agent needs longer from its connection to its session."""


class Knocks:
    """Handshakes that no session has followed yet. gRPC's threads begin them."""

    def __init__(self) -> None:
        self._begun_s: deque[float] = deque()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A handshake begins."""
        with self._lock:
            self._begun_s.append(time.monotonic())

    def answer(self) -> None:
        """A call came through: its handshake went well."""
        with self._lock:
            if self._begun_s:
                self._begun_s.pop()

    def overdue(self) -> int:
        """How many came to nothing since the last time this was asked."""
        count = 0
        with self._lock:
            while self._begun_s and self._begun_s[0] < time.monotonic() - OVERDUE_S:
                self._begun_s.popleft()
                count += 1
        return count
