"""`network.reorder`: some packets are overtaken by later ones, as where a route changes or several links share a load.

`percent` of the packets, each by its own draw, are held back for `delay`; the others pass at once. So a packet that is
held is overtaken by those of its flow (addresses, protocol, ports) that come within `delay`: it is reordered, as RFC
4737 has it. netem says the same the other way round: its `delay 10ms reorder 75%` lets 75 % pass and holds the rest.
`gap` keeps its meaning: of each so many packets one is drawn for at most. After one that was held, `gap` - 1 pass.

Where packets follow each other more slowly than `delay`, as in most questions and answers over TCP, who is held is late
and overtaken by nobody. That is counted, and the fault is not proved then: choose a longer `delay`. A packet that
leaves and is held counts against its sender's socket (TCP small queues), so that TCP sends little behind it: bulk data
is put out of order best where it arrives, by `direction: ingress`.

What carries this, what it is limited to and what happens when the holder dies: network_queue.py.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from brownout_agent.faults.contract import DurationMs, Effect, Host, Meter, Percent, Record
from brownout_agent.faults.network_queue import RECEIVED, QueueFault, QueueMeter, judge_passed
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_share import judge_share
from brownout_agent.kernel.ip_packets import FLOW_WITHIN_BYTES, flow_of
from brownout_agent.kernel.packet_queue import Packet, PacketQueue
from brownout_agent.kernel.tally import Tally

_LONGEST_MS = 30_000
_NS_PER_MS, _NS_PER_US, _US_PER_MS = 1_000_000, 1_000, 1_000
_DRAWN, _HELD, _OVERTAKEN, _RELEASED, _HELD_US = "drawn", "held", "overtaken", "released", "held_us"
_NAMES = (RECEIVED, _DRAWN, _HELD, _OVERTAKEN, _RELEASED, _HELD_US)
_OVERTAKEN_MIN = 0.5
"""Where fewer of those that were held were overtaken, packets were late rather than out of order."""


class ReorderParameters(NetworkParameters):
    """How many of which packets are overtaken."""

    percent: Annotated[Percent, Field(description="share of packets that are held back; the others overtake them")]
    delay: Annotated[
        DurationMs,
        Field(gt=0, le=_LONGEST_MS, description="for how long; who comes meanwhile overtakes. Like 10ms, up to 30s"),
    ] = 10.0
    gap: int = Field(1, ge=1, le=1_000, description="of each so many packets, one is held back at most, as with netem")

    @model_validator(mode="after")
    def _check_others_pass(self) -> "ReorderParameters":
        if self.percent >= 100 and self.gap == 1:
            raise ValueError("`percent` of 100 holds every packet, so that none overtakes: ask for less, or give `gap`")
        return self


class HeldBack(NamedTuple):
    """A packet that waits; times are of one monotonic clock."""

    number: int
    flow: bytes
    since_ns: int


class Shuffle:
    """Who is held back, and who is overtaken. No clock, no I/O."""

    def __init__(self, parameters: ReorderParameters, rng: random.Random, note: Callable[[str], None]) -> None:
        """`note` is told of each packet that was drawn for, that is held, and that is overtaken."""
        self._parameters = parameters
        self._delay_ns = round(parameters.delay * _NS_PER_MS)
        self._rng = rng
        self._note = note
        self._pass_first = 0
        self._waiting: deque[HeldBack] = deque()
        self._behind: dict[bytes, set[int]] = {}
        """Of each flow those that wait and have not been overtaken yet."""

    def take(self, number: int, flow: bytes, now_ns: int) -> bool:
        """Whether this packet, which has come, passes at once. One that does not waits from now on."""
        if self._is_drawn():
            self._note(_HELD)
            self._waiting.append(HeldBack(number, flow, now_ns))
            self._behind.setdefault(flow, set()).add(number)
            return False
        for _ in self._behind.pop(flow, ()):
            self._note(_OVERTAKEN)
        return True

    def take_due(self, now_ns: int) -> list[HeldBack]:
        """Those that have waited for long enough; they wait no more."""
        due = []
        while self._waiting and self._waiting[0].since_ns + self._delay_ns <= now_ns:
            held = self._waiting.popleft()
            due.append(held)
            behind = self._behind.get(held.flow, set())
            behind.discard(held.number)
            if not behind:
                self._behind.pop(held.flow, None)
        return due

    def next_due_ns(self) -> int | None:
        """When the next one has; None when none waits."""
        return self._waiting[0].since_ns + self._delay_ns if self._waiting else None

    def _is_drawn(self) -> bool:
        if self._pass_first:
            self._pass_first -= 1
            return False
        self._note(_DRAWN)
        if self._rng.random() * 100 >= self._parameters.percent:
            return False
        self._pass_first = self._parameters.gap - 1
        return True


class NetworkReorder(QueueFault[ReorderParameters]):
    """Holds some packets back."""

    kind = "network.reorder"
    summary = "Let a percentage of the packets to and from peers, ports or everyone be overtaken by later ones."
    Parameters = ReorderParameters

    def handler(self, parameters: ReorderParameters, queue: PacketQueue, rng: random.Random) -> "_Reordering":
        return _Reordering(parameters, queue, rng)

    def longest_ms(self, parameters: ReorderParameters) -> float:
        return parameters.delay

    def start_bytes(self, parameters: ReorderParameters) -> int:
        return FLOW_WITHIN_BYTES

    def measure(self, record: Record[ReorderParameters], host: Host) -> Meter:
        return _ReorderMeter(record)


class _Reordering:
    """Lets packets pass at once, or when they have been held back."""

    def __init__(self, parameters: ReorderParameters, queue: PacketQueue, rng: random.Random) -> None:
        self._queue = queue
        self._counts = Tally(_NAMES)
        self._shuffle = Shuffle(parameters, rng, self._counts.add)
        self.tally = self._counts.descriptor

    def take(self, packet: Packet, now_ns: int) -> None:
        self._counts.add(RECEIVED)
        self.let_go(now_ns)  # who is due by now is overtaken no more
        if self._shuffle.take(packet.number, flow_of(packet.start), now_ns):
            self._queue.accept([packet.number])

    def let_go(self, now_ns: int) -> None:
        due = self._shuffle.take_due(now_ns)
        self._queue.accept(held.number for held in due)
        gone_ns = time.monotonic_ns()
        for held in due:
            self._counts.add(_RELEASED)
            self._counts.add(_HELD_US, (gone_ns - held.since_ns) // _NS_PER_US)

    def next_due_ns(self) -> int | None:
        return self._shuffle.next_due_ns()


class _ReorderMeter(QueueMeter):
    """Whom the holder says that it held back, and who was overtaken."""

    def __init__(self, record: Record[ReorderParameters]) -> None:
        super().__init__(record, _NAMES)
        self._parameters = record.parameters

    def judged(self) -> Effect:
        return judge_passed(judge_reorder(self._parameters, self.scope, self.noted), self.seen, self.passed)


def judge_reorder(parameters: ReorderParameters, scope: Scope, noted: Mapping[str, int]) -> Effect:
    """Proved when the share that was asked for explains how many were held, and most of these were overtaken. Pure."""
    drawn, held, overtaken, released = (noted[name] for name in (_DRAWN, _HELD, _OVERTAKEN, _RELEASED))
    said = f"of {drawn} packets ({scope.text}) that could be, the holder held {held} back"
    if released:
        said += f", for {noted[_HELD_US] / released / _US_PER_MS:.4g} ms on average"
    share = judge_share(parameters.percent, scope, drawn, held, said)
    if not drawn:
        return share
    is_overtaken = overtaken >= _OVERTAKEN_MIN * held
    why = f"; {overtaken} of them were overtaken" + ("" if is_overtaken else ", the others only late")
    proved = share.proved and is_overtaken
    return replace(share, achieved=100 * overtaken / drawn, proved=proved, explanation=share.explanation + why)
