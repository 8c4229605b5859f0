"""What faults have in common whose packets the kernel hands to the holder (NFQUEUE): rules, queue and meter.

This needs no queueing discipline, so those of the host are left alone, and it works wherever nftables does. When the
holder dies the kernel drops what is held at that instant and lets everything after it pass.

**Limits.** PACKETS_PER_S packets a second in each direction are handed over; what is beyond, or beyond 65536 packets
that wait, passes at once (`beyond` says otherwise), is counted, and keeps the fault from being proved. A packet is what
passes the host's input and output hooks: a burst that the network card splits or merges (TSO, GRO) is one. When the
rules of any other table are taken away, the kernel drops what queues hold just then (nf_queue_nf_hook_drop).
"""

import math
import os
import random
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar, Literal, TypeVar

from brownout_agent.faults.contract import ABLE, TRIAL_S, Capability, Effect, Facts, Hold, Host, Record, Refusal
from brownout_agent.faults.network_following import follow
from brownout_agent.faults.network_hold import Handler, asked_to_end, drain, hold_until
from brownout_agent.faults.network_rules import (
    LEASE_MARGIN_MS,
    TABLE_PREFIX,
    Treatment,
    directions,
    ending,
    removal,
    spare,
    table_name,
)
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_table import NetworkFault, PacketMeter, extend, load, why_not, with_standing
from brownout_agent.kernel.cpu import set_nice
from brownout_agent.kernel.nftables import Nftables, NftablesError
from brownout_agent.kernel.packet_queue import PacketQueue
from brownout_agent.kernel.queue_rule import append_queue_rule
from brownout_agent.kernel.tally import read_tally

PACKETS_PER_S = 20_000
"""In each direction. So many cost the host about a third of a core (docs/latency.md)."""
_PASSED_MAX = 0.01
"""The share of packets that may have passed without being handed over."""
RECEIVED = "received"
"""What every holder counts: the packets that it was handed."""
_BURST = 4_000
_NICE = -10
"""A holder that waits for a core holds packets for too long."""
_SEED_BITS = 32
_TRIAL_LEASE_MS = round(TRIAL_S * 1_000) + LEASE_MARGIN_MS
_REMEDY = (
    "use a kernel with CONFIG_NETFILTER_NETLINK_QUEUE and CONFIG_NFT_QUEUE (modules nfnetlink_queue and nft_queue), or "
    "CONFIG_NFT_COMPAT and CONFIG_NETFILTER_XT_TARGET_NFQUEUE in place of the latter"
)

Q = TypeVar("Q", bound=NetworkParameters)


class QueueFault(NetworkFault[Q]):
    """A fault whose holder deals with packets. A subclass says what it does with them, and how that is measured."""

    reverts = (
        "The kernel: when the holder dies its packet queue and its nftables table go, and packets pass; those that are "
        "held at that instant are lost. A time-out inside the table ends the effect when its lease is not renewed."
    )
    parting_s = 0.3
    is_whole: ClassVar[bool] = True
    """Whether bursts of segmentation offload come as one packet, or each packet of them by itself with its checksum."""

    beyond: ClassVar[Literal["accept", "drop"]] = "accept"
    """What becomes of packets beyond PACKETS_PER_S."""

    @abstractmethod
    def handler(self, parameters: Q, queue: PacketQueue, rng: random.Random) -> Handler:
        """What deals with the packets of the queue, by draws of `rng`. Called in the holder.

        Raises:
            OSError: there is no memory to be had to count in.
        """

    def longest_ms(self, parameters: Q) -> float:
        """How long a packet is held at most."""
        return 0.0

    @abstractmethod
    def start_bytes(self, parameters: Q) -> int:
        """How much of each packet the holder has to see."""

    def percent(self, parameters: Q) -> float:
        """Which share of the packets is handed over, each by its own draw of the kernel."""
        return 100.0

    def treatment(self, parameters: Q, scope: Scope) -> Treatment:
        return _hand_over(self.percent(parameters), self.beyond)

    def tried(self) -> Treatment:
        return _hand_over(50, self.beyond)

    def detect(self, host: Host) -> Capability:
        able = super().detect(host)
        if not able.able:
            return able
        scope = Scope(None, ((1, 2),), "any", "ingress", "lo", False, (), (22,))
        table, tried = f"{TABLE_PREFIX}trial-queue-{os.getpid()}", self.tried()
        try:
            with PacketQueue(1, 0) as queue, Nftables(with_descriptor=True) as nft:
                load(nft, table, scope, tried, lease_ms=1_000, hooked=False)
                try:
                    append_queue_rule(nft, table, "ingress_meant", queue.number)
                finally:
                    nft.run(removal(table, tried.families))
        except OSError as error:
            return Capability(False, f"the kernel hands no packets to a process: {error}", _REMEDY)
        return ABLE

    def apply(self, parameters: Q, facts: Facts, hold: Hold) -> None:
        table, scope = table_name(hold.fault_id), with_standing(Scope.of(parameters, facts))
        held = PACKETS_PER_S * len(directions(scope)) * self.longest_ms(parameters) / 1_000
        seed = random.getrandbits(_SEED_BITS)
        set_nice(_NICE)
        try:
            with (
                asked_to_end() as end,
                PacketQueue(
                    math.ceil(held) + 2 * _BURST, self.start_bytes(parameters), is_whole=self.is_whole
                ) as queue,
                Nftables(with_descriptor=True) as nft,
            ):
                handler = self.handler(parameters, queue, random.Random(seed))  # noqa: S311 - no secret
                owned = load(nft, table, scope, self.treatment(parameters, scope), lease_ms=_TRIAL_LEASE_MS)
                for direction in directions(scope):
                    append_queue_rule(nft, table, f"{direction}_meant", queue.number)
                hold.on_extension(lambda left_ms: extend(nft, table, left_ms))
                followed = follow(nft, table, scope.group)
                hold.ready(owned=owned, path="nfqueue", queue=queue.number, tally=handler.tally, seed=seed, **followed)
                hold_until(end, queue, handler)
                with suppress(NftablesError):  # its time is over already
                    nft.run(ending(table))
                drain(queue)
        except NftablesError as error:
            raise Refusal(*why_not(error, self.needs)) from error
        except OSError as error:
            raise Refusal(f"packets cannot be held: {error}", _REMEDY) from error


