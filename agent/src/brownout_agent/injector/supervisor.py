"""The supervisor carries out what the lifecycle says: it owns journal, holders, timers, leases and meters.

Faults live here and nowhere else. A connection that goes away changes nothing but the lease.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Effect, Fault, FaultParameters, Host, Meter, Record, Refusal
from brownout_agent.injector import lifecycle
from brownout_agent.injector.holder import Holder, HolderFailed, Ready
from brownout_agent.injector.journal import FINISHED, Entry, Journal, JournalError, Mark
from brownout_agent.injector.lifecycle import Cause
from brownout_agent.injector.policy import DURATION_CEILING_S, Policy
from brownout_agent.injector.undoing import undo_and_verify
from brownout_agent.kernel.clock import boottime_ns

TICK_S = 0.05
MEASURE_EVERY_S = 1.0
RETRY_EVERY_S = 10.0
PREPARE_TIMEOUT_S = 5.0
LEASE_CEILING_S = 300.0
_PAST_KEPT = 200
_PAST_TOLD = 50

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """What an Inject asks for, after the wire and before any check."""

    fault_id: str
    run_id: str
    environment: str
    kind: str
    parameters: dict[str, Any]
    duration_s: float
    lease_s: float


@dataclass(frozen=True, slots=True)
class FaultStatus:
    """What listeners are told of one fault."""

    fault_id: str
    kind: str
    state: Mark
    at_boottime_ns: int
    cause: str = ""
    message: str = ""
    residue: tuple[str, ...] = ()
    effect: Effect | None = None


@dataclass(slots=True)
class _Live:
    """A fault that this process looks after."""

    order: Order
    fault: Fault[Any]
    parameters: FaultParameters
    facts: dict[str, Any]
    host: Host
    lease_ends_ns: int
    state: Mark | None = None
    ends_ns: int | None = None
    holder: Holder | None = None
    meter: Meter | None = None
    measured_ns: int = 0
    cause: str = ""
    effect: Effect | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Supervisor:
    """All faults of this host, from order to clean."""

    def __init__(self, journal: Journal, policy: Policy, tell: Callable[[FaultStatus], None]) -> None:
        self._journal = journal
        self._policy = policy
        self._tell = tell
        self._live: dict[str, _Live] = {}
        self._past = {entry.fault_id: _past_status(entry) for entry in journal.entries.values() if entry.kind}
        self._settled = asyncio.Event()
        self._settled.set()

    # ---- what the agent may ask -------------------------------------------------------------------------------

    async def inject(self, order: Order, host: Host) -> bool:
        """Take an order on; it goes on in the background. False when this very order was taken on before.

        Raises:
            Refusal: definite, nothing was touched and nothing will be.
        """
        known = self._journal.entries.get(order.fault_id)
        if known is not None and known.mark is Mark.REFUSED_FOR_EVER:
            raise Refusal("its stop came before its start")
        if known is not None:
            return False
        fault, parameters = self._check(order)
        host = replace(host, protected_pids=host.protected_pids | self._holder_pids())
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT_S):  # names are resolved there
                facts = await asyncio.to_thread(fault.prepare, parameters, host)
        except TimeoutError:
            raise Refusal(f"{order.kind} was still looking at this host after {PREPARE_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise Refusal(f"{order.kind} could not look at this host: {error}") from error
        lease_ends_ns = boottime_ns() + int(order.lease_s * 1e9)
        live = _Live(order, fault, parameters, facts, host, lease_ends_ns)
        self._live[order.fault_id] = live
        self._settled.clear()
        self._feed(live, lifecycle.Accepted())
        return True

    def stop(self, fault_id: str, reason: str) -> None:
        """End a fault now. One that was never heard of is refused for ever; one that is over stays over."""
        if fault_id in self._live:
            self._feed(self._live[fault_id], lifecycle.End(Cause.STOPPED, reason))
        elif fault_id not in self._journal.entries:
            self._journal.bury(fault_id)

    def renew(self) -> None:
        """The controller lives: every lease starts anew."""
        now = boottime_ns()
        for live in self._live.values():
            live.lease_ends_ns = now + int(live.order.lease_s * 1e9)

    def statuses(self) -> list[FaultStatus]:
        """Every fault that is not over, and the latest that are."""
        return [*list(self._past.values())[-_PAST_TOLD:], *(self._status(live) for live in self._live.values())]

    def _holder_pids(self) -> frozenset[int]:
        return frozenset(key.pid for live in self._live.values() if live.holder for key in live.holder.keys)

    # ---- time ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch deadlines, leases and meters until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            now = boottime_ns()
            for live in list(self._live.values()):
                self._look_at(live, now)

    async def shut_down(self) -> bool:
        """Undo everything; True when all is clean."""
        for live in list(self._live.values()):
            self._feed(live, lifecycle.End(Cause.SHUTDOWN, "the injector was asked to end"))
        await self._settled.wait()
        return not self._journal.unfinished

    def _look_at(self, live: _Live, now_ns: int) -> None:
        if live.state is Mark.RESIDUE:
            if now_ns - live.measured_ns > RETRY_EVERY_S * 1e9:
                live.measured_ns = now_ns
                self._feed(live, lifecycle.Retry())
        elif live.state is Mark.UNDOING:
            return
        elif live.ends_ns is not None and now_ns >= live.ends_ns:
            self._feed(live, lifecycle.End(Cause.DURATION))
        elif now_ns >= live.lease_ends_ns:
            reason = f"nobody renewed the lease of {live.order.lease_s:g} s"
            self._feed(live, lifecycle.End(Cause.LEASE_LOST, reason))
        elif live.meter is not None and now_ns - live.measured_ns >= MEASURE_EVERY_S * 1e9:
            self._measure(live, now_ns)
            self._tell(self._status(live))

    # ---- carrying out ---------------------------------------------------------------------------------------------

    def _check(self, order: Order) -> tuple[Fault[Any], FaultParameters]:
        fault = catalogue().get(order.kind)
        if fault is None:
            raise Refusal(f"this host knows no fault `{order.kind}`; it knows {', '.join(catalogue())}")
        if self._journal.damaged:
            raise Refusal("the journal on this host is damaged", "next: brownout-injector doctor, on the host")
        if not 0 < order.duration_s <= DURATION_CEILING_S:
            raise Refusal(f"a duration of {order.duration_s:g} s; the limits are 0 and {DURATION_CEILING_S:g} s")
        if not 0 < order.lease_s <= LEASE_CEILING_S:
            raise Refusal(f"a lease of {order.lease_s:g} s; the limits are 0 and {LEASE_CEILING_S:g} s")
        try:
            parameters = fault.Parameters.model_validate(order.parameters)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise Refusal(f"{order.kind}: parameter {name}: {first['msg']}") from error
        self._policy.check(order.kind, parameters, order.duration_s, order.environment, len(self._live))
        return fault, parameters

    def _feed(self, live: _Live, event: lifecycle.Event) -> None:
        live.state, instructions = lifecycle.step(live.state, event)
        for instruction in instructions:
            self._carry_out(live, instruction)

    def _carry_out(self, live: _Live, instruction: lifecycle.Instruction) -> None:
        match instruction:
            case lifecycle.Record():
                self._record(live)
            case lifecycle.Note():
                self._note(live, instruction)
            case lifecycle.Spawn():
                self._start(live, self._spawn(live))
            case lifecycle.Go():
                live.ends_ns = boottime_ns() + int(live.order.duration_s * 1e9)
                self._start(live, self._go(live))
            case lifecycle.StartMeasuring():
                self._start_measuring(live)
            case lifecycle.Undo():
                self._start(live, self._undo(live))
            case lifecycle.Report(message):
                self._report(live, message)

    def _start(self, live: _Live, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        live.tasks.add(task)
        task.add_done_callback(live.tasks.discard)

    def _record(self, live: _Live) -> None:
        order = live.order
        entry = Entry(
            order.fault_id, Mark.RECORDED, order.kind, order.run_id, order.parameters, live.facts, order.duration_s
        )
        try:
            self._journal.record(entry)
        except JournalError as error:
            del self._live[order.fault_id]
            self._settle()
            raise Refusal(str(error)) from error

    def _note(self, live: _Live, note: lifecycle.Note) -> None:
        live.cause = live.cause or note.cause
        changes: dict[str, Any] = {"facts": live.facts, "residue": note.residue, "cause": live.cause}
        if live.holder is not None:
            changes["holders"] = live.holder.keys
        try:
            self._journal.mark(live.order.fault_id, note.mark, **changes)
        except JournalError as error:
            # An undo goes on without its mark: an old record left open is undone once more, which does no harm.
            log.error("%s of %s could not be noted: %s", note.mark, live.order.fault_id, error)
            if note.mark in {Mark.HELD, Mark.ACTIVE}:
                failed = lifecycle.End(Cause.APPLY_FAILED, str(error))
                asyncio.get_running_loop().call_soon(self._feed, live, failed)

    async def _spawn(self, live: _Live) -> None:
        try:
            live.holder = await Holder.spawn(live.order.kind, live.order.fault_id)
        except HolderFailed as error:
            self._feed(live, lifecycle.Failed(str(error)))
            return
        self._feed(live, lifecycle.Spawned(live.holder.key))

    async def _go(self, live: _Live) -> None:
        assert live.holder is not None
        try:
            ready: Ready = await live.holder.go(live.order.parameters, live.facts, live.order.duration_s)
        except HolderFailed as error:
            self._feed(live, lifecycle.Failed(str(error)))
            return
        live.facts = {**live.facts, **ready.facts}
        self._feed(live, lifecycle.Applied())
        self._feed(live, lifecycle.HolderDied(await live.holder.died()))

    def _start_measuring(self, live: _Live) -> None:
        try:
            live.meter = live.fault.measure(self._as_record(live), live.host)
        except OSError as error:
            log.warning("%s cannot be measured: %s", live.order.fault_id, error)
            return
        live.measured_ns = boottime_ns()

    def _measure(self, live: _Live, now_ns: int) -> None:
        assert live.meter is not None
        live.measured_ns = now_ns
        try:
            live.meter.sample()
            live.effect = live.meter.effect()
        except OSError as error:
            log.warning("%s: a reading failed: %s", live.order.fault_id, error)

    async def _undo(self, live: _Live) -> None:
        if live.meter is not None:
            self._measure(live, boottime_ns())
            live.meter = None
        keys = live.holder.keys if live.holder else ()
        record = self._as_record(live)
        residue = await asyncio.to_thread(undo_and_verify, live.fault, record, keys)
        if live.holder is not None and not residue:
            await live.holder.end()
        live.measured_ns = boottime_ns()
        self._feed(live, lifecycle.Undone(tuple(residue)))

    def _report(self, live: _Live, message: str) -> None:
        status = self._status(live, message)
        if live.state in FINISHED:
            self._past[live.order.fault_id] = status
            del self._live[live.order.fault_id]
            for fault_id in list(self._past)[:-_PAST_KEPT]:
                del self._past[fault_id]
        self._tell(status)
        self._settle()

    def _settle(self) -> None:
        if all(live.state is Mark.RESIDUE for live in self._live.values()):
            self._settled.set()

    def _as_record(self, live: _Live) -> Record[Any]:
        keys = live.holder.keys if live.holder else ()
        return Record(live.order.fault_id, live.parameters, live.facts, live.order.duration_s, keys)

    def _status(self, live: _Live, message: str = "") -> FaultStatus:
        entry = self._journal.entries.get(live.order.fault_id)
        return FaultStatus(
            fault_id=live.order.fault_id,
            kind=live.order.kind,
            state=live.state or Mark.RECORDED,
            at_boottime_ns=boottime_ns(),
            cause=live.cause,
            message=message,
            residue=entry.residue if entry else (),
            effect=live.effect,
        )


def _past_status(entry: Entry) -> FaultStatus:
    """What an earlier life of the injector, or the reaper, left in the journal."""
    return FaultStatus(entry.fault_id, entry.kind, entry.mark, entry.at_boottime_ns, entry.cause, "", entry.residue)
