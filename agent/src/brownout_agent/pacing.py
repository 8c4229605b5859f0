"""Due times on an absolute schedule: a late loop skips and says so, it never drifts and never bursts."""

import asyncio
from collections.abc import AsyncIterator


async def due_times(every_s: float) -> AsyncIterator[int]:
    """Wake at start, start + `every_s`, start + 2 * `every_s` ... and yield how many due times were skipped before.

    The schedule is fixed at the first due time, so lateness never adds up. When the loop or the body is late by a
    whole interval or more, the due times that went by are skipped: each is used at most once.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    due = 0
    while True:
        await asyncio.sleep(start + due * every_s - loop.time())
        latest = max(due, int((loop.time() - start) / every_s))
        yield latest - due
        due = latest + 1
