"""`network.latency`: packets arrive late, as over a long distance, a full link or a busy device.

The kernel hands the packets that are meant to the fault's holder (NFQUEUE), which lets each go when it is due. This
needs no queueing discipline, so those of the host are left alone, and it works wherever nftables does. When the holder
dies the kernel drops what is held at that instant and lets everything after it pass.

**Direction.** With one direction a round trip takes `latency` longer, with `both` twice that. Both ways sound alike,
but packets that leave are held while they count against their sender's socket (TCP small queues), so that a TCP sender
on this host is held to a few segments in flight: bulk data that leaves through `egress` is much slower than over a
real link of this latency. `ingress`, the default, delays the same round trip and carries bulk data both ways.

**Order.** Without jitter nothing is reordered. With jitter the packets of one flow (addresses, protocol, ports) still
keep their order, as in a queue, so that where they follow each other more closely than the jitter they are held longer
than they drew; `reorder` lets them overtake one another, as netem does.

**Limits.** PACKETS_PER_S packets a second in each direction are held; what is beyond, or beyond 65536 packets that
wait, passes at once, is counted, and keeps the fault from being proved. A packet is what passes the host's input and
output hooks: a burst that the network card splits or merges (TSO, GRO) is one. When the rules of any other table are
taken away, the kernel drops what queues hold just then (nf_queue_nf_hook_drop).
"""

import math
import os
import random
from contextlib import suppress
from typing import Annotated, Literal

from pydantic import Field, model_validator

from brownout_agent.faults.contract import (
    ABLE,
    TRIAL_S,
    Capability,
    DurationMs,
    Effect,
    Facts,
    Hold,
    Host,
    Meter,
    Percent,
    Record,
    Refusal,
)
from brownout_agent.faults.network_delays import FLOW_BYTES, Delays, Distribution, Line
from brownout_agent.faults.network_hold import asked_to_end, drain, hold_until
from brownout_agent.faults.network_rules import (
    FAMILY,
    LEASE_MARGIN_MS,
    TABLE_PREFIX,
    Treatment,
    directions,
    ending,
    table_name,
)
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_table import NetworkFault, PacketCounts, PacketMeter, extend, load, why_not
from brownout_agent.faults.network_tally import Held, HeldTally, read_held
from brownout_agent.kernel.cpu import set_nice
from brownout_agent.kernel.nftables import Nftables, NftablesError
from brownout_agent.kernel.packet_queue import PacketQueue
from brownout_agent.kernel.queue_rule import append_queue_rule

PACKETS_PER_S = 20_000
"""In each direction. So many cost the host about a third of a core (docs/latency.md)."""
_BURST = 4_000
_NICE = -10
"""A holder that waits for a core holds packets for too long."""
_LONGEST_MS = 30_000
_LATENCY_MEANS = (
    f"how late, like 150ms; up to 30s. At most {PACKETS_PER_S} packets a second in each direction are held; what is "
    "more passes at once, and the fault is not proved then"
)
_PASSED_MAX = 0.01
"""The share of packets that may have passed without being held."""
_TOLERANCE_MS, _TOLERANCE_SHARE = 1.0, 0.02
"""How far the median may be off, both together, but never by more than half of what was asked."""
_STANDARD_ERRORS = 4
_TRIAL_LEASE_MS = round(TRIAL_S * 1_000) + LEASE_MARGIN_MS
_REMEDY = (
    "use a kernel with CONFIG_NETFILTER_NETLINK_QUEUE and CONFIG_NFT_QUEUE (modules nfnetlink_queue and nft_queue), or "
    "CONFIG_NFT_COMPAT and CONFIG_NETFILTER_XT_TARGET_NFQUEUE in place of the latter"
)


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


