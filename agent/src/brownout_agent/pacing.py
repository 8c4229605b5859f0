"""Due times on an absolute schedule: a late loop skips and says so; it never drifts and never bursts."""

import asyncio


class Pace:
    """Due times at start, start + `every_s`, start + 2 * `every_s` ..., where start is the first call of `next_due`."""

    def __init__(self, every_s: float) -> None:
        """Raises ValueError for an interval that is not above 0, or not finite."""
        if not 0 < every_s < float("inf"):
            raise ValueError(f"every {every_s:g} s is no interval")
        self._every_s = every_s
        self._start_s: float | None = None
        self._due = 0

    async def next_due(self) -> int:
        """Wait for the next due time; return how many were skipped before it because the caller or the loop was late.

        Each due time is used at most once, and lateness never adds up. Being late by less than a whole interval
        skips nothing.
        """
        loop = asyncio.get_running_loop()
        if self._start_s is None:
            self._start_s = loop.time()
        await asyncio.sleep(self._start_s + self._due * self._every_s - loop.time())
        latest = max(self._due, int((loop.time() - self._start_s) / self._every_s))
        skipped = latest - self._due
        self._due = latest + 1
        return skipped
