"""Deal with packets of a queue as they come and are due: the holder's own loop, and what it does when asked to end."""

import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from brownout_agent.kernel.packet_queue import Packet, PacketQueue

_BATCH = 256
"""So many packets are read at most before those that are due are let go."""
_IDLE_S = 60.0
_NEAR_S = 0.002
_EARLY = 0.98
"""The kernel ends a wait late by up to half a percent of its length (select(2)): the last part is waited for anew."""
_QUIET_S = 0.005
_DRAIN_WITHIN_S = 0.1


@contextmanager
def asked_to_end() -> Iterator[socket.socket]:
    """A socket that becomes readable when this process gets SIGTERM, which then does nothing else. Main thread only."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    with heard, told:
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)
        signal.set_wakeup_fd(told.fileno())
        try:
            yield heard
        finally:
            signal.set_wakeup_fd(-1)


class Handler(Protocol):
    """What is done with the packets of one queue. Times are of CLOCK_MONOTONIC."""

    @property
    def tally(self) -> int:
        """The descriptor of what it counts in (kernel/tally.py)."""

    def take(self, packet: Packet, now_ns: int) -> None:
        """A packet has come."""

    def let_go(self, now_ns: int) -> None:
        """Let those go that are due by now. Called after packets have come, and when one is due."""

    def next_due_ns(self) -> int | None:
        """When the next one is due; None when none waits."""


def hold_until(end: socket.socket, queue: PacketQueue, handler: Handler) -> None:
    """Have what comes dealt with, until `end` becomes readable. What waits then is left in the queue.

    Raises:
        OSError: the kernel takes no verdict.
    """
    while True:
        ready, _, _ = select.select([queue.fileno(), end.fileno()], [], [], _wait_s(handler.next_due_ns()))
        if end.fileno() in ready:
            return
        if queue.fileno() in ready:
            for _ in range(_BATCH):
                packet = queue.receive()
                if packet is None:
                    break
                handler.take(packet, time.monotonic_ns())
        handler.let_go(time.monotonic_ns())


def drain(queue: PacketQueue) -> None:
    """Let all that wait go at once, so that none of them is lost. No more are being handed over."""
    queue.accept_all()
    deadline_s = time.monotonic() + _DRAIN_WITHIN_S
    while select.select([queue], [], [], _QUIET_S)[0] and time.monotonic() < deadline_s:
        while queue.receive() is not None:
            queue.accept_all()  # that one too: it was between the rule and the queue when the rule changed


def _wait_s(due_ns: int | None) -> float:
    """How long to wait at most until it is worth a look at what is due then, by CLOCK_MONOTONIC."""
    if due_ns is None:
        return _IDLE_S
    left_s = (due_ns - time.monotonic_ns()) / 1e9
    return max(left_s * _EARLY if left_s > _NEAR_S else left_s, 0.0)
