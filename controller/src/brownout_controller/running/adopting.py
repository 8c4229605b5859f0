"""Runs whose controller is gone: taken over, their faults stopped wherever they may be, and closed with what is known.

Every controller does so for as long as it lives. Nothing is carried on: a run that nobody watched for a while has
nothing to say about failover, and its hosts have undone its faults when their lease ran out.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from brownout_protos.v1 import fault_pb2, fleet_pb2

from brownout_controller.analysis.residue import unknown
from brownout_controller.analysis.verdict import judge
from brownout_controller.exit_codes import ExitCode
from brownout_controller.fleet.sessions import Arrival, Fleet, HostState
from brownout_controller.record import Event, EventKind, FaultOutcome, HostResidue, ResidueState, RunRecord, Verdict
from brownout_controller.reporting.document import from_document, to_document
from brownout_controller.running.machine import fault_id
from brownout_controller.running.timeline import Timeline
from brownout_controller.store.database import StoreError
from brownout_controller.store.owners import BEAT_EVERY_S, Owners
from brownout_controller.store.store import Orphan, RunTaken, Store

CONFIRM_WITHIN_S = 40.0
"""Lease (10 s), the agents' way back, and the undoing itself; a run is closed within a minute in any case."""
_REASON = "the controller of its run died"

log = logging.getLogger(__name__)


class Undoing:
    """What hosts have said of the faults of one orphan, so far. No I/O: messages in, what is open out."""

    def __init__(self, orphan: Orphan) -> None:
        carrier = orphan.carrier
        self.agents = dict(carrier.hosts)
        self._faults = {
            host: {fault_id(carrier.run_key, name, host) for name in carrier.faults} for host in carrier.hosts
        }
        self._stopped: set[tuple[str, str]] = set()
        self._states: dict[str, fault_pb2.FaultReport] = {}

    def orders(self, host: str) -> list[fault_pb2.Stop]:
        """A stop for every fault that may be there. One that never was is refused from then on."""
        return [fault_pb2.Stop(fault_id=one, reason=_REASON) for one in sorted(self._faults.get(host, ()))]

    def heard(self, host: str, reports: Iterable[fault_pb2.FaultReport]) -> None:
        """A host spoke of its faults."""
        self._states |= {report.fault_id: report for report in reports if report.fault_id in self._faults[host]}

    def answered(self, host: str, reply: fault_pb2.OrderReply) -> None:
        """A host answered a stop."""
        if reply.outcome == fault_pb2.OrderReply.ACCEPTED:
            self._stopped.add((host, reply.fault_id))

    def state_of(self, one: str) -> str:
        """`clean`, `residue`, `unknown`, or "" where its host never had it."""
        report = self._states.get(one)
        if report is None:
            return ""
        return {fault_pb2.CLEAN: "clean", fault_pb2.RESIDUE: "residue"}.get(report.state, "unknown")

    def open_on(self, host: str) -> bool:
        """Whether a host has still to say that every fault of this run is gone, or that one cannot be undone."""
        faults = self._faults[host]
        return not all((host, one) in self._stopped and self.state_of(one) != "unknown" for one in faults)

    def had_any(self, host: str) -> bool:
        """Whether a host has spoken of a fault of this run."""
        return any(self.state_of(one) for one in self._faults[host])

    def confirmed(self, host: str) -> bool:
        """Whether a host has said that nothing of this run is on it."""
        return not self.open_on(host) and not any(self.state_of(one) == "residue" for one in self._faults[host])


