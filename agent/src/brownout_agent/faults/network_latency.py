"""`network.latency`: packets arrive late, as over a long distance, a full link or a busy device.

The fault's holder, to which the kernel hands the packets that are meant, lets each go when it is due. What carries
that, what it is limited to and what happens when the holder dies: network_queue.py.

**Direction.** With one direction a round trip takes `latency` longer, with `both` twice that. Both ways sound alike,
but packets that leave are held while they count against their sender's socket (TCP small queues), so that a TCP sender
on this host is held to a few segments in flight: bulk data that leaves through `egress` is much slower than over a
real link of this latency. `ingress`, the default, delays the same round trip and carries bulk data both ways.

**Order.** Without jitter nothing is reordered. With jitter the packets of one flow (addresses, protocol, ports) still
keep their order, as in a queue, so that where they follow each other more closely than the jitter they are held longer
than they drew; `reorder` lets them overtake one another, as netem does.
"""

import math
import random
import time
from typing import Annotated, Literal

from pydantic import Field, model_validator

from brownout_agent.faults.contract import DurationMs, Effect, Host, Meter, Percent, Record
from brownout_agent.faults.network_delays import Delays, Distribution, Line
from brownout_agent.faults.network_queue import PACKETS_PER_S, QueueFault, QueueMeter, judge_passed
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_tally import HELD_NAMES, Held, HeldTally
from brownout_agent.kernel.ip_packets import FLOW_WITHIN_BYTES, flow_of
from brownout_agent.kernel.packet_queue import Packet, PacketQueue

_LONGEST_MS = 30_000
_LATENCY_MEANS = (
    f"how late, like 150ms; up to 30s. At most {PACKETS_PER_S} packets a second in each direction are held; what is "
    "more passes at once, and the fault is not proved then"
)
_TOLERANCE_MS, _TOLERANCE_SHARE = 1.0, 0.02
"""How far the median may be off, both together, but never by more than half of what was asked."""
_STANDARD_ERRORS = 4


class LatencyParameters(NetworkParameters):
    """Which packets are late, and by how much."""

    latency: Annotated[DurationMs, Field(gt=0, le=_LONGEST_MS, description=_LATENCY_MEANS)]
    jitter: Annotated[
        DurationMs, Field(description="how much single packets differ from it, like 20ms; at most as much as `latency`")
    ] = 0.0
    distribution: Distribution = Field(
        "uniform",
        description="of the jitter: uniform (latency - jitter to latency + jitter), normal (jitter is the standard "
        "deviation), pareto (the same, most a little early and a few very late)",
    )
    correlation: Percent | None = Field(
        None, description="how much a packet's delay depends on the one before it, in percent; below 100"
    )
    reorder: bool = Field(False, description="with jitter: let packets of one flow overtake one another, as netem does")
    direction: Literal["ingress", "egress", "both"] = Field(
        "ingress",
        description="packets that reach this host, that leave it (bulk TCP that leaves is then very slow), or both, "
        "which makes round trips late twice",
    )

    @model_validator(mode="after")
    def _check_jitter(self) -> "LatencyParameters":
        if self.jitter > self.latency:
            raise ValueError("`jitter` is larger than `latency`: no packet can be early by more than it is late")
        if self.correlation is not None and self.correlation >= 100:
            raise ValueError("`correlation` of 100 % would be the same delay for ever: leave out `jitter` instead")
        if not self.jitter and self.model_fields_set & {"distribution", "correlation", "reorder"}:
            raise ValueError("`distribution`, `correlation` and `reorder` say how delays differ: they need `jitter`")
        return self

    @property
    def delays(self) -> Delays:
        """How long packets are held."""
        return Delays(self.latency, self.jitter, self.distribution, (self.correlation or 0) / 100)


