"""Hold packets of a queue until they are due: the holder's own loop, and what it does when it is asked to end."""

import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from brownout_agent.faults.network_delays import Line, flow_of
from brownout_agent.faults.network_tally import HeldTally
from brownout_agent.kernel.packet_queue import PacketQueue

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


def hold_until(end: socket.socket, queue: PacketQueue, line: Line, tally: HeldTally) -> None:
    """Hold what comes until it is due, until `end` becomes readable. What waits then is left in the queue.

    Raises:
        OSError: the kernel takes no verdict.
    """
    while True:
        ready, _, _ = select.select([queue.fileno(), end.fileno()], [], [], wait_s(line.next_due_ns()))
        if end.fileno() in ready:
            return
        if queue.fileno() in ready:
            _take(queue, line, tally)
        _let_go(queue, line, tally)


def drain(queue: PacketQueue) -> None:
    """Let all that wait go at once, so that none of them is lost. No more are being handed over."""
    queue.accept_all()
    deadline_s = time.monotonic() + _DRAIN_WITHIN_S
    while select.select([queue], [], [], _QUIET_S)[0] and time.monotonic() < deadline_s:
        while queue.receive() is not None:
            queue.accept_all()  # that one too: it was between the rule and the queue when the rule changed


def wait_s(due_ns: int | None) -> float:
    """How long to wait at most until it is worth a look at what is due then, by CLOCK_MONOTONIC."""
    if due_ns is None:
        return _IDLE_S
    left_s = (due_ns - time.monotonic_ns()) / 1e9
    return max(left_s * _EARLY if left_s > _NEAR_S else left_s, 0.0)


def _take(queue: PacketQueue, line: Line, tally: HeldTally) -> None:
    for _ in range(_BATCH):
        packet = queue.receive()
        if packet is None:
            return
        line.take(packet.number, flow_of(packet.start), time.monotonic_ns())
        tally.note_received()


def _let_go(queue: PacketQueue, line: Line, tally: HeldTally) -> None:
    due = line.take_due(time.monotonic_ns())
    if not due:
        return
    if line.is_fifo:
        queue.accept_up_to(due[-1].number)
    else:
        queue.accept(waiting.number for waiting in due)
    now_ns = time.monotonic_ns()
    for waiting in due:
        tally.note_released(now_ns - waiting.since_ns)
