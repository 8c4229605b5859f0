"""How fast one agent is read: a token bucket. Who says more waits; HTTP/2's flow control holds it back at its end."""

import asyncio
import time


class Allowance:
    """So many messages at once, and so many a second after that."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._filled_s = time.monotonic()

    async def take(self) -> None:
        """Wait until one more may be taken."""
        now_s = time.monotonic()
        self._left = min(self._burst, self._left + (now_s - self._filled_s) * self._per_s)
        self._filled_s = now_s
        self._left -= 1
        if self._left < 0:
            await asyncio.sleep(-self._left / self._per_s)
