"""`network.rate`: packets get through at a rate at most, as over a slow line or a full one.

Each direction is a link of its own with this rate, in bits of IP packets (tc counts the 14 bytes of an Ethernet header
too). A packet that comes while the link is busy waits for its turn, in the order of arrival, and one that would wait
for longer than `queue` is dropped, as by the queue of a router: TCP slows down by that, and who sends datagrams without
asking loses them. After a pause, what the link carries in 10 ms passes at once: this is a token bucket (tc-tbf(8)) of
that depth.

**Limits.** Up to 100mbit; beyond PACKETS_PER_S packets a second in each direction packets are dropped as well, and a
sender of this host is told then. Packets that leave and wait count against their sender's socket (TCP small queues), as
they do in a queueing discipline. One that finds the queue full is lost on its way, where tbf would tell TCP of this
host at once: a connection that begins takes longer to find its speed. What carries this, what else it is limited to and
what happens when the holder dies: network_queue.py.

**What is measured** is how fast packets got through while others waited. Where nobody had to wait the fault has changed
nothing, and is not proved.
"""

import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

from pydantic import Field

from brownout_agent.faults.contract import BitRate, DurationMs, Effect, Host, Meter, Record
from brownout_agent.faults.network_queue import RECEIVED, QueueFault, QueueMeter, judge_passed
from brownout_agent.faults.network_rules import directions
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.kernel.ip_packets import LENGTH_WITHIN_BYTES, length_of
from brownout_agent.kernel.packet_queue import Packet, PacketQueue
from brownout_agent.kernel.tally import Tally

_LEAST_BPS, _MOST_BPS = 1_000, 100_000_000
_LONGEST_MS = 30_000
_CREDIT_NS = 10_000_000
_NS_PER_S, _NS_PER_MS, _BITS_PER_MBIT = 1_000_000_000, 1_000_000, 1_000_000
_WAYS = ("ingress", "egress")
_DROPPED, _BITS, _BUSY_NS = "dropped", "bits", "busy_ns"
_NAMES = (RECEIVED, _DROPPED, *(f"{way}_{name}" for way in _WAYS for name in (_BITS, _BUSY_NS)))
_BUSY_S_MIN = 0.5
"""A link that was busy for less says nothing of its rate."""
_TOLERANCE = 0.03


class RateParameters(NetworkParameters):
    """How fast packets get through."""

    rate: Annotated[
        BitRate,
        Field(ge=_LEAST_BPS, le=_MOST_BPS, description="at most so many bits a second in each direction, like 10mbit"),
    ]
    queue: Annotated[
        DurationMs, Field(ge=1, le=_LONGEST_MS, description="for how long a packet waits at most; else it is dropped")
    ] = 200.0


class Waiting(NamedTuple):
    """A packet that waits for its turn to be over. `follows`: the link was busy ever since the one before it."""

    number: int
    bits: int
    due_ns: int
    follows: bool


class Link:
    """One direction of a line with a rate. Times are of one monotonic clock. No I/O."""

    def __init__(self, rate_bps: float, queue_ns: int, note: Callable[[str, int], None]) -> None:
        """`note` is told of the bits that went through while others waited, and of how long that took."""
        self._rate_bps = rate_bps
        self._queue_ns = queue_ns
        self._note = note
        self._waiting: deque[Waiting] = deque()
        self._free_ns = 0
        """When all that was taken is through."""
        self._is_busy = False
        self._gone_ns = 0

    def take(self, number: int, size_bytes: int, now_ns: int) -> bool:
        """A packet has come; whether there is room. It is due at the end of its turn, which may have been already."""
        begins_ns = max(self._free_ns, now_ns - _CREDIT_NS)
        if begins_ns - now_ns > self._queue_ns:
            return False
        bits = size_bytes * 8
        due_ns = begins_ns + round(bits * _NS_PER_S / self._rate_bps)
        follows = self._is_busy and begins_ns == self._free_ns
        self._free_ns, self._is_busy = due_ns, due_ns > now_ns
        self._waiting.append(Waiting(number, bits, due_ns, follows and self._is_busy))
        return True

    def take_due(self, now_ns: int) -> list[int]:
        """The numbers of those that are due; they wait no more."""
        due = []
        while self._waiting and self._waiting[0].due_ns <= now_ns:
            waiting = self._waiting.popleft()
            due.append(waiting.number)
            if waiting.follows:
                self._note(_BITS, waiting.bits)
                self._note(_BUSY_NS, now_ns - self._gone_ns)
            self._gone_ns = now_ns
        return due

    def next_due_ns(self) -> int | None:
        """When the next one is due; None when none waits."""
        return self._waiting[0].due_ns if self._waiting else None


