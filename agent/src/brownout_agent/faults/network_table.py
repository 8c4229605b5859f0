"""What network faults have in common: one nftables table, made and owned by the holder, read by the meter."""

import os
import threading
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NoReturn, TypeVar

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
from brownout_agent.faults.network_following import GroupMeter, follow
from brownout_agent.faults.network_lifelines import Lifelines
from brownout_agent.faults.network_rules import (
    FAMILY,
    LEASE_MARGIN_MS,
    TABLE_PREFIX,
    Treatment,
    directions,
    drop,
    extension,
    removal,
    ruleset,
    table_name,
)
from brownout_agent.faults.network_scope import NetworkParameters, Scope, resolve
from brownout_agent.kernel.nftables import LIBRARY, Nftables, NftablesError, families_of, read_counters
from brownout_agent.kernel.socket_groups import ids_below, read_open_in
from brownout_agent.kernel.tcp_connections import Connection, read_open

N = TypeVar("N", bound=NetworkParameters)
_NEEDS_OF_SCOPES = ("CONFIG_NFT_SOCKET", "CONFIG_SOCK_CGROUP_DATA", "CONFIG_NFT_HASH")
"""Beyond what every network fault needs: of `unit` and `cgroup`, and of `share`."""


@dataclass(frozen=True, slots=True)
class PacketCounts:
    """What the rules of one direction counted: packets that the fault means, and those of them that it let no further,
    whether they were dropped in silence or refused."""

    seen: int
    dropped: int


class NetworkFault(Fault[N]):
    """A fault that is rules for packets. A subclass says what these do to them, and how that is measured."""

    bounds = frozenset({"interfaces"})
    reverts = (
        "The kernel: the nftables table goes when the process that owns it dies, and a time-out inside the table "
        "ends the effect when its lease is not renewed, even where a kernel before 5.12 keeps the table; the reaper "
        "then removes it."
    )

    needs: ClassVar[tuple[str, ...]] = ("CONFIG_NF_TABLES_INET", "CONFIG_NFT_NUMGEN", "CONFIG_NFT_REJECT_INET")
    """Parts of the kernel, for whoever has one that does not take the rules."""

    def tried(self) -> Treatment:
        """Rules of every form that the fault may use: `detect` has the kernel take them, in chains without packets."""
        return drop(50)

    @abstractmethod
    def treatment(self, parameters: N, scope: Scope) -> Treatment:
        """What befalls the packets in scope. Called in the holder, just before the rules are loaded."""

    def detect(self, host: Host) -> Capability:
        try:
            nft = Nftables()
        except OSError as error:
            return Capability(False, f"{LIBRARY} cannot be loaded: {error}", "apt-get install libnftables1")
        scope = Scope(None, ((1, 2),), "any", "both", "lo", False, (), (22,))
        with nft:
            try:
                try_out(nft, scope, self.tried())
            except NftablesError as error:
                return Capability(False, *why_not(error, self.needs))
        return ABLE

    def prepare(self, parameters: N, host: Host) -> Facts:
        facts = resolve(parameters, host)
        scope = Scope.of(parameters, facts)
        if scope.group is not None or scope.share_percent < 100:
            with Nftables() as nft:
                try:
                    try_out(nft, scope, drop(100))
                except NftablesError as error:
                    raise Refusal(*why_not(error, _NEEDS_OF_SCOPES)) from error
        return facts

    def watch_lifelines(self, record: Record[N], host: Host) -> Callable[[], str]:
        ssh_ports = {*host.exempt_ports, *record.facts["exempt_ports"]}
        return Lifelines(Scope.of(record.parameters, record.facts), ssh_ports).harm

    def apply(self, parameters: N, facts: Facts, hold: Hold) -> None:
        table, scope = table_name(hold.fault_id), with_standing(Scope.of(parameters, facts))
        lease_ms = round(TRIAL_S * 1_000) + LEASE_MARGIN_MS
        with Nftables() as nft:
            try:
                owned = load(nft, table, scope, self.treatment(parameters, scope), lease_ms=lease_ms)
                followed = follow(nft, table, scope.group)
            except NftablesError as error:
                raise Refusal(*why_not(error, self.needs)) from error
            hold.on_extension(lambda left_ms: extend(nft, table, left_ms))
            hold.ready(owned=owned, **followed)
            self.keep(nft, parameters, hold)

    def keep(self, nft: Nftables, parameters: N, hold: Hold) -> NoReturn:
        """Hold the fault, through the connection that owns its table."""
        hold.wait()

    def undo(self, record: Record[N]) -> None:
        remove_table(record.fault_id)

    def residue(self, record: Record[N]) -> list[str]:
        return table_left(record.fault_id)


