"""The agent's side of `Fleet.Session`: it dials out, says who it is, passes orders on, and reports back.

It owns no fault. When the stream is lost it passes no more lease renewals on, and the injector undoes by itself.
"""

import asyncio
import logging
import random
import socket
from pathlib import Path
from typing import Any

import grpc
from brownout_protos.v1 import fault_pb2, fleet_pb2, fleet_pb2_grpc, injector_pb2

from brownout_agent import __version__
from brownout_agent.agent.identity import SERVER_NAME, Identity, new_request, save, write_durably
from brownout_agent.agent.link import InjectorLink
from brownout_agent.agent.observers import Observers
from brownout_agent.agent.outbox import Outbox
from brownout_agent.fingerprint import nothing_read, to_wire
from brownout_agent.kernel.clock import boot_id, boottime_ns

CHANNEL_OPTIONS = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 1_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 256 * 1024),
)
RECONNECT_AFTER_S = (0.2, 1.0)
OBSERVERS_ALONE_S = 120.0
"""How long probes go on without a controller."""

log = logging.getLogger(__name__)


class StaleController(Exception):
    """A controller with a smaller epoch than one that this host has obeyed."""


class Agent:
    """Everything of the talking process, for as long as it lives."""

    def __init__(self, folder: Path, identity: Identity, injector_socket: Path) -> None:
        self._folder = folder
        self._identity = identity
        self._outbox = Outbox()
        self._observers = Observers(self._outbox.put)
        self._link = InjectorLink(injector_socket, self._from_injector)
        self._link.on_change = self._say_lease
        self._inspected = asyncio.Event()
        self._inspection = injector_pb2.Inspection()
        self._greeted = False
        self._epoch = _read_epoch(folder)
        self._heard_ns = boottime_ns()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.run())
            while True:
                await self._session_once()
                if boottime_ns() - self._heard_ns > OBSERVERS_ALONE_S * 1e9:
                    self._observers.end_all()
                await asyncio.sleep(random.uniform(*RECONNECT_AFTER_S))  # noqa: S311 - spreads reconnects

    async def _session_once(self) -> None:
        host, _, port = self._identity.membership.controller.rpartition(":")
        try:
            self._link.exempt(await _addresses(host.strip("[]"), int(port)))
            async with _channel(self._identity, f"{host}:{port}") as channel:
                await self._converse(fleet_pb2_grpc.FleetStub(channel))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, StaleController, OSError) as error:
            detail = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
            log.info("no session with %s:%s: %s", host, port, detail)

    async def _converse(self, stub: "fleet_pb2_grpc.FleetAsyncStub") -> None:
        self._link.inspect()
        await self._wait_inspected()
        call = stub.Session()
        tasks = [
            asyncio.create_task(work) for work in (self._read(call), self._write(call), self._renew_when_due(stub))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._greeted = False
            for task in tasks:
                task.cancel()
            call.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for trouble in ended:
            if isinstance(trouble, Exception):
                raise trouble

    async def _read(self, call: Any) -> None:
        async for message in call:
            self._obey(message)

    async def _write(self, call: Any) -> None:
        """Say who this is, then what the last stream may not have carried, then everything else. The one writer."""
        await call.write(fleet_pb2.AgentMessage(hello=self._hello()))
        self._greeted = True
        self._outbox.rewind()
        while True:
            await call.write(await self._outbox.take())

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
            faults=self._inspection.faults,
            epoch_seen=self._epoch,
            policy=self._inspection.policy if self._link.attached else self._link.trouble,
            injector_attached=self._link.attached,
            environment=self._inspection.environment,
        )

    # ---- what the controller says -----------------------------------------------------------------------------

    def _obey(self, message: fleet_pb2.ControllerMessage) -> None:
        received_ns = self._heard_ns = boottime_ns()
        match message.WhichOneof("body"):
            case "welcome":
                self._accept_epoch(message.welcome.epoch)
                log.info("in session with controller %s", message.welcome.controller_version)
            case "clock":
                reply = fleet_pb2.ClockReply(
                    number=message.clock.number, received_boottime_ns=received_ns, sent_boottime_ns=boottime_ns()
                )
                self._outbox.put(fleet_pb2.AgentMessage(clock=reply))
            case "inject":
                self._inject(message.inject)
            case "stop":
                self._stop(message.stop)
            case "renew":
                self._renew(message.renew)
            case "halt":
                self._halt(message.halt)
            case "fingerprint":
                self._ask_fingerprint(message.fingerprint)
            case "observe":
                self._observers.start(message.observe)
            case "end_observe":
                self._observers.end(message.end_observe.observer_id)
            case "bye":
                log.info("the controller ended the session: %s", message.bye.reason)

    def _inject(self, order: fault_pb2.Inject) -> None:
        if order.epoch < self._epoch:
            self._refuse(order.fault_id, f"epoch {order.epoch} is older than {self._epoch}, which this host obeys")
        elif not self._link.inject(order):
            self._refuse(order.fault_id, self._link.trouble, "start brownout-injector on the host")

    def _renew(self, order: fault_pb2.RenewLease) -> None:
        if order.epoch >= self._epoch:
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
        outcome = fault_pb2.OrderReply.REFUSED
        reply = fault_pb2.OrderReply(fault_id=fault_id, outcome=outcome, reason=reason, remedy=remedy)
        self._outbox.put(fleet_pb2.AgentMessage(reply=reply))

    def _accept_epoch(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise StaleController(f"its epoch {epoch} is older than {self._epoch}, which this host obeys")
        if epoch > self._epoch:
            write_durably(self._folder / "epoch", str(epoch).encode())
            self._epoch = epoch

    # ---- what the injector says -------------------------------------------------------------------------------

    def _from_injector(self, message: injector_pb2.FromInjector) -> None:
        match message.WhichOneof("body"):
            case "reply":
                self._outbox.put(fleet_pb2.AgentMessage(reply=message.reply))
            case "report":
                self._outbox.put(fleet_pb2.AgentMessage(report=message.report))
            case "halted":
                self._outbox.put(fleet_pb2.AgentMessage(halted=message.halted))
            case "fingerprint":
                self._outbox.put(fleet_pb2.AgentMessage(fingerprint=message.fingerprint))
            case "inspection":
                self._inspection = message.inspection
                self._inspected.set()
                if self._greeted:  # what the first Hello said of injector, policy and capabilities may have changed
                    self._outbox.put(fleet_pb2.AgentMessage(hello=self._hello()))
                for report in message.inspection.faults:
                    self._outbox.put(fleet_pb2.AgentMessage(report=report))

    def _say_lease(self) -> None:
        status = fleet_pb2.LeaseStatus(injector_attached=self._link.attached, detail=self._link.trouble)
        self._outbox.put(fleet_pb2.AgentMessage(lease=status))

    # ---- certificate --------------------------------------------------------------------------------------------

    async def _renew_when_due(self, stub: "fleet_pb2_grpc.FleetAsyncStub") -> None:
        """Fetch the next certificate in time. The running channel keeps the old one; the next connection uses it."""
        while True:
            await asyncio.sleep(self._identity.renew_in_s)
            key_pem, request_pem = new_request()
            try:
                answer = await stub.Renew(fleet_pb2.RenewRequest(certificate_request_pem=request_pem))
            except grpc.aio.AioRpcError as error:
                log.warning("the certificate could not be renewed: %s", error.details())
                await asyncio.sleep(60)
                continue
            membership = self._identity.membership
            self._identity = Identity(membership, key_pem, answer.certificate_pem, answer.authority_pem)
            save(self._folder, self._identity)
            log.info("the certificate was renewed")


def _channel(identity: Identity, target: str) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(identity.authority_pem, identity.key_pem, identity.certificate_pem)
    return grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)


async def _addresses(host: str, port: int) -> tuple[tuple[str, int], ...]:
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(sorted({(str(info[4][0]), int(info[4][1])) for info in infos}))


def _read_epoch(folder: Path) -> int:
    path = folder / "epoch"
    return int(path.read_text()) if path.exists() else 0
