"""The supervisor carries out what the lifecycle says: it owns journal, holders, timers, leases and meters.

Faults live here and nowhere else. A connection that goes away changes nothing but the lease.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from brownout_agent.faults.contract import TRIAL_S, Fault, FaultParameters, Host, Record, Refusal
from brownout_agent.injector import lifecycle
from brownout_agent.injector.admission import Admission, prepare
from brownout_agent.injector.deadlines import Deadlines
from brownout_agent.injector.holder import END_TIMEOUT_S, Holder, HolderFailed, Ready
from brownout_agent.injector.journal import FINISHED, Entry, Journal, JournalError, Mark
from brownout_agent.injector.lifecycle import Cause
from brownout_agent.injector.live import FaultStatus, Live, past_status
from brownout_agent.injector.measuring import Readings
from brownout_agent.injector.order import Order, check_id
from brownout_agent.injector.reaper import note_reaped, undo_all
from brownout_agent.injector.threads import in_thread
from brownout_agent.injector.trial import Trial
from brownout_agent.injector.undoing import UNDO_TIMEOUT_S, outlived, undo_and_verify
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.processes import ProcessKey

TICK_S = 0.05
MEASURE_EVERY_S = 1.0
RETRY_EVERY_S = 10.0
_PAST_KEPT = 200
_PAST_TOLD = 50

log = logging.getLogger(__name__)


class Supervisor:
    """All faults of this host, from order to clean."""

    def __init__(
        self,
        journal: Journal,
        admission: Admission,
        tell: Callable[[FaultStatus], None],
        ask_control: Callable[[str, int], bool] = lambda _fault_id, _within_ms: False,
    ) -> None:
        """`ask_control` has the agent prove, within so many ms, that it reaches its controller; False: there is none.

        The proof is `confirm`.
        """
        self._journal = journal
        self._admission = admission
        self._tell = tell
        self._ask_control = ask_control
        self._live: dict[str, Live] = {}
        self._past = {entry.fault_id: past_status(entry) for entry in journal.entries.values()}
        self._settled = asyncio.Event()
        self._is_closing = False
        self._renewed_ns = 0
        self._halts = 0
        self._halts_under_way = 0

    # ---- what the agent may ask -------------------------------------------------------------------------------

    async def inject(self, order: Order, host: Host) -> bool:
        """Take an order on; it goes on in the background. False when this very order was taken on before.

        Raises:
            Refusal: definite, nothing was touched and nothing will be.
        """
        if self._is_known(order.fault_id):
            return False
        fault, parameters = self._check(order)
        arrived_ns = boottime_ns()
        halts = self._halts
        host = replace(host, protected_pids=host.protected_pids | self._holder_pids(), unfinished=self._journal.begun)
        facts = await prepare(fault, parameters, host)
        # The world went on meanwhile: the same order by another connection, a stop, other faults, the injector's end.
        if self._is_known(order.fault_id):
            return False
        self._check(order)
        if halts != self._halts:
            raise Refusal("this host was halted while the order was looked at")
        order = self._admission.take(order)
        # From the controller's last word, and not from now: it may have died while the order was looked at.
        deadlines = Deadlines(order.lease_s, max(arrived_ns, self._renewed_ns) + int(order.lease_s * 1e9))
        live = Live(order, fault, parameters, facts, host, deadlines)
        self._live[order.fault_id] = live
        self._feed(live, lifecycle.Accepted())
        return True

    def stop(self, fault_id: str, reason: str) -> None:
        """End a fault now. One that was never heard of is refused for ever; one that is over stays over.

        Raises:
            Refusal: that is no id.
            JournalError: it could not be noted that this id is refused from now on.
        """
        check_id(fault_id)
        if fault_id in self._live:
            self._feed(self._live[fault_id], lifecycle.End(Cause.STOPPED, reason))
        elif fault_id not in self._journal.entries:
            self._past[fault_id] = past_status(self._journal.bury(fault_id))
            self._tell(self._past[fault_id])

    async def halt(self, reason: str) -> tuple[str, ...]:
        """End every fault now, those of an earlier life included, and refuse orders meanwhile.

        Returns the ids of the faults that are not verified gone; none when the kernel was seen clean of all.
        """
        self._halts += 1
        self._halts_under_way += 1
        try:
            for live in list(self._live.values()):
                self._feed(live, lifecycle.End(Cause.HALTED, reason))
                self._feed(live, lifecycle.Retry())
            leftovers = await self._undo_leftovers()
            self._note_whether_settled()
            await self._settled.wait()
            return (*leftovers, *self._live)
        finally:
            self._halts_under_way -= 1

    def renew(self) -> None:
        """The controller lives: every lease that has not run out starts anew."""
        self._renewed_ns = now = boottime_ns()
        for live in self._live.values():
            if live.deadlines.renew(now):
                self._extend(live)

    def confirm(self, fault_id: str) -> None:
        """The agent has proved that it reaches its controller while this fault is in effect."""
        live = self._live.get(fault_id)
        if live is not None and live.trial is not None:
            live.trial.answer()

    def statuses(self) -> list[FaultStatus]:
        """Every fault that is not over, and the latest that are."""
        past = list(self._past.values())
        left = [status for status in past[:-_PAST_TOLD] if status.state not in FINISHED]
        return [*past[-_PAST_TOLD:], *left, *(self._status(live) for live in self._live.values())]

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

    async def retry_leftovers(self) -> None:
        """Try again, until cancelled, what an earlier life left and what is undone but could not be noted."""
        while True:
            await asyncio.sleep(RETRY_EVERY_S)
            await self._undo_leftovers()

    async def _undo_leftovers(self) -> list[str]:
        """Undo what is unfinished and no fault of this life; returns the ids of those that leave something."""
        entries = [entry for entry in self._journal.unfinished if entry.fault_id not in self._live]
        if not entries:
            return []
        left = await asyncio.wrap_future(in_thread(partial(undo_all, entries), or_here=True))
        for entry in note_reaped(self._journal, left):
            self._past[entry.fault_id] = past_status(entry)
            self._tell(self._past[entry.fault_id])
        return [fault_id for fault_id, residue in left.items() if residue]

    async def shut_down(self) -> bool:
        """Undo everything; True when all is clean. Orders are refused from now on."""
        self._is_closing = True
        for live in list(self._live.values()):
            self._feed(live, lifecycle.End(Cause.SHUTDOWN, "the injector was asked to end"))
            self._feed(live, lifecycle.Retry())
        self._note_whether_settled()
        await self._settled.wait()
        return not self._journal.unfinished

    def _look_at(self, live: Live, now_ns: int) -> None:
        if live.state is Mark.RESIDUE:
            if now_ns - live.looked_ns > RETRY_EVERY_S * 1e9:
                self._feed(live, lifecycle.Retry())
        elif live.state is Mark.UNDOING:
            return
        elif live.trial is not None and (harm := live.trial.outcome(now_ns)) is not None:
            self._end_trial(live, harm)  # before its time: a loop that is late must not lose a proof that came in time
        elif (end := live.deadlines.due(now_ns)) is not None:
            self._feed(live, end)
        elif live.readings is not None and now_ns - live.looked_ns >= MEASURE_EVERY_S * 1e9:
            live.looked_ns = now_ns
            if (reading := live.readings.take()) is not None:
                self._start(live, self._tell_when_read(live, reading))

    def _begin_trial(self, live: Live, find_harm: Callable[[], str], since_ns: int) -> None:
        live.trial = Trial(find_harm, since_ns)
        live.deadlines.trial_ends_ns = since_ns + int(TRIAL_S * 1e9)
        if not self._ask_control(live.order.fault_id, int(TRIAL_S * 1_000)):
            self._end_trial(live, "no agent is attached that could prove that it reaches its controller")

    def _end_trial(self, live: Live, harm: str) -> None:
        if harm:
            self._feed(live, lifecycle.End(Cause.CONTROL_LOST, harm))
        else:
            live.trial = live.deadlines.trial_ends_ns = None
            self._extend(live)

    def _extend(self, live: Live) -> None:
        """Tell the kernel, by the holder, until when the fault may go on."""
        if live.holder is not None and live.state is Mark.ACTIVE:
            live.holder.extend(live.deadlines.earliest_ns)

    # ---- carrying out ---------------------------------------------------------------------------------------------

    def _is_known(self, fault_id: str) -> bool:
        """Whether this order was taken on before.

        Raises:
            Refusal: it must not be, now or ever.
        """
        check_id(fault_id)
        if self._is_closing:
            raise Refusal("the injector on this host is ending")
        if self._halts_under_way:
            raise Refusal("this host is being halted")
        known = self._journal.entries.get(fault_id)
        if known is not None and known.mark is Mark.REFUSED_FOR_EVER:
            raise Refusal("its stop came before its start")
        return known is not None

    def _check(self, order: Order) -> tuple[Fault[Any], FaultParameters]:
        if self._journal.damaged:
            remedy = "on the host: stop the injector, then `brownout-injector reap` says what is left and what to do"
            raise Refusal("the journal on this host is damaged", remedy)
        return self._admission.check(order, len(self._live), self._journal.entries.values())

    def _feed(self, live: Live, event: lifecycle.Event) -> None:
        live.state, instructions = lifecycle.step(live.state, event)
        self._note_whether_settled()
        try:
            for instruction in instructions:
                self._carry_out(live, instruction)
        except JournalError as error:  # what could not be noted before it is begun is not begun
            self._feed(live, lifecycle.End(Cause.APPLY_FAILED, str(error)))

    def _carry_out(self, live: Live, instruction: lifecycle.Instruction) -> None:
        match instruction:
            case lifecycle.Record():
                self._record(live)
            case lifecycle.Note():
                self._note(live, instruction)
            case lifecycle.Spawn():
                self._start(live, self._spawn(live))
            case lifecycle.Go():
                self._start(live, self._go(live))
            case lifecycle.StartMeasuring():
                make_meter = partial(live.fault.measure, live.as_record(), live.host)
                live.readings = Readings(live.order.fault_id, make_meter)
                live.looked_ns = boottime_ns()
            case lifecycle.Undo():
                self._undo(live)
            case lifecycle.Report(message):
                self._report(live, message)

    def _start(self, live: Live, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        live.tasks.add(task)
        task.add_done_callback(partial(self._ended, live))

    def _ended(self, live: Live, task: asyncio.Task[None]) -> None:
        live.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: a step of its life failed", live.order.fault_id, exc_info=error)
            self._feed(live, lifecycle.Broken(f"{type(error).__name__}: {error}"))

    def _record(self, live: Live) -> None:
        order = live.order
        entry = Entry(
            order.fault_id, Mark.RECORDED, order.kind, order.run_id, order.parameters, live.facts, order.duration_s
        )
        try:
            self._journal.record(entry)
        except JournalError as error:
            del self._live[order.fault_id]
            self._note_whether_settled()
            raise Refusal(str(error)) from error

    def _note(self, live: Live, note: lifecycle.Note) -> None:
        live.cause = live.cause or note.cause
        changes: dict[str, Any] = {"facts": live.facts, "residue": note.residue, "cause": live.cause}
        if live.holder is not None:
            changes["holders"] = live.holder.keys
        try:
            self._journal.mark(live.order.fault_id, note.mark, **changes)
        except JournalError as error:
            if note.mark in {Mark.HELD, Mark.ACTIVE}:
                raise
            # An undo goes on without its mark: an old record left open is undone once more, which does no harm.
            log.error("%s of %s could not be noted: %s", note.mark, live.order.fault_id, error)

    async def _spawn(self, live: Live) -> None:
        try:
            live.holder = await Holder.spawn(live.order.kind, live.order.fault_id)
        except HolderFailed as error:
            self._feed(live, lifecycle.Failed(str(error)))
            return
        if live.state is not Mark.RECORDED:  # it was ended while its holder was being started
            await live.holder.end()
        self._feed(live, lifecycle.Spawned(live.holder.key))

    async def _go(self, live: Live) -> None:
        assert live.holder is not None
        order = live.order
        try:
            find_harm = await self._watch_lifelines(live)
            ready: Ready = await live.holder.go(
                order.parameters,
                live.facts,
                order.duration_s,
                lease_ends_ns=live.deadlines.lease_ends_ns,
                on_trial=find_harm is not None,
            )
        except (HolderFailed, OSError) as error:
            self._feed(live, lifecycle.Failed(str(error)))
            return
        live.facts = {**live.facts, **ready.facts}
        live.deadlines.ends_ns = ready.since_ns + int(order.duration_s * 1e9)
        self._feed(live, lifecycle.Applied())
        if find_harm is not None and live.state is Mark.ACTIVE:
            self._begin_trial(live, find_harm, ready.since_ns)
        self._extend(live)
        words = await live.holder.died()
        # The kernel's timer comes first only where the injector was kept from its own.
        killed_ns = live.holder.killed_ns
        end = None if killed_ns is None else live.deadlines.due(killed_ns)
        self._feed(live, end or lifecycle.HolderDied(words))

    async def _watch_lifelines(self, live: Live) -> Callable[[], str] | None:
        watching = in_thread(partial(live.fault.watch_lifelines, live.as_record(), live.host))
        return await asyncio.wrap_future(watching)

    async def _tell_when_read(self, live: Live, reading: Future[None]) -> None:
        done, _ = await asyncio.wait({asyncio.wrap_future(reading)}, timeout=MEASURE_EVERY_S)
        if done and live.state is Mark.ACTIVE:
            self._tell(self._status(live))

    def _undo(self, live: Live) -> None:
        if live.undo is None:
            keys = live.holder.keys if live.holder else ()
            undoing = partial(_read_and_undo, live.readings, live.fault, live.as_record(), keys)
            live.undo = in_thread(undoing, or_here=True)
        self._start(live, self._see_undone(live, live.undo))

    async def _see_undone(self, live: Live, undo: Future[list[str]]) -> None:
        done, _ = await asyncio.wait({asyncio.wrap_future(undo)}, timeout=UNDO_TIMEOUT_S)
        if done:
            live.undo = None
            residue = undo.result()
            # A holder that was being started or was being told to go when the end came is ended there.
            if others := live.tasks - {asyncio.current_task()}:
                await asyncio.wait(others, timeout=END_TIMEOUT_S)
            residue += outlived(await live.holder.end()) if live.holder is not None and not residue else []
        else:
            residue = [f"undo of {live.fault.kind} has not come back after {UNDO_TIMEOUT_S:g} s"]
        live.looked_ns = boottime_ns()
        self._feed(live, lifecycle.Undone(tuple(residue)))

    def _report(self, live: Live, message: str) -> None:
        status = self._status(live, message)
        if live.state in FINISHED:
            self._past[live.order.fault_id] = status
            del self._live[live.order.fault_id]
            for fault_id in list(self._past)[:-_PAST_KEPT]:
                del self._past[fault_id]
        self._note_whether_settled()
        self._tell(status)

    def _note_whether_settled(self) -> None:
        if all(live.state is Mark.RESIDUE for live in self._live.values()):
            self._settled.set()
        else:
            self._settled.clear()

    def _status(self, live: Live, message: str = "") -> FaultStatus:
        return live.status(self._journal.entries.get(live.order.fault_id), message)


def _read_and_undo(
    readings: Readings | None, fault: Fault[Any], record: Record[Any], holders: tuple[ProcessKey, ...]
) -> list[str]:
    if readings is not None:
        readings.take_last()
    return undo_and_verify(fault, record, holders)