class Adopter:
    """One controller's care for what others have left."""

    def __init__(
        self,
        store: Store,
        owners: Owners,
        fleet: Fleet,
        controller_id: str,
        may_return: Callable[[str], bool],
        leave: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`may_return` tells of an agent's id whether it could ever connect here, `leave` whether it will elsewhere."""
        self._store = store
        self._owners = owners
        self._fleet = fleet
        self._controller_id = controller_id
        self._may_return = may_return
        self._leave = leave
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Say that this controller lives, and close what dead ones left, until cancelled."""
        try:
            while True:
                try:
                    if not await asyncio.to_thread(self._owners.beat, self._controller_id):
                        log.error("this controller was silent for so long that others took it for dead")
                    for orphan in await asyncio.to_thread(self._adopt):
                        self._start(orphan)
                except StoreError as error:
                    log.error("%s", error)
                await asyncio.sleep(BEAT_EVERY_S)
        finally:
            for task in self._closing:
                task.cancel()

    def _adopt(self) -> list[Orphan]:
        self._owners.living()  # forgets the dead
        return self._store.adopt(self._controller_id, lambda left: not any(map(self._leave, left.hosts.values())))

    def _start(self, orphan: Orphan) -> None:
        log.warning("run %d was left by a controller that died; its faults are stopped and it is closed", orphan.number)
        task = asyncio.create_task(self._close(orphan))
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a run that was taken over is not closed; the next controller will try again", exc_info=error)

    async def _close(self, orphan: Orphan) -> None:
        undoing = Undoing(orphan)
        await self._stop_all(undoing)
        document, verdict, code, headline = await asyncio.to_thread(conclude_orphan, orphan, undoing)
        while True:
            try:
                await asyncio.to_thread(
                    self._store.finish_run, orphan.number, document, verdict, code, headline, self._controller_id
                )
                return
            except RunTaken:
                return  # this controller was taken for dead in its turn, and somebody else closes it
            except StoreError as error:
                log.error("run %d cannot be closed yet: %s", orphan.number, error)
                await asyncio.sleep(BEAT_EVERY_S)

    async def _stop_all(self, undoing: Undoing) -> None:
        """Send every stop, again to whoever comes back, until all have answered or the time is up."""
        changed = asyncio.Event()

        def arrived(arrival: Arrival) -> None:
            self._take(undoing, arrival)
            changed.set()

        returning = {host for host, agent in undoing.agents.items() if await asyncio.to_thread(self._may_return, agent)}
        forget = self._fleet.listen(arrived)
        try:
            for host in self._fleet.connected:
                self._speak_to(undoing, host)
            async with asyncio.timeout(CONFIRM_WITHIN_S):
                while any(undoing.open_on(host) for host in returning):
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            log.warning("not every host has confirmed in %g s", CONFIRM_WITHIN_S)
        finally:
            forget()

    def _returns(self, agent_id: str) -> bool:
        try:
            return self._may_return(agent_id)
        except StoreError:
            return True  # nobody can say, so it is waited for

    def _take(self, undoing: Undoing, arrival: Arrival) -> None:
        host, message = arrival.host, arrival.message
        if undoing.agents.get(host.name) != host.agent_id:
            return
        if arrival.up:
            self._speak_to(undoing, host)
        elif message is not None:
            match message.WhichOneof("body"):
                case "hello":
                    self._speak_to(undoing, host)
                case "report":
                    undoing.heard(host.name, [message.report])
                case "reply":
                    undoing.answered(host.name, message.reply)

    @staticmethod
    def _speak_to(undoing: Undoing, host: HostState) -> None:
        if host.session is None or undoing.agents.get(host.name) != host.agent_id:
            return
        undoing.heard(host.name, host.hello.faults)
        for order in undoing.orders(host.name):
            host.session.send(fleet_pb2.ControllerMessage(stop=order))


def conclude_orphan(orphan: Orphan, undoing: Undoing) -> tuple[dict[str, Any] | None, str, int, str]:
    """Document, verdict, exit code and headline of a run that its controller left.

    The exit code is what the record says whenever it is judged again: 13 as long as anything is not known to be undone.
    """
    record, trouble = None, ""
    if orphan.draft is not None:
        try:
            record = from_document(orphan.draft)
        except ValueError as error:  # another release kept it
            trouble = f"; what was kept of it cannot be read: {error}"
    residue = residue_of(undoing, record)
    headline = _headline(undoing, residue) + trouble
    if record is None:
        # Of a run whose record cannot be read nobody knows which hosts had faults before.
        code = ExitCode.UNDO_NOT_CONFIRMED if residue or trouble else ExitCode.INTERNAL_ERROR
        return None, Verdict.ERRORED.value, int(code), headline
    closed = close_record(record, orphan, undoing, headline, Timeline.start().now())
    findings = judge(closed)
    document = to_document(closed, findings) | {"headline": headline}
    return document, findings.verdict.value, int(findings.exit_code), headline


def residue_of(undoing: Undoing, record: RunRecord | None) -> tuple[HostResidue, ...]:
    """What the residue audit comes to. How hosts looked before died with their controller: where a fault was, nothing
    can be compared any more, and what an audit that was finished has found stands.
    """
    audited = {found.host: found for found in record.residue} if record else {}
    had_faults = {fault.host for fault in record.faults if fault.active_ns is not None} if record else set()
    found = []
    for host in sorted({*undoing.agents, *audited}):
        known = audited.get(host)
        if known is not None and known.state is ResidueState.RESIDUE:
            found.append(known)
        elif not undoing.confirmed(host):
            found.append(unknown(host, "it has not confirmed that nothing of this run is on it"))
        elif known is not None and known.state is ResidueState.CLEAN:
            found.append(known)
        elif undoing.had_any(host) or host in had_faults:
            found.append(unknown(host, "how it looked before the first fault died with the controller"))
    return tuple(found)


def _headline(undoing: Undoing, residue: tuple[HostResidue, ...]) -> str:
    died = "its controller died in mid-run; "
    if unconfirmed := sorted(host for host in undoing.agents if not undoing.confirmed(host)):
        return died + f"UNDO NOT CONFIRMED by {', '.join(unconfirmed)}: type `brownout-injector reap` there"
    if open_hosts := [found.host for found in residue if found.state is not ResidueState.CLEAN]:
        hosts = ", ".join(open_hosts)
        return (
            died + f"every host confirmed that its faults are gone; NOT AUDITED for residue: {hosts}: brownout doctor"
        )
    return died + "every host confirmed that nothing of it is on"


def close_record(record: RunRecord, orphan: Orphan, undoing: Undoing, headline: str, now_ns: int) -> RunRecord:
    """The record as it was last kept, with every event that was kept after it and what its hosts said since."""
    told = {(event.at_ns, event.kind, event.subject, event.host) for event in record.events}
    later = [event for event in orphan.events if (event.at_ns, event.kind, event.subject, event.host) not in told]
    now_ns = max(now_ns, *(event.at_ns for event in (*record.events, *later)), record.started_ns)  # clocks differ
    end = Event(now_ns, EventKind.RUN_ENDED, "run", message=headline)
    return replace(
        record,
        events=tuple(sorted([*record.events, *later, end], key=lambda event: event.at_ns)),
        faults=tuple(_closed_fault(fault, undoing) for fault in record.faults),
        residue=residue_of(undoing, record),
        ended_ns=now_ns,
        stopped_by="error",
        stop_reason="its controller died",
    )


def _closed_fault(fault: FaultOutcome, undoing: Undoing) -> FaultOutcome:
    if fault.undo != "unknown":
        return fault
    if state := undoing.state_of(fault.fault_id):
        return replace(fault, undo=state, end_cause=fault.end_cause or "stopped")
    if fault.active_ns is None and fault.host in undoing.agents and undoing.confirmed(fault.host):
        return replace(fault, undo="not_needed")  # its host never had it, and takes it no more
    return fault
