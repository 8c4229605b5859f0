"""Running a probe at a steady pace and handing its samples on in batches. Agent and controller both use it."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from brownout_agent.dialing import NotAskedError
from brownout_agent.observe import Probe, Sample
from brownout_agent.pacing import Pace

FASTEST_MS = 50
"""20 questions a second."""
MOST_WAITING = 1_024
"""Questions asked but not yet delivered. Beyond it a due time is missed: neither sockets nor memory grow further."""
GRACE_S = 0.25
"""How long the questions in flight may still take when observing ends."""

Deliver = Callable[[list[Sample], int], Awaitable[None]]
"""Takes samples in order of sending, and how many due times were missed since the last call."""

_log = logging.getLogger(__name__)


async def observe(probe: Probe, every_ms: float, deliver: Deliver, batch_s: float = 1.0) -> None:
    """Ask every `every_ms` and deliver about every `batch_s`, until cancelled; then deliver what there still is.

    Questions overlap where one outlasts the interval. A due time at which nothing could be asked, and a question that
    the end cut off, is *missed*: it is told to `deliver` and is never a sample.

    Raises:
        ValueError: `every_ms` is below 50 or not finite, or the probe cannot work on this host.
        Exception: whatever `deliver` raises; what was not delivered by then is lost.
    """
    if not FASTEST_MS <= every_ms < float("inf"):
        raise ValueError(f"a probe asks every {FASTEST_MS}ms at the fastest, not every {every_ms:g}ms")
    questions = _Questions(probe)
    ending = asyncio.Event()
    pacing = asyncio.create_task(_pace(questions, every_ms / 1_000))
    delivering = asyncio.create_task(_deliver_batches(questions, deliver, batch_s, ending))
    try:
        # Both go on for ever: when one ends here, it has failed.
        await asyncio.wait((pacing, delivering), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        pacing.cancel()
        await questions.settle(GRACE_S)
        ending.set()  # rather than cancel: a batch that is being delivered is not lost half-way
        await delivering
        raise
    finally:
        pacing.cancel()
        delivering.cancel()
        await asyncio.gather(pacing, delivering, questions.settle(0), return_exceptions=True)
    for task in (pacing, delivering):
        if not task.cancelled():
            task.result()


class _Questions:
    """What was asked and is not yet delivered, in order of asking."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._waiting: deque[asyncio.Task[Sample]] = deque()
        self._missed = 0

    def ask(self) -> None:
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(asyncio.create_task(self._probe.ask()))
        else:
            self.miss(1)

    def miss(self, count: int) -> None:
        self._missed += count

    def take(self) -> tuple[list[Sample], int]:
        """What is finished, up to the first question that is not, and the misses since the last call."""
        samples = []
        trouble = ""
        while self._waiting and self._waiting[0].done():
            question = self._waiting.popleft()
            try:
                samples.append(question.result())
            except asyncio.CancelledError:  # cut off by settle()
                self.miss(1)
            except NotAskedError as error:
                self.miss(1)
                trouble = str(error)
        if trouble:
            _log.warning("a %s probe could not ask from this host: %s", self._probe.kind, trouble)
        missed, self._missed = self._missed, 0
        return samples, missed

    async def settle(self, grace_s: float) -> None:
        """Wait for the questions in flight, for `grace_s` at most, then cut them off."""
        if self._waiting:
            _, late = await asyncio.wait(self._waiting, timeout=grace_s)
            for question in late:
                question.cancel()
            await asyncio.gather(*self._waiting, return_exceptions=True)


async def _pace(questions: _Questions, every_s: float) -> None:
    pace = Pace(every_s)
    while True:
        questions.miss(await pace.next_due())
        questions.ask()


async def _deliver_batches(questions: _Questions, deliver: Deliver, batch_s: float, ending: asyncio.Event) -> None:
    last = False
    while not last:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(batch_s):
                await ending.wait()
        last = ending.is_set()  # before taking, so that nothing slips in between
        samples, missed = questions.take()
        if samples or missed:
            await deliver(samples, missed)
