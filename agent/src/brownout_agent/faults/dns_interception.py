"""What the holder of a DNS fault does with each packet that the rules hand over, and what it counts of it.

A query that is not meant goes on as it came, to where it was going: it costs the way through the queue. One that is
meant is answered (its packet is turned round, and the kernel delivers it to who asked), dropped, or let go later.
"""

import heapq
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from brownout_agent.faults.dns_message import Query, read_query, read_stream
from brownout_agent.faults.dns_rules import MARK
from brownout_agent.faults.dns_tcp import Takeovers
from brownout_agent.kernel.ip_packets import Datagram, Ends, Segment, read, write_datagram, write_segment
from brownout_agent.kernel.packet_queue import Packet, PacketQueue
from brownout_agent.kernel.tally import Tally

COUNTS = ("queries", "unread", "matched", "met", "held_us", "due_us")
"""Queries that came; port 53 packets with none that could be read; of the queries those that match; of these those
that were drawn and dealt with; and how long these were held in all by a delay, and how long they should have been. What
asks several things in one TCP segment is one query."""
HANDED_ON_S = 5.0
"""A local server that was asked asks on, and tries again for so long: those queries were met when it was asked."""
_REMEMBERED = 4_096
_NS_PER_MS, _NS_PER_US, _NS_PER_S = 1_000_000, 1_000, 1_000_000_000

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer it ourselves: `write` makes the answer to a query, for a datagram or for a TCP stream."""

    write: Callable[[Query, bool], bytes]


@dataclass(frozen=True, slots=True)
class Silence:
    """Drop it."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Let it go after `delay_ms`, give or take `jitter_ms` (uniform)."""

    delay_ms: float
    jitter_ms: float


Treatment = Answer | Silence | Delay


@dataclass(order=True, frozen=True, slots=True)
class _Held:
    """A packet that is let go when it is due."""

    due_ns: int
    number: int
    arrived_ns: int
    asked: tuple[Ends, int] | None = None
    """Of a segment: how it is known if TCP sends it again."""
    handed_on: tuple[tuple[str, int], ...] = ()


