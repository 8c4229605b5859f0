"""What DNS faults have in common: rules that hand queries to the holder, what it does with them, and the meter.

No socket is opened and nothing that asks is led to another address: the injector's unit allows no IP socket. So no
connection tracking remembers a redirect that is over, a query goes on to the very server that it was for, and
resolv.conf, hosts and every server stay as they are.
"""

import os
from abc import abstractmethod
from typing import ClassVar, Generic, TypeVar

from brownout_agent.faults.contract import (
    ABLE,
    TRIAL_S,
    Capability,
    Effect,
    Facts,
    Fault,
    Hold,
    Host,
    Meter,
    Record,
    Refusal,
)
from brownout_agent.faults.dns_interception import COUNTS, Delay, Interception, Treatment
from brownout_agent.faults.dns_rules import QUEUED, ruleset
from brownout_agent.faults.dns_scope import DnsParameters, Matcher
from brownout_agent.faults.network_hold import asked_to_end, drain, hold_until
from brownout_agent.faults.network_rules import FAMILY, LEASE_MARGIN_MS, TABLE_PREFIX, table_name
from brownout_agent.faults.network_share import explains
from brownout_agent.faults.network_table import extend, remove_table, table_left
from brownout_agent.kernel.nftables import LIBRARY, Nftables, NftablesError, read_counters
from brownout_agent.kernel.packet_queue import PacketQueue
from brownout_agent.kernel.queue_rule import append_queue_rule
from brownout_agent.kernel.tally import read_tally

HELD_MAX, BURST_MAX = 8_192, 512
"""Packets that may wait: for their delay, or for the holder to come to them. What is beyond passes, not counted as met;
so a holder that somebody stops keeps so many queries from their servers at most."""
_START_BYTES = 3_072
"""How much of a packet is looked at: queries are much smaller, and what is larger passes."""

D = TypeVar("D", bound=DnsParameters)


class DnsFault(Fault[D]):
    """A fault that is done to queries. A subclass says what befalls those that are meant, and judges the counts."""

    reverts = (
        "The kernel: the nftables table and the packet queue go when the process that has them dies, and queries pass; "
        "a time-out inside the table ends the effect when its lease is not renewed, even where that process is stopped."
    )
    parting_s = 0.3
    types: ClassVar[frozenset[str] | None] = None
    """The record types that it can do something to; None for all."""

    @abstractmethod
    def treatment(self, parameters: D, facts: Facts) -> Treatment:
        """What befalls the queries that are meant."""

    @abstractmethod
    def judge(self, parameters: D, counts: dict[str, int]) -> Effect:
        """What the counts prove: the holder's COUNTS and the rules' `asked`, `passed` and `answered`. Pure."""

    def rcode(self, parameters: D) -> int:
        """The response code of its answers, by which the kernel counts them."""
        return 0

    def detect(self, host: Host) -> Capability:
        table = f"{TABLE_PREFIX}trial-{os.getpid()}"
        try:
            with PacketQueue(1, 0) as queue, Nftables(with_descriptor=True) as nft:
                _load(nft, table, (), 0, queue.number, lease_ms=1_000, hooked=False)
                nft.run(f"delete table {FAMILY} {table}")
        except OSError as error:
            return Capability(False, *_why_not(error))
        return ABLE

    def prepare(self, parameters: D, host: Host) -> Facts:
        return {"exempt_uids": list(host.exempt_uids)}

    def apply(self, parameters: D, facts: Facts, hold: Hold) -> None:
        table, lease_ms = table_name(hold.fault_id), round(TRIAL_S * 1_000) + LEASE_MARGIN_MS
        uids = tuple(int(uid) for uid in facts["exempt_uids"])
        means, treatment = Matcher(parameters, self.types).means, self.treatment(parameters, facts)
        try:
            length = HELD_MAX if isinstance(treatment, Delay) else BURST_MAX
            queue, nft = PacketQueue(length, _START_BYTES), Nftables(with_descriptor=True)
            interception = Interception(queue, means, treatment, percent=parameters.percent)
            owned = _load(nft, table, uids, self.rcode(parameters), queue.number, lease_ms=lease_ms)
        except OSError as error:
            raise Refusal(*_why_not(error)) from error
        hold.on_extension(lambda left_ms: extend(nft, table, left_ms))
        with asked_to_end() as end, queue, nft:
            hold.ready(owned=owned, tally=interception.tally)
            hold_until(end, queue, interception)
            # Not the whole table: the kernel drops what waits in queues when a hook is taken away.
            nft.run(f"flush chain {FAMILY} {table} {QUEUED}")
            drain(queue)

    def undo(self, record: Record[D]) -> None:
        remove_table(record.fault_id)

    def residue(self, record: Record[D]) -> list[str]:
        return table_left(record.fault_id)

    def measure(self, record: Record[D], host: Host) -> Meter:
        return _QueryMeter(self, record)