class NetworkLatency(QueueFault[LatencyParameters]):
    """Holds packets until they are due."""

    kind = "network.latency"
    summary = "Delay traffic to and from peers, ports or everyone, with jitter."
    Parameters = LatencyParameters

    def handler(self, parameters: LatencyParameters, queue: PacketQueue, rng: random.Random) -> "_Delaying":
        return _Delaying(queue, Line(parameters.delays, rng, reorder=parameters.reorder))

    def longest_ms(self, parameters: LatencyParameters) -> float:
        return parameters.delays.longest_ms

    def start_bytes(self, parameters: LatencyParameters) -> int:
        return FLOW_WITHIN_BYTES if parameters.jitter else 0

    def measure(self, record: Record[LatencyParameters], host: Host) -> Meter:
        return _LatencyMeter(record)


class _Delaying:
    """Lets each packet go when it is due."""

    def __init__(self, queue: PacketQueue, line: Line) -> None:
        self._queue = queue
        self._line = line
        self._held = HeldTally()
        self.tally = self._held.descriptor

    def take(self, packet: Packet, now_ns: int) -> None:
        self._line.take(packet.number, flow_of(packet.start), now_ns)
        self._held.note_received()

    def let_go(self, now_ns: int) -> None:
        due = self._line.take_due(now_ns)
        if not due:
            return
        if self._line.is_fifo:
            self._queue.accept_up_to(due[-1].number)
        else:
            self._queue.accept(waiting.number for waiting in due)
        gone_ns = time.monotonic_ns()
        for waiting in due:
            self._held.note_released(gone_ns - waiting.since_ns)

    def next_due_ns(self) -> int | None:
        return self._line.next_due_ns()


class _LatencyMeter(QueueMeter):
    """How long the holder says that it held each packet."""

    def __init__(self, record: Record[LatencyParameters]) -> None:
        super().__init__(record, HELD_NAMES)
        self._parameters = record.parameters

    def judged(self) -> Effect:
        judged = judge_latency(self._parameters, self.scope, self.seen, Held.of(self.noted))
        return judge_passed(judged, self.seen, self.passed)


def judge_latency(parameters: LatencyParameters, scope: Scope, seen: int, held: Held) -> Effect:
    """Proved when half of the packets were held for as long as was asked. `seen` packets met the rules. Pure."""
    delays = parameters.delays
    asked_ms = delays.median_ms
    if not seen:
        return Effect(asked_ms, None, "ms", False, f"no packet matched: nobody talked to {scope.text} during the fault")
    if not held.released:
        why = f"{seen} packets ({scope.text}) were met, and none was held to its end"
        return Effect(asked_ms, None, "ms", False, why)
    median_ms, late_ms = held.quantile_ms(0.5), held.quantile_ms(0.99)
    earliest_ms, latest_ms = _accepted_ms(parameters, held.released)
    proved = earliest_ms <= median_ms <= latest_ms
    why = (
        f"of {seen} packets that the kernel counted ({scope.text}) the holder let {held.released} go, half of them "
        f"after {median_ms:.4g} ms or less and 99 % after {late_ms:.4g} ms or less by its clock"
    )
    if not proved:
        why += f"; half should be {earliest_ms:.4g}-{latest_ms:.4g} ms"
    return Effect(asked_ms, median_ms, "ms", proved, why, lowest=held.quantile_ms(0.01), highest=late_ms)


def _accepted_ms(parameters: LatencyParameters, packets: int) -> tuple[float, float]:
    """Between what the median of so many packets may lie."""
    delays = parameters.delays
    independent = packets * (1 - delays.correlation) / (1 + delays.correlation)
    error_ms = min(_TOLERANCE_MS + _TOLERANCE_SHARE * delays.latency_ms, delays.latency_ms / 2)
    # The median's standard error is about the jitter by the root of the packets, whichever the distribution.
    drawn_ms = delays.jitter_ms * min(_STANDARD_ERRORS / math.sqrt(independent), 1)
    late_ms = drawn_ms if parameters.reorder else delays.jitter_ms  # who keeps the order waits for those before
    return delays.median_ms - error_ms - drawn_ms, delays.median_ms + error_ms + late_ms
