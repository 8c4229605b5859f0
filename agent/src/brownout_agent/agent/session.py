"""The agent's side of `Fleet.Session`: it dials out, says who it is, passes orders on, and reports back.

It owns no fault. When the stream is lost it passes no more lease renewals on, and the injector undoes by itself.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import grpc
from brownout_protos.v1 import fault_pb2, fleet_pb2, injector_pb2

from brownout_agent import __version__
from brownout_agent.agent.addresses import own_addresses
from brownout_agent.agent.control_trial import ControlTrials
from brownout_agent.agent.controllers import CONTROLLERS_MAX, Addresses, Controllers, is_address
from brownout_agent.agent.identity import Identity, load_epoch, save_authority, save_epoch, save_membership
from brownout_agent.agent.link import InjectorLink
from brownout_agent.agent.observers import Observers
from brownout_agent.agent.outbox import Outbox
from brownout_agent.agent.renewing import renew, retry_in_s
from brownout_agent.agent.stream import Stream, why_not
from brownout_agent.agent.trust import NotTrusted, check_succession
from brownout_agent.epochs import EpochRefused, check_step
from brownout_agent.fingerprint import nothing_read, to_wire
from brownout_agent.host_log import HostLog
from brownout_agent.kernel.clock import boot_id, boottime_ns

_SUCCEED_AFTER_S = (0.2, 1.0)
_RESOLVE_EVERY_S = 30.0
_ADDRESSES_EVERY_S = 2.0
_SUCCESSOR_WITHIN_S = 1.0
_FAULTS_TOLD = 200
OBSERVERS_ALONE_S = 120.0
"""How long probes go on without a controller."""

log = logging.getLogger(__name__)


class Agent:
    """Everything of the talking process, for as long as it lives."""

    def __init__(self, folder: Path, identity: Identity, injector_socket: Path) -> None:
        self._folder = folder
        self._copy = HostLog(folder)
        self._identity = identity
        self._controllers = Controllers(identity.membership)
        self._exempted: Addresses | None = None
        self._outbox = Outbox()
        self._observers = Observers(self._outbox.put)
        self._link = InjectorLink(injector_socket, self._from_injector, identity.membership.agent_id)
        self._link.on_change = self._say_lease
        self._trials = ControlTrials(self._outbox.put, self._link.confirm)
        self._inspected = asyncio.Event()
        self._inspection = injector_pb2.Inspection()
        self._faults: dict[str, fault_pb2.FaultReport] = {}
        self._greeted = False
        self._renew_now = asyncio.Event()
        self._epoch = load_epoch(folder)
        self._heard_ns = boottime_ns()
        self._addresses = own_addresses()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        await self._exempt()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.run())
            group.create_task(self._keep_exempt())
            group.create_task(self._keep_addresses())
            while True:
                await self._session_once(self._controllers.next())
                if boottime_ns() - self._heard_ns > OBSERVERS_ALONE_S * 1e9:
                    self._observers.end_all()
                await asyncio.sleep(self._controllers.back_off_s())

    async def _session_once(self, where: str) -> None:
        try:
            self._link.inspect()
            await self._wait_inspected()
            await self._converse(await self._open(where))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, EpochRefused, NotTrusted, OSError) as error:
            why = why_not(error, self._identity)
            log.info("no session with %s: %s", where, why)
            if isinstance(error, (EpochRefused, NotTrusted)) or "CERTIFICATE_VERIFY_FAILED" in why:
                self._copy.keep_if_new("unknown", "controller.session", where, "refused", why)

    async def _keep_exempt(self) -> None:
        """Names may come to lead elsewhere, and controllers come and go."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RESOLVE_EVERY_S):
                    await self._controllers.changed.wait()
            self._controllers.changed.clear()
            await self._exempt()

    async def _exempt(self) -> None:
        """No fault may cut the way to any controller: when this one dies, another must be reached."""
        addresses = await self._controllers.addresses()
        if addresses != self._exempted:
            self._exempted = addresses
            self._link.exempt(addresses)

    async def _keep_addresses(self) -> None:
        """Addresses move from host to host, as a virtual one does in a failover."""
        while True:
            await asyncio.sleep(_ADDRESSES_EVERY_S)
            if (addresses := own_addresses()) != self._addresses:
                self._addresses = addresses
                if self._greeted:
                    told = fleet_pb2.HostAddresses(addresses=addresses)
                    self._outbox.put(fleet_pb2.AgentMessage(addresses=told))

    async def _open(self, where: str) -> Stream:
        hello = self._hello()
        stream = await Stream.open(self._identity, where, hello)
        try:
            self._welcomed(stream.welcome)
            if (now := self._hello()) != hello:  # an injector that is slow may have answered since it was written
                self._outbox.put(fleet_pb2.AgentMessage(hello=now))
        except BaseException:
            await stream.close()
            raise
        return stream

    async def _converse(self, stream: Stream) -> None:
        """Talk until the stream ends. A renewed certificate brings the next stream before this one is let go."""
        self._greeted = True
        try:
            while True:
                self._outbox.rewind()
                reading, writing, succeeding = tasks = (
                    asyncio.create_task(self._read(stream)),
                    asyncio.create_task(self._write(stream)),
                    asyncio.create_task(self._succeed(stream)),
                )
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                except asyncio.CancelledError:
                    await stream.close(*tasks)
                    raise
                if stream.renewed and reading.done() and reading.exception() is None:
                    # The controller ends a stream when it welcomes the next; that word comes by the other connection.
                    await asyncio.wait((succeeding,), timeout=_SUCCESSOR_WITHIN_S)
                if not succeeding.done() or succeeding.exception() is not None:
                    break
                predecessor, stream = stream, succeeding.result()
                await predecessor.retire(reading, writing)
        finally:
            self._greeted = False
        for trouble in await stream.close(*tasks):
            if isinstance(trouble, Exception):
                raise trouble

    async def _read(self, stream: Stream) -> None:
        while (message := await stream.read()) is not None:
            self._obey(message, stream.welcome.session)

    async def _write(self, stream: Stream) -> None:
        """What the last stream may not have carried, then everything else. The one writer."""
        while not stream.retired:
            await stream.write(await self._outbox.take())

    async def _succeed(self, stream: Stream) -> Stream:
        """Renew the certificate in time, and open the next stream with it."""
        await self._renewed(stream)
        stream.renewed = True
        while True:
            try:
                return await self._open(stream.where)
            except (grpc.aio.AioRpcError, EpochRefused, NotTrusted, OSError) as error:
                log.warning("the old certificate stays in use: %s", why_not(error, self._identity))
                await asyncio.sleep(random.uniform(*_SUCCEED_AFTER_S))  # noqa: S311 - spreads reconnects

    async def _renewed(self, stream: Stream) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._identity.renew_in_s):
                    await self._renew_now.wait()
            try:
                renewed = await renew(stream.stub, self._folder, self._identity)
            except grpc.aio.AioRpcError as error:
                log.warning("the certificate could not be renewed: %s", error.details())
                await asyncio.sleep(retry_in_s(self._identity))
                continue
            except NotTrusted as error:
                self._copy.keep_if_new("unknown", "controller.renew", stream.where, "refused", str(error))
                raise
            self._identity = replace(renewed, membership=self._identity.membership)
            save_membership(self._folder, self._identity.membership)  # controllers may have come while it was renewed
            self._renew_now.clear()
            log.info("the certificate was renewed")
            return

    async def _wait_inspected(self) -> None:
        """Give a running injector a moment to answer, so that the first Hello tells all; without one, go on."""
        try:
            async with asyncio.timeout(2.0):
                await self._inspected.wait()
        except TimeoutError:
            log.warning("%s", self._link.trouble)

    def _hello(self) -> fleet_pb2.Hello:
        membership = self._identity.membership
        return fleet_pb2.Hello(
            version=__version__,
            host=membership.name,
            labels=membership.labels,
            boot_id=boot_id(),
            capabilities=self._inspection.capabilities,
            faults=self._faults.values(),
            epoch_seen=self._epoch,
            policy=self._inspection.policy if self._link.attached else self._link.trouble,
            injector_attached=self._link.attached,
            environment=self._inspection.environment,
            trusts=self._identity.trusts,
            addresses=self._addresses,
        )

    # ---- what the controller says -----------------------------------------------------------------------------

    def _obey(self, message: fleet_pb2.ControllerMessage, session: int) -> None:
        received_ns = self._heard_ns = boottime_ns()
        match message.WhichOneof("body"):
            case "welcome":
                self._welcomed(message.welcome)
                self._outbox.put(fleet_pb2.AgentMessage(hello=self._hello()))  # it is here, and trusts what it was told
            case "clock":
                reply = fleet_pb2.ClockReply(
                    number=message.clock.number, received_boottime_ns=received_ns, sent_boottime_ns=boottime_ns()
                )
                self._outbox.put(fleet_pb2.AgentMessage(clock=reply))
            case "inject":
                self._inject(message.inject, session)
            case "bye":
                log.info("the controller ended the session: %s", message.bye.reason)
            case _:
                self._do(message)

    def _do(self, message: fleet_pb2.ControllerMessage) -> None:
        """What needs no permit of this session."""
        match message.WhichOneof("body"):
            case "stop":
                self._stop(message.stop)
            case "renew":
                self._renew(message.renew)
            case "halt":
                self._halt(message.halt)
            case "fingerprint":
                self._ask_fingerprint(message.fingerprint)
            case "bye":
                log.info("the controller ended the session: %s", message.bye.reason)
            case _:
                self._obey_beside_faults(message)

    def _obey_beside_faults(self, message: fleet_pb2.ControllerMessage) -> None:
        match message.WhichOneof("body"):
            case "observe":
                self._observers.start(message.observe)
            case "end_observe":
                self._observers.end(message.end_observe.observer_id)
            case "pong":
                self._trials.answered(message.pong)

    def _welcomed(self, welcome: fleet_pb2.Welcome) -> None:
        """Said first, and again when the authorities change."""
        others = welcome.authority_pem if welcome.authority_pem != self._identity.authority_pem else b""
        if others:
            check_succession(self._identity.authority_pem, others)  # before anything that it says is kept
        self._accept_epoch(welcome.epoch)
        self._controllers.welcomed()
        self._learn(welcome.controllers)
        if others:
            save_authority(self._folder, others)
            self._identity = replace(self._identity, authority_pem=others)
            log.info("the controller's authorities have changed")
        if welcome.renew:
            self._renew_now.set()
        log.info("in session with controller %s", welcome.controller_version)

    def _learn(self, controllers: Sequence[str]) -> None:
        told = [where for where in controllers if is_address(where)][:CONTROLLERS_MAX]
        membership = replace(self._identity.membership, controllers=told)
        if told and membership != self._identity.membership:
            save_membership(self._folder, membership)
            self._identity = replace(self._identity, membership=membership)
            self._controllers.told(membership)
            log.info("the controllers are %s", ", ".join(membership.in_order))

    def _inject(self, order: fault_pb2.Inject, session: int) -> None:
        own_id = self._identity.membership.agent_id
        if order.agent_id != own_id:
            self._refuse(order.fault_id, f"the order is for agent {order.agent_id or 'nobody'}, and this is {own_id}")
        elif order.session != session:
            self._refuse(order.fault_id, "the order is of another session: replayed, or late")
        elif order.epoch != self._epoch:
            self._refuse(order.fault_id, f"it carries epoch {order.epoch}; this host obeys {self._epoch}")
        elif trouble := self._not_kept(order):
            self._refuse(order.fault_id, f"this host's own copy of the order cannot be kept: {trouble}", "make room")
        elif not self._link.inject(order):
            self._refuse(order.fault_id, self._link.trouble, "start brownout-injector on the host")

    def _not_kept(self, order: fault_pb2.Inject) -> str:
        """Keep what was ordered before anything is done about it; why that failed, or ""."""
        try:
            detail = {"fault_id": order.fault_id, "duration_ms": str(order.duration_ms), "epoch": str(order.epoch)}
            self._copy.keep("controller", "fault.inject", order.kind, "ordered", **detail)
        except OSError as error:
            return str(error)
        return ""

    def _renew(self, order: fault_pb2.RenewLease) -> None:
        if order.epoch == self._epoch:
            self._link.renew(order)

    def _stop(self, order: fault_pb2.Stop) -> None:
        # A stop is obeyed from any controller: stopping never needs a permit.
        if not self._link.stop(order):
            outcome = fault_pb2.OrderReply.INDEFINITE
            reply = fault_pb2.OrderReply(fault_id=order.fault_id, outcome=outcome, reason=self._link.trouble)
            self._outbox.put(fleet_pb2.AgentMessage(reply=reply))

    def _halt(self, order: fault_pb2.Halt) -> None:
        # From any controller, whatever its epoch, as a stop.
        if not self._link.halt(order):
            halted = fault_pb2.Halted(halt_id=order.halt_id, message=self._link.trouble)
            self._outbox.put(fleet_pb2.AgentMessage(halted=halted))

    def _ask_fingerprint(self, order: fault_pb2.TakeFingerprint) -> None:
        if not self._link.fingerprint(order):
            fingerprint = to_wire(nothing_read(self._link.trouble), order.fingerprint_id)
            self._outbox.put(fleet_pb2.AgentMessage(fingerprint=fingerprint))

    def _refuse(self, fault_id: str, reason: str, remedy: str = "") -> None:
        self._copy.keep_if_new("controller", "fault.inject", fault_id, "refused", reason)
        outcome = fault_pb2.OrderReply.REFUSED
        reply = fault_pb2.OrderReply(fault_id=fault_id, outcome=outcome, reason=reason, remedy=remedy)
        self._outbox.put(fleet_pb2.AgentMessage(reply=reply))

    def _accept_epoch(self, epoch: int) -> None:
        check_step(self._epoch, epoch)
        if epoch != self._epoch:
            save_epoch(self._folder, epoch)
            self._epoch = epoch
            self._observers.end_all()  # another controller's; it asks for its own

    # ---- what the injector says -------------------------------------------------------------------------------

    def _from_injector(self, message: injector_pb2.FromInjector) -> None:
        match message.WhichOneof("body"):
            case "reply":
                if message.reply.outcome == fault_pb2.OrderReply.REFUSED:
                    fault_id, reason = message.reply.fault_id, message.reply.reason
                    self._copy.keep_if_new("controller", "fault.inject", fault_id, "refused", reason)
                self._outbox.put(fleet_pb2.AgentMessage(reply=message.reply))
            case "report":
                self._note(message.report)
                self._outbox.put(fleet_pb2.AgentMessage(report=message.report))
            case "halted":
                self._outbox.put(fleet_pb2.AgentMessage(halted=message.halted))
            case "fingerprint":
                self._outbox.put(fleet_pb2.AgentMessage(fingerprint=message.fingerprint))
            case "control_trial":
                self._trials.begin(message.control_trial)
            case "inspection":
                self._inspection = message.inspection
                self._faults = {report.fault_id: report for report in message.inspection.faults}
                self._inspected.set()
                able = sum(one.able for one in message.inspection.capabilities)
                log.info("the injector is able to do %d kinds of fault", able)
                if self._greeted:  # what the first Hello said of injector, policy and capabilities may have changed
                    self._outbox.put(fleet_pb2.AgentMessage(hello=self._hello()))
                for report in message.inspection.faults:
                    self._outbox.put(fleet_pb2.AgentMessage(report=report))

    def _note(self, report: fault_pb2.FaultReport) -> None:
        """A controller that this host comes to is told how its faults stand, and not how they stood."""
        self._faults.pop(report.fault_id, None)
        self._faults[report.fault_id] = report
        over = [one for one, known in self._faults.items() if known.state == fault_pb2.CLEAN]
        for oldest in over[: max(len(self._faults) - _FAULTS_TOLD, 0)]:
            del self._faults[oldest]

    def _say_lease(self) -> None:
        status = fleet_pb2.LeaseStatus(injector_attached=self._link.attached, detail=self._link.trouble)
        self._outbox.put(fleet_pb2.AgentMessage(lease=status))
