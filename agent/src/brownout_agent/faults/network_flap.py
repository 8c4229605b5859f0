"""`network.flap`: a blackhole that comes and goes, as a link with a loose contact or a route that flaps.

It begins down, is up again after `down`, and goes down anew every `every`, counted from the beginning of the fault, so
that delays do not add up. Each time down is a time-out of the kernel's: the holder begins it and nobody has to end it,
so a holder that is stopped leaves the link up, and it lasts as long as asked even where it began late; one that would
begin later than after half of the time up is left out. While it is down packets vanish as `network.blackhole` has them
vanish.

A flap that is down for less than 3 s at a time is up again before its trial is over, whomever it cuts off: what holds
the host comes through in between.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NoReturn

from pydantic import Field, model_validator

from brownout_agent.faults.contract import DurationMs, Effect, Hold, Host, Meter, Record, Refusal
from brownout_agent.faults.network_rules import FAMILY, Treatment, leases, table_name
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_table import NetworkFault, PacketCounts, PacketMeter
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.nftables import Nftables, NftablesError, read_timeouts

TOLERANCE = 0.05
"""By how much of the time down that was asked for the achieved one may miss it."""
_SHORTEST_MS = 100
"""The kernel's time-outs are good to a tick of its clock, 10 ms at most."""
_KEPT_MS = 30_000
"""For so long after its end a time down stands in the table, for the meter to read."""
_NS_PER_MS = 1_000_000


class FlapParameters(NetworkParameters):
    """Which packets vanish, and when."""

    every: Annotated[DurationMs, Field(description="from one time down to the next, like 10s")]
    down: Annotated[DurationMs, Field(description="how long it stays down each time, like 3s; less than `every`")]

    @model_validator(mode="after")
    def _check_times(self) -> "FlapParameters":
        if self.down < _SHORTEST_MS:
            raise ValueError(f"`down` is at least {_SHORTEST_MS}ms, as the kernel's time-outs are not exact")
        if self.every - self.down < _SHORTEST_MS:
            raise ValueError(f"`every` is at least {_SHORTEST_MS}ms more than `down`; never up is network.blackhole")
        return self


@dataclass(frozen=True, slots=True)
class TimeDown:
    """One time down as the kernel has it: when it began (CLOCK_BOOTTIME), and how long it was to last."""

    began_ns: int
    length_ns: int


def flap(down_ms: int) -> Treatment:
    """Drop every packet while both families stand in the set `down`, from now on for the first time."""
    return Treatment(
        lambda direction: [
            f"counter name {direction}_seen",
            "meta nfproto != @down accept",
            f"counter name {direction}_dropped drop",
        ],
        (
            f"set down {{ type nf_proto; flags timeout\nelements = {leases(down_ms)}\n}}",
            f"set times_down {{ type mark; flags timeout\nelements = {_kept(0, down_ms)}\n}}",
        ),
    )


def go_down(table: str, number: int, down_ms: int) -> str:
    """The commands, one transaction, that begin a time down and note it."""
    return (
        f"add element {FAMILY} {table} down {leases(down_ms)}\n"
        f"add element {FAMILY} {table} times_down {_kept(number, down_ms)}\n"
    )


class NetworkFlap(NetworkFault[FlapParameters]):
    """Drops every packet that is meant, some of the time."""

    kind = "network.flap"
    summary = "Drop all traffic to and from peers, ports or everyone, again and again for a while."
    Parameters = FlapParameters

    def tried(self) -> Treatment:
        return flap(_SHORTEST_MS)

    def treatment(self, parameters: FlapParameters, scope: Scope) -> Treatment:
        return flap(round(parameters.down))

    def keep(self, nft: Nftables, parameters: FlapParameters, hold: Hold) -> NoReturn:
        table, due_ns = table_name(hold.fault_id), boottime_ns()
        latest_ms = (parameters.every - parameters.down) / 2
        number = 0
        while True:
            number += 1
            due_ns += round(parameters.every * _NS_PER_MS)
            _wait_until(due_ns)
            if boottime_ns() - due_ns > latest_ms * _NS_PER_MS:
                continue  # this holder was stopped, or its host suspended
            try:
                nft.run(go_down(table, number, round(parameters.down)))
            except NftablesError as error:
                raise Refusal(f"it could not go down for the {number + 1}. time: {error}") from error

    def measure(self, record: Record[FlapParameters], host: Host) -> Meter:
        return _DownMeter(record)


class _DownMeter(PacketMeter):
    """Beside the rules' counters: the times down, by the ages that the kernel tells of its sets' elements."""

    def __init__(self, record: Record[FlapParameters]) -> None:
        super().__init__(record)
        self._parameters = record.parameters
        self._times: dict[int, TimeDown] = {}
        self._read_ns = 0

    def sample(self) -> None:
        super().sample()
        try:
            read = read_timeouts(FAMILY, self.table, "times_down")
        except NftablesError as error:
            self.lost = f"; the times down in table {self.table} could not be read: {error}"
            return
        self._read_ns = boottime_ns()
        for key, (timeout_ms, left_ms) in read.items():
            began_ns = self._read_ns - (timeout_ms - left_ms) * _NS_PER_MS
            self._times.setdefault(int(key, 0), TimeDown(began_ns, (timeout_ms - _KEPT_MS) * _NS_PER_MS))

    def judged(self) -> Effect:
        return judge_flap(self._parameters, self.scope, self.counts, self._times, self._read_ns)


def judge_flap(
    parameters: FlapParameters,
    scope: Scope,
    counts: dict[str, PacketCounts],
    times: Mapping[int, TimeDown],
    now_ns: int,
) -> Effect:
    """Proved when it was down for as long as asked until now, and dropped a packet. `times` are by their number."""
    asked, unit = 100 * parameters.down / parameters.every, "% of time"
    if not times:
        return Effect(asked, None, unit, False, "no time down was seen")
    first = min(times)
    every_ns, down_ns = (round(one * _NS_PER_MS) for one in (parameters.every, parameters.down))
    periods, rest_ns = divmod(now_ns - times[first].began_ns + first * every_ns, every_ns)
    asked_ns = max(periods * down_ns + min(rest_ns, down_ns), 1)
    achieved_ns = sum(min(one.length_ns, now_ns - one.began_ns) for one in times.values())
    seen = sum(count.seen for count in counts.values())
    dropped = sum(count.dropped for count in counts.values())
    why = (
        f"down for {achieved_ns / 1e9:.2f} of the {asked_ns / 1e9:.2f} s asked, {len(times)} times, by the kernel's "
        f"time-outs; it dropped {dropped} of {seen} packets ({scope.text})"
    )
    is_as_asked = abs(achieved_ns - asked_ns) <= TOLERANCE * asked_ns
    return Effect(asked, asked * achieved_ns / asked_ns, unit, is_as_asked and dropped > 0, why)


def _kept(number: int, down_ms: int) -> str:
    return f"{{ {number} timeout {down_ms + _KEPT_MS}ms }}"


def _wait_until(due_ns: int) -> None:
    while (left_ns := due_ns - boottime_ns()) > 0:
        time.sleep(left_ns / 1e9)