class NetworkRate(QueueFault[RateParameters]):
    """Lets packets wait for their turn."""

    kind = "network.rate"
    summary = "Let traffic to and from peers, ports or everyone through at a rate at most, with a bounded queue."
    Parameters = RateParameters
    is_whole = False
    beyond = "drop"

    def handler(self, parameters: RateParameters, queue: PacketQueue, rng: random.Random) -> "_Shaping":
        return _Shaping(parameters, queue)

    def longest_ms(self, parameters: RateParameters) -> float:
        return parameters.queue

    def start_bytes(self, parameters: RateParameters) -> int:
        return LENGTH_WITHIN_BYTES

    def measure(self, record: Record[RateParameters], host: Host) -> Meter:
        return _RateMeter(record)


class _Shaping:
    """Lets packets of each direction go when they are through."""

    def __init__(self, parameters: RateParameters, queue: PacketQueue) -> None:
        self._queue = queue
        self._counts = Tally(_NAMES)
        self._links = {way: self._link(way, parameters) for way in _WAYS}
        self.tally = self._counts.descriptor

    def take(self, packet: Packet, now_ns: int) -> None:
        self._counts.add(RECEIVED)
        link = self._links["egress" if packet.leaves else "ingress"]
        if not link.take(packet.number, length_of(packet.start), now_ns):
            self._queue.drop(packet.number)
            self._counts.add(_DROPPED)

    def let_go(self, now_ns: int) -> None:
        for link in self._links.values():
            self._queue.accept(link.take_due(now_ns))

    def next_due_ns(self) -> int | None:
        due_ns = [due_ns for link in self._links.values() if (due_ns := link.next_due_ns()) is not None]
        return min(due_ns, default=None)

    def _link(self, way: str, parameters: RateParameters) -> Link:
        def note(name: str, count: int) -> None:
            self._counts.add(f"{way}_{name}", count)

        return Link(parameters.rate, round(parameters.queue * _NS_PER_MS), note)


class _RateMeter(QueueMeter):
    """How fast the holder says that packets got through, by its clock."""

    def __init__(self, record: Record[RateParameters]) -> None:
        super().__init__(record, _NAMES)
        self._rate_bps = record.parameters.rate

    def judged(self) -> Effect:
        noted = {**self.noted, _DROPPED: self.noted[_DROPPED] + self.excess}
        return judge_passed(judge_rate(self._rate_bps, self.scope, self.seen, noted), self.seen, self.unheld)


def judge_rate(rate_bps: float, scope: Scope, seen: int, noted: Mapping[str, int]) -> Effect:
    """Proved when every direction that was busy for long enough carried what was asked while it was. Pure."""
    asked, unit = rate_bps / _BITS_PER_MBIT, "Mbit/s"
    if not seen:
        return Effect(asked, None, unit, False, f"no packet matched: nobody talked to {scope.text} during the fault")
    busy_s = {way: noted[f"{way}_{_BUSY_NS}"] / _NS_PER_S for way in directions(scope)}
    carried = {
        way: noted[f"{way}_{_BITS}"] / _BITS_PER_MBIT / seconds
        for way, seconds in busy_s.items()
        if seconds >= _BUSY_S_MIN
    }
    if not carried:
        longest_s = max(busy_s.values())
        why = f"of {seen} packets ({scope.text}) hardly any had to wait: the link was busy for {longest_s:.2g} s"
        return Effect(asked, None, unit, False, why)
    each = " and ".join(f"{carried[way]:.4g} Mbit/s {way} in {busy_s[way]:.3g} s" for way in carried)
    why = f"while packets ({scope.text}) waited, the holder let {each} through by its clock"
    why += f"; {noted[_DROPPED]} of {seen} found the queue full"
    farthest = max(carried.values(), key=lambda rate: abs(rate - asked))
    return Effect(asked, farthest, unit, abs(farthest - asked) <= _TOLERANCE * asked, why)