class Interception:
    """One fault's queries, as the Handler of its queue (network_hold.py). For one thread."""

    def __init__(
        self,
        queue: PacketQueue,
        means: Callable[[Query], bool],
        treatment: Treatment,
        *,
        percent: float = 100.0,
    ) -> None:
        self._queue = queue
        self._counts = Tally(COUNTS)
        self._means = means
        self._treatment = treatment
        self._percent = percent
        self._rng = random.Random()  # noqa: S311 - a share of queries, no secret
        self._takeovers = Takeovers()
        self._held: list[_Held] = []
        self._handed_on: OrderedDict[tuple[str, int], int] = OrderedDict()
        """Until when a name and type is not met again, since a local server was asked for it and now asks another."""
        self._decided: OrderedDict[tuple[Ends, int], bool] = OrderedDict()
        """Segments with queries, and whether they are met: TCP sends again what is not acknowledged."""

    @property
    def tally(self) -> int:
        """The descriptor of what it counts in."""
        return self._counts.descriptor

    def next_due_ns(self) -> int | None:
        """When the next packet that is held is due."""
        return self._held[0].due_ns if self._held else None

    def take(self, packet: Packet, now_ns: int) -> None:
        """A packet has come."""
        match read(packet.start):
            case Datagram() as datagram:
                self._meet_datagram(packet.number, datagram)
            case Segment() as segment if self._takeovers.has(segment):
                self._change(packet.number, self._takeovers.follow(segment))
            case Segment() as segment if segment.payload:
                self._meet_segment(packet.number, segment)
            case _:  # what opens and closes connections
                self._queue.accept([packet.number])

    def _meet_datagram(self, number: int, datagram: Datagram) -> None:
        query = read_query(datagram.payload)
        if query is None:
            self._counts.add("unread")
            self._queue.accept([number])
        elif not self._is_met([query], datagram.ends):
            self._queue.accept([number])
        elif isinstance(self._treatment, Answer):
            answer = Datagram(datagram.ends.reverse, self._treatment.write(query, True))
            self._queue.replace(number, write_datagram(answer), MARK)
            self._count_met()
        else:
            self._drop_or_hold(number, [query], datagram.ends)

    def _meet_segment(self, number: int, segment: Segment) -> None:
        asked = (segment.ends, segment.sequence)
        queries = read_stream(segment.payload)
        if queries is None:
            self._counts.add("unread")
            self._queue.accept([number])
        elif asked in self._decided:  # sent again; what is held of it comes anyway
            self._drop_or_accept(number, is_dropped=self._decided[asked])
        elif not self._is_met(queries, segment.ends):
            _remember(self._decided, asked, False)
            self._queue.accept([number])
        elif isinstance(self._treatment, Answer):
            answers = [self._treatment.write(query, False) for query in queries]
            stream = b"".join(len(answer).to_bytes(2) + answer for answer in answers)
            self._change(number, self._takeovers.begin(segment, stream))
            self._count_met()
        else:
            _remember(self._decided, asked, True)
            self._drop_or_hold(number, queries, segment.ends, asked)

    def _is_met(self, queries: list[Query], ends: Ends) -> bool:
        """Whether to deal with a packet that asks this. One that asks several things goes on unless all are meant."""
        self._counts.add("queries")
        if not all(self._means(query) for query in queries):
            return False
        now_ns = time.monotonic_ns()
        if not ends.stays_here and all(self._handed_on.get(_key(query), 0) > now_ns for query in queries):
            return False
        is_drawn = self._rng.random() * 100 < self._percent
        if not is_drawn:
            self._counts.add("matched")
            if ends.stays_here:
                self._hand_on(map(_key, queries), now_ns)
        return is_drawn

    def _count_met(self) -> None:
        """Both when it is done, so that whoever reads in between finds no query that was not met."""
        self._counts.add("matched")
        self._counts.add("met")

    def _drop_or_hold(
        self, number: int, queries: list[Query], ends: Ends, asked: tuple[Ends, int] | None = None
    ) -> None:
        if not isinstance(self._treatment, Delay):
            self._queue.drop(number)
            self._count_met()
            return
        jitter_ms = self._treatment.jitter_ms * self._rng.uniform(-1, 1)
        now_ns = time.monotonic_ns()
        due_ns = now_ns + round((self._treatment.delay_ms + jitter_ms) * _NS_PER_MS)
        handed_on = tuple(map(_key, queries)) if ends.stays_here else ()
        heapq.heappush(self._held, _Held(due_ns, number, now_ns, asked, handed_on))

    def let_go(self, now_ns: int) -> None:
        """Let those go that are due by now."""
        due = []
        while self._held and self._held[0].due_ns <= now_ns:
            due.append(heapq.heappop(self._held))
        if not due:
            return
        for held in due:  # before the queries of those who are asked by them
            self._hand_on(held.handed_on, now_ns)
            if held.asked is not None:
                _remember(self._decided, held.asked, False)
        self._queue.accept([held.number for held in due])
        gone_ns = time.monotonic_ns()
        for held in due:
            self._count_met()
            self._counts.add("held_us", (gone_ns - held.arrived_ns) // _NS_PER_US)
            self._counts.add("due_us", (held.due_ns - held.arrived_ns) // _NS_PER_US)

    def _hand_on(self, keys: Iterable[tuple[str, int]], now_ns: int) -> None:
        for key in keys:
            _remember(self._handed_on, key, now_ns + round(HANDED_ON_S * _NS_PER_S))

    def _drop_or_accept(self, number: int, *, is_dropped: bool) -> None:
        if is_dropped:
            self._queue.drop(number)
        else:
            self._queue.accept([number])

    def _change(self, number: int, segment: Segment | None) -> None:
        if segment is None:
            self._queue.drop(number)
        else:
            self._queue.replace(number, write_segment(segment), MARK)


def _key(query: Query) -> tuple[str, int]:
    return query.name, query.type


def _remember(memory: "OrderedDict[K, V]", key: K, value: V) -> None:
    """The latest ones only."""
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)