class _QueryMeter(Meter, Generic[D]):
    """Reads what the holder counts, and what the rules count, which know nothing of each other."""

    def __init__(self, fault: DnsFault[D], record: Record[D]) -> None:
        self._fault = fault
        self._record = record
        self._counts: dict[str, int] = {}
        self._samples = 0
        self._lost = ""

    def sample(self) -> None:
        try:
            # The rules' last: an answer is counted there after it was made.
            counts = read_tally(self._record.holders[0], int(self._record.facts["tally"]), COUNTS)
            rules = read_counters(FAMILY, table_name(self._record.fault_id))
        except OSError as error:
            self._lost = f"; nothing could be read after {self._samples} readings: {error}"
            return
        self._samples += 1
        self._counts = {**counts, **{name: rules[name] for name in ("asked", "passed", "answered")}}

    def effect(self) -> Effect:
        if not self._counts:
            return Effect(0.0, None, "", False, f"it ended before it could be measured{self._lost}")
        judged = self._fault.judge(self._record.parameters, self._counts)
        return Effect(
            asked=judged.asked,
            achieved=judged.achieved,
            unit=judged.unit,
            proved=judged.proved and not self._lost,
            explanation=judged.explanation + self._lost,
            samples=self._samples,
        )


def judge_answers(parameters: DnsParameters, answer: str, counts: dict[str, int]) -> Effect:
    """Of a fault that answers itself: what the holder sent counts as far as the rules saw it arrive with its rcode."""
    arrived = counts["answered"]
    return judge_share(
        parameters, min(counts["met"], arrived), counts, f"{arrived} answers {answer} reached who asked by the rules"
    )


def judge_share(parameters: DnsParameters, done: int, counts: dict[str, int], proof: str) -> Effect:
    """Of a fault that deals with a share of the queries: proved when the share that was asked for explains what was
    `done`, by Wilson's interval as for lost packets. `proof` is what the rules counted. Pure.
    """
    matched, asked = counts["matched"], parameters.percent
    unit = "% of queries"
    if not matched:
        return Effect(asked, None, unit, False, nobody_asked(parameters, counts))
    achieved = 100 * done / matched
    met = f"{counts['met']} of {matched} queries for {', '.join(parameters.names)} were met; {proof}"
    if asked >= 100:
        return Effect(asked, achieved, unit, done == matched, met)
    is_explained, why = explains(asked, done, matched)
    return Effect(asked, achieved, unit, is_explained, f"{met}; {why}")


def nobody_asked(parameters: DnsParameters, counts: dict[str, int]) -> str:
    """Why nothing is proved where no query matched."""
    others = f"other queries seen: {counts['queries']}" if counts["queries"] else "no query was seen at all"
    return f"no query matched: nobody asked a DNS server for {', '.join(parameters.names)} during the fault; {others}"


def _load(
    nft: Nftables, table: str, uids: tuple[int, ...], rcode: int, queue: int, *, lease_ms: int, hooked: bool = True
) -> bool:
    """Load the rules; True when the kernel ties the table to us, False when it is too old for that.

    Raises:
        NftablesError: this kernel does not take the rules.
    """
    owned = True
    try:
        nft.run(ruleset(table, uids, rcode, lease_ms=lease_ms, owned=True, hooked=hooked))
    except NftablesError:
        nft.run(ruleset(table, uids, rcode, lease_ms=lease_ms, owned=False, hooked=hooked))
        owned = False
    append_queue_rule(nft, table, QUEUED, queue)
    return owned


def _why_not(error: OSError) -> tuple[str, str]:
    if "not permitted" in str(error):
        return f"packet queues and nftables need CAP_NET_ADMIN: {error}", "run the injector as root"
    if LIBRARY in str(error):
        return f"{LIBRARY} cannot be loaded: {error}", "apt-get install libnftables1"
    return (
        f"the kernel hands no packets over: {error}",
        "use a kernel with CONFIG_NF_TABLES_INET, CONFIG_NETFILTER_NETLINK_QUEUE and CONFIG_NFT_QUEUE",
    )
