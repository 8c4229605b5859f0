"""What waits to be sent to the controller: one bounded queue that outlives a lost stream.

Orders' replies and faults' reports are never dropped; old probe samples are, oldest first, when a controller stays
away so long that the bound is reached. The controller sees the gap and never counts it as good.
"""

import asyncio
from collections import deque

from brownout_protos.v1 import fleet_pb2

SAMPLE_MESSAGES_MAX = 2_000


class Outbox:
    """A queue with one reader: the stream's only writer."""

    def __init__(self) -> None:
        self._urgent: deque[fleet_pb2.AgentMessage] = deque()
        self._samples: deque[fleet_pb2.AgentMessage] = deque(maxlen=SAMPLE_MESSAGES_MAX)
        self._filled = asyncio.Event()

    def put(self, message: fleet_pb2.AgentMessage) -> None:
        """Queue a message; what is about faults and clocks goes before samples."""
        is_sample = message.WhichOneof("body") in {"samples", "observer_ended"}  # the end comes after the last sample
        (self._samples if is_sample else self._urgent).append(message)
        self._filled.set()

    async def take(self) -> fleet_pb2.AgentMessage:
        """The next message to send, waiting for one if need be."""
        while not self._urgent and not self._samples:
            self._filled.clear()
            await self._filled.wait()
        return self._urgent.popleft() if self._urgent else self._samples.popleft()

    def put_back(self, message: fleet_pb2.AgentMessage) -> None:
        """Return what a broken stream may not have carried; everything here may be said twice."""
        self._urgent.appendleft(message)
        self._filled.set()
