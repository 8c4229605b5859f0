"""What waits to be sent to the controller: one bounded queue that outlives a lost stream.

A stream is noticed to be broken only after a while, and what was written into it meanwhile is lost. So everything of
the last seconds is said again on the next stream; the controller knows each of them by its own stamp.

Orders' replies and faults' reports are never dropped; old probe samples are, oldest first, when a controller stays
away so long that the bound is reached. The controller sees the gap and never counts it as good.
"""

import asyncio
import time
from collections import deque

from brownout_protos.v1 import fleet_pb2

SAMPLE_MESSAGES_MAX = 2_000
SAID_AGAIN_S = 10.0
"""More than the transport needs to notice that a peer is gone (keepalive: 1 s and 1 s), on a busy host as well."""
_TRUE_ONCE = frozenset({"hello", "clock", "lease"})
"""Said of one moment of one stream: never said again."""


class Outbox:
    """A queue with one reader: the stream's only writer."""

    def __init__(self) -> None:
        self._urgent: deque[fleet_pb2.AgentMessage] = deque()
        self._samples: deque[fleet_pb2.AgentMessage] = deque(maxlen=SAMPLE_MESSAGES_MAX)
        self._taken: deque[tuple[float, fleet_pb2.AgentMessage]] = deque()
        self._filled = asyncio.Event()

    def put(self, message: fleet_pb2.AgentMessage) -> None:
        """Queue a message; what is about faults and clocks goes before samples."""
        (self._samples if _is_sample(message) else self._urgent).append(message)
        self._filled.set()

    async def take(self) -> fleet_pb2.AgentMessage:
        """The next message to send, waiting for one if need be."""
        while not self._urgent and not self._samples:
            self._filled.clear()
            await self._filled.wait()
        message = self._urgent.popleft() if self._urgent else self._samples.popleft()
        now_s = time.monotonic()
        self._taken.append((now_s, message))
        while self._taken[0][0] < now_s - SAID_AGAIN_S:
            self._taken.popleft()
        return message

    def rewind(self) -> None:
        """A new stream begins: queue again, in order, what the broken one may not have carried."""
        again = [message for _, message in self._taken if message.WhichOneof("body") not in _TRUE_ONCE]
        self._taken.clear()
        urgent = [message for message in (*again, *self._urgent) if not _is_sample(message)]
        self._urgent = deque(message for message in urgent if message.WhichOneof("body") != "clock")
        samples = [message for message in (*again, *self._samples) if _is_sample(message)]
        self._samples = deque(samples, maxlen=SAMPLE_MESSAGES_MAX)  # keeps the newest
        self._filled.set()


def _is_sample(message: fleet_pb2.AgentMessage) -> bool:
    """`observer_ended` is one: the end comes after the last sample."""
    return message.WhichOneof("body") in {"samples", "observer_ended"}