class PacketMeter(Meter):
    """Reads the rules' counters through the injector's own connection to the kernel. A subclass judges them."""

    def __init__(self, record: Record[N]) -> None:
        self._samples = 0
        self.table = table_name(record.fault_id)
        self.scope = Scope.of(record.parameters, record.facts)
        self.counters: dict[str, int] = {}
        """All that the table has, by their names."""
        self.counts = {direction: PacketCounts(0, 0) for direction in directions(self.scope)}
        self.lost = ""
        """What could not be read; nothing is proved then."""
        self._group = GroupMeter(record, self.table, self.scope.group) if self.scope.group else None

    def sample(self) -> None:
        if self._group:
            self._group.sample()
        try:
            packets = self.counters = read_counters(FAMILY, self.table)
        except NftablesError as error:
            self.lost = f"; table {self.table} could not be read after {self._samples} readings: {error}"
            return
        self._samples += 1
        self.counts = {
            direction: PacketCounts(packets[f"{direction}_seen"], packets[f"{direction}_dropped"])
            for direction in self.counts
        }

    @abstractmethod
    def judged(self) -> Effect:
        """The judgement over what was read."""

    def effect(self) -> Effect:
        judged = self.judged()
        is_whole, of_group = (self._group.is_whole, self._group.text) if self._group else (True, "")
        is_share, of_share = self._judge_share()
        return replace(
            judged,
            proved=judged.proved and not self.lost and is_whole and is_share,
            explanation=judged.explanation + of_share + of_group + self.lost,
            samples=self._samples,
        )

    def _judge_share(self) -> tuple[bool, str]:
        """Whether there was a share to be seen: nothing shows one where every flow was met. And what to say of it."""
        if self.scope.share_percent >= 100:
            return True, ""
        spared = sum(self.counters.get(f"{direction}_spared", 0) for direction in self.counts)
        return spared > 0, f"; {spared or 'no'} packets of flows that were not drawn passed"


class CountMeter(PacketMeter):
    """Judges by nothing but the counters."""

    def __init__(self, record: Record[N], judge: Callable[[Scope, dict[str, PacketCounts]], Effect]) -> None:
        super().__init__(record)
        self._judge = judge

    def judged(self) -> Effect:
        return self._judge(self.scope, self.counts)


def judge_all(done: str, scope: Scope, counts: dict[str, PacketCounts]) -> Effect:
    """Of a fault that means to do it to every packet. Proved when it was `done` (dropped, refused) to one: where nobody
    talks, a fault and a healthy network look the same. Pure.
    """
    seen = sum(count.seen for count in counts.values())
    dropped = sum(count.dropped for count in counts.values())
    unit = "% of packets"
    if not seen:
        return Effect(100.0, None, unit, False, f"no packet matched: nobody talked to {scope.text} during the fault")
    each = " and ".join(f"{count.dropped} of {count.seen} {direction}" for direction, count in counts.items())
    return Effect(100.0, 100 * dropped / seen, unit, dropped > 0, f"the kernel {done} {each} packets ({scope.text})")


def load(nft: Nftables, table: str, scope: Scope, treatment: Treatment, *, lease_ms: int, hooked: bool = True) -> bool:
    """Load the rules; True when the kernel ties the table to us, False when it is too old for that.

    Raises:
        NftablesError: this kernel does not take the rules either way; nothing was changed.
    """
    try:
        nft.run(ruleset(table, scope, treatment, lease_ms=lease_ms, owned=True, hooked=hooked))
    except NftablesError:
        nft.run(ruleset(table, scope, treatment, lease_ms=lease_ms, owned=False, hooked=hooked))
        return False
    return True


def with_standing(scope: Scope) -> Scope:
    """The scope with the connections that stand now, where it asks for old or new ones.

    Raises:
        OSError: the kernel does not list them.
    """
    return scope if scope.connections == "both" else replace(scope, standing=read_standing(scope))


def read_standing(scope: Scope) -> frozenset[Connection]:
    """The connections in scope of those that stand now.

    Raises:
        OSError: the kernel does not list them.
    """
    found = read_open_in(ids_below(Path(scope.group.folder))) if scope.group else read_open()
    return frozenset(connection for connection in found if scope.meets(connection))


def try_out(nft: Nftables, scope: Scope, treatment: Treatment) -> None:
    """Have the kernel take the rules, in chains that no packet meets, and remove them.

    Raises:
        NftablesError: it does not take them.
    """
    table = f"{TABLE_PREFIX}trial-{os.getpid()}-{threading.get_ident():x}"
    load(nft, table, scope, treatment, lease_ms=1_000, hooked=False)
    nft.run(removal(table, treatment.families))


def remove_table(fault_id: str) -> None:
    """Remove the fault's tables if the kernel has not.

    Raises:
        OSError: the kernel refused.
    """
    table = table_name(fault_id)
    if families := families_of(table):
        with Nftables() as nft:
            # `add` first: the pair succeeds as well when the kernel was quicker.
            nft.run("".join(f"add table {family} {table}\n" for family in families) + removal(table, families))


def table_left(fault_id: str) -> list[str]:
    """The fault's tables as residue; empty when they are gone."""
    table = table_name(fault_id)
    return [
        f"nftables table `{family} {table}` is still there; next: nft delete table {family} {table}"
        for family in families_of(table)
    ]


def extend(nft: Nftables, table: str, left_ms: int) -> None:
    """Let the rules work for so long from now. Raises Refusal when their time is over."""
    try:
        nft.run(extension(table, left_ms + LEASE_MARGIN_MS))
    except NftablesError as error:
        raise Refusal(f"the time-out in table {table} had passed before it was extended: {error}") from error


def why_not(error: NftablesError, needs: tuple[str, ...]) -> tuple[str, str]:
    """Reason and remedy of a refusal, of what the kernel said to the rules, which need these parts of it."""
    if "Operation not permitted" in str(error):
        return f"nftables needs CAP_NET_ADMIN: {error}", "run the injector as root"
    return f"the kernel does not take the rules: {error}", f"use a kernel with {', '.join(needs[:-1])} and {needs[-1]}"