class QueueMeter(PacketMeter):
    """What the kernel counted of the rules, and what the holder counts, which know nothing of each other."""

    def __init__(self, record: Record[Q], names: Sequence[str]) -> None:
        """`names` as the holder counts by them; RECEIVED is one of them."""
        super().__init__(record)
        self._holder, self._tally = record.holders[0], int(record.facts["tally"])
        self._names = names
        self.noted = dict.fromkeys(names, 0)
        """What the holder has counted."""
        self.excess = 0
        """Packets that were meant, and beyond PACKETS_PER_S."""
        self.unheld = 0
        """Packets that the holder was never handed, though they were for it: they passed."""
        self._handed_over = 0

    @property
    def seen(self) -> int:
        """Packets that met the rules."""
        return sum(count.seen for count in self.counts.values())

    @property
    def passed(self) -> int:
        """Packets that were meant, and passed without being handed over."""
        return self.excess + self.unheld

    @property
    def meant(self) -> int:
        """Those of them that were drawn, and so were to be handed over."""
        return self._sum("drawn")

    def sample(self) -> None:
        super().sample()
        handed_over_before = self._handed_over
        try:
            self.noted = read_tally(self._holder, self._tally, self._names)
        except OSError as error:
            self.lost = self.lost or f"; the holder could not be read: {error}"
            return
        self.excess = self._sum("excess")
        self._handed_over = self.meant - self.excess
        # Of the reading before: what was counted just now may be on its way to the holder.
        self.unheld = max(handed_over_before - self.noted[RECEIVED], 0)

    def _sum(self, name: str) -> int:
        return sum(self.counters.get(f"{direction}_{name}", 0) for direction in self.counts)


def judge_passed(judged: Effect, seen: int, passed: int) -> Effect:
    """The same judgement, but not proved when more than a few of those that were `seen` passed untouched. Pure."""
    if not passed:
        return judged
    why = f"; {passed} passed without being held: it holds {PACKETS_PER_S} a second in each direction"
    return replace(judged, proved=judged.proved and passed <= _PASSED_MAX * seen, explanation=judged.explanation + why)


def _hand_over(percent: float, beyond: str) -> Treatment:
    """Counts, and takes out what is not drawn and what is beyond PACKETS_PER_S. The rule behind these, which hands the
    rest over, knows its queue.
    """
    return Treatment(
        lambda direction: [
            f"counter name {direction}_seen",
            *spare(percent),
            f"counter name {direction}_drawn",
            f"limit rate over {PACKETS_PER_S}/second burst {_BURST} packets counter name {direction}_excess {beyond}",
        ],
        sets=tuple(f"counter {way}_{name} {{ }}" for way in ("ingress", "egress") for name in ("drawn", "excess")),
    )