class NetworkLatency(NetworkFault[LatencyParameters]):
    """Holds packets until they are due."""

    kind = "network.latency"
    summary = "Delay traffic to and from peers, ports or everyone, with jitter."
    reverts = (
        "The kernel: when the holder dies its packet queue and its nftables table go, and packets pass; those that are "
        "held at that instant are lost. A time-out inside the table ends the effect when its lease is not renewed."
    )
    Parameters = LatencyParameters
    parting_s = 0.3

    def treatment(self, parameters: LatencyParameters, scope: Scope) -> Treatment:
        return _hand_over(directions(scope))

    def tried(self) -> Treatment:
        return _hand_over(("ingress", "egress"))

    def detect(self, host: Host) -> Capability:
        able = super().detect(host)
        if not able.able:
            return able
        scope = Scope(None, ((1, 2),), "any", "ingress", "lo", False, (), (22,))
        table = f"{TABLE_PREFIX}trial-queue-{os.getpid()}"
        try:
            with PacketQueue(1, 0) as queue, Nftables(with_descriptor=True) as nft:
                load(nft, table, scope, self.tried(), lease_ms=1_000, hooked=False)
                try:
                    append_queue_rule(nft, table, "ingress_meant", queue.number)
                finally:
                    nft.run(f"delete table {FAMILY} {table}")
        except OSError as error:
            return Capability(False, f"the kernel hands no packets to a process: {error}", _REMEDY)
        return ABLE

    def apply(self, parameters: LatencyParameters, facts: Facts, hold: Hold) -> None:
        table, scope, delays = table_name(hold.fault_id), Scope.of(parameters, facts), parameters.delays
        length = math.ceil(PACKETS_PER_S * len(directions(scope)) * delays.longest_ms / 1_000) + 2 * _BURST
        line = Line(delays, random.Random(), reorder=parameters.reorder)  # noqa: S311 - no secret
        tally = HeldTally()
        set_nice(_NICE)
        try:
            with (
                asked_to_end() as end,
                PacketQueue(length, 0 if line.is_fifo else FLOW_BYTES) as queue,
                Nftables(with_descriptor=True) as nft,
            ):
                owned = load(nft, table, scope, self.treatment(parameters, scope), lease_ms=_TRIAL_LEASE_MS)
                for direction in directions(scope):
                    append_queue_rule(nft, table, f"{direction}_meant", queue.number)
                hold.on_extension(lambda left_ms: extend(nft, table, left_ms))
                hold.ready(owned=owned, path="nfqueue", queue=queue.number, tally=tally.descriptor)
                hold_until(end, queue, line, tally)
                with suppress(NftablesError):  # its time is over already
                    nft.run(ending(table))
                drain(queue)
        except NftablesError as error:
            raise Refusal(*why_not(error, self.needs)) from error
        except OSError as error:
            raise Refusal(f"packets cannot be held: {error}", _REMEDY) from error

    def measure(self, record: Record[LatencyParameters], host: Host) -> Meter:
        return _LatencyMeter(record)


class _LatencyMeter(PacketMeter):
    """What the kernel counted of the rules, and how long the holder says that it held each packet."""

    def __init__(self, record: Record[LatencyParameters]) -> None:
        super().__init__(record)
        self._parameters = record.parameters
        self._holder, self._tally = record.holders[0], int(record.facts["tally"])
        self._held = Held(0, 0, ())
        self._handed_over = 0
        self._passed = 0

    def sample(self) -> None:
        super().sample()
        handed_over_before = self._handed_over
        try:
            self._held = read_held(self._holder, self._tally)
        except OSError as error:
            self.lost = self.lost or f"; the holder could not be read: {error}"
            return
        excess = sum(self.counters[f"{direction}_excess"] for direction in self.counts)
        self._handed_over = _seen(self.counts) - excess
        # Of the reading before: what was counted just now may be on its way to the holder.
        self._passed = excess + max(handed_over_before - self._held.received, 0)

    def judged(self) -> Effect:
        return judge_latency(self._parameters, self.scope, _seen(self.counts), self._passed, self._held)


def judge_latency(parameters: LatencyParameters, scope: Scope, seen: int, passed: int, held: Held) -> Effect:
    """Proved when half of the packets were held for as long as was asked, and hardly any was not held at all. Pure.

    `seen` packets met the rules, of which `passed` were more than can be held.
    """
    delays = parameters.delays
    asked_ms = delays.median_ms
    if not seen:
        return Effect(asked_ms, None, "ms", False, f"no packet matched: nobody talked to {scope.text} during the fault")
    if not held.released:
        why = f"{seen} packets ({scope.text}) were met, and none was held to its end"
        return Effect(asked_ms, None, "ms", False, why)
    median_ms, late_ms = held.quantile_ms(0.5), held.quantile_ms(0.99)
    earliest_ms, latest_ms = _accepted_ms(parameters, held.released)
    proved = earliest_ms <= median_ms <= latest_ms and passed <= _PASSED_MAX * seen
    why = (
        f"of {seen} packets that the kernel counted ({scope.text}) the holder let {held.released} go, half of them "
        f"after {median_ms:.4g} ms or less and 99 % after {late_ms:.4g} ms or less by its clock"
    )
    if not earliest_ms <= median_ms <= latest_ms:
        why += f"; half should be {earliest_ms:.4g}-{latest_ms:.4g} ms"
    if passed:
        why += f"; {passed} passed without being held: it holds {PACKETS_PER_S} a second in each direction"
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


def _seen(counts: dict[str, PacketCounts]) -> int:
    return sum(count.seen for count in counts.values())


def _hand_over(ways: tuple[str, ...]) -> Treatment:
    """Counts, and lets pass what is beyond PACKETS_PER_S. The rule behind these, which hands over, knows its queue."""
    return Treatment(
        lambda direction: [
            f"counter name {direction}_seen",
            f"limit rate over {PACKETS_PER_S}/second burst {_BURST} packets counter name {direction}_excess accept",
        ],
        sets=tuple(f"counter {way}_excess {{ }}" for way in ways),
    )
