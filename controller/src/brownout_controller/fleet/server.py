"""`Fleet` on gRPC: two ports, since only enrolment may come without a certificate.

An RPC handler here owns no fault and no run: it moves messages between a stream and a `HostState`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from brownout_protos.v1 import fleet_pb2, fleet_pb2_grpc

from brownout_controller import __version__
from brownout_controller.fleet import sessions
from brownout_controller.fleet.authority import Authority, RequestRefused
from brownout_controller.fleet.clocks import ClockEstimate
from brownout_controller.fleet.sessions import LEASE_MS, RENEW_EVERY_MS, Arrival, Fleet, HostState
from brownout_controller.language.experiment import CONTROLLER
from brownout_controller.store.database import StoreError
from brownout_controller.store.identities import Identities, TokenRefused

SERVER_OPTIONS = (
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 1_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 256 * 1024),
    ("grpc.absolute_max_metadata_size", 8 * 1024),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.server_handshake_timeout_ms", 5_000),
)
_STOP_GRACE_S = 3.0
_HELLO_WITHIN_S = 10.0
_HELD_MAX = 10_000

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class FleetService(fleet_pb2_grpc.FleetServicer):
    """The three calls. Identity comes from the TLS peer and from nowhere else."""

    def __init__(self, fleet: Fleet, authority: Authority, identities: Identities, epoch: int) -> None:
        self._fleet = fleet
        self._authority = authority
        self._identities = identities
        self._epoch = epoch

    async def Enrol(self, request: fleet_pb2.EnrolRequest, context: Context) -> fleet_pb2.Certificate:  # noqa: N802
        """Swap a join token for a certificate."""
        try:
            # The request is checked first, so that a bad one does not cost the token.
            self._authority.agent_certificate(request.certificate_request_pem, "check")
            agent_id = self._identities.redeem(request.token)
        except RequestRefused as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except TokenRefused as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return self._certificate(request.certificate_request_pem, agent_id)

    async def Renew(self, request: fleet_pb2.RenewRequest, context: Context) -> fleet_pb2.Certificate:  # noqa: N802
        """A certificate for a fresh key of the same agent."""
        agent_id = await self._identify(context)
        try:
            return self._certificate(request.certificate_request_pem, agent_id)
        except RequestRefused as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[fleet_pb2.AgentMessage], context: Context
    ) -> AsyncIterator[fleet_pb2.ControllerMessage]:
        """One agent's stream."""
        agent_id = await self._identify(context)
        hello = await self._greeting(request_iterator, context)
        host = await self._admit(agent_id, hello, context)
        if host.session is not None:
            host.session.close()  # the same agent, come back before the loss of its old stream was noticed
        session = host.session = sessions.Session()
        self._note_seen(agent_id, host.name)
        yield fleet_pb2.ControllerMessage(welcome=self._welcome())
        reading = asyncio.create_task(self._read(host, session, request_iterator))
        tending = asyncio.create_task(session.tend(self._epoch))
        self._fleet.arrive(Arrival(host, time.monotonic_ns(), up=True))
        try:
            async for message in session.outgoing():
                yield message
        finally:
            reading.cancel()
            tending.cancel()
            if host.session is session:
                host.session = None
                self._fleet.arrive(Arrival(host, time.monotonic_ns(), lost=True))

    async def _greeting(self, messages: AsyncIterator[fleet_pb2.AgentMessage], context: Context) -> fleet_pb2.Hello:
        """The first message. A controller that ends waits for none: a call cancelled by gRPC prints a traceback."""
        first = asyncio.create_task(_next(messages))
        ending = asyncio.create_task(self._fleet.ending.wait())
        try:
            await asyncio.wait({first, ending}, timeout=_HELLO_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            first.cancel()
        if self._fleet.ending.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this controller ends")
        message = first.result() if first.done() and not first.cancelled() else None
        if message is None or message.WhichOneof("body") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be Hello")
        assert message is not None
        return message.hello

    async def _read(
        self, host: HostState, session: sessions.Session, messages: AsyncIterator[fleet_pb2.AgentMessage]
    ) -> None:
        """Pass on what the agent says. What it says before its clock is known waits: it has no place in time yet."""
        held: list[fleet_pb2.AgentMessage] = []
        try:
            async for message in messages:
                now_ns = time.monotonic_ns()
                host.note(message)
                exchange = session.clock_answer(message.clock, now_ns) if message.HasField("clock") else None
                if exchange is not None:
                    host.clock.add(exchange)
                held.append(message)
                if host.clock.best(now_ns) is not None:
                    ready, held = held, []
                    for one in ready:
                        self._fleet.arrive(Arrival(host, now_ns, message=one))
                elif len(held) > _HELD_MAX:
                    return
        except Exception:
            log.exception("a message of %s could not be taken, so its stream ends", host.name)
        finally:
            session.close()

    def _note_seen(self, agent_id: str, host: str) -> None:
        try:
            self._identities.saw(agent_id, host)
        except StoreError as error:  # a note for people, and no reason to turn a host away in the middle of a run
            log.warning("%s", error)

    async def _identify(self, context: Context) -> str:
        pem = next(iter(context.auth_context().get("x509_pem_cert") or ()), None)
        agent_id = self._authority.agent_id_of(pem) if pem else None
        if agent_id is None or not self._identities.is_enrolled(agent_id):
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, "no certificate of an agent that was enrolled here; join again"
            )
        assert agent_id is not None
        return agent_id

    async def _admit(self, agent_id: str, hello: fleet_pb2.Hello, context: Context) -> HostState:
        known = self._fleet.hosts.get(hello.host)
        code, reason = grpc.StatusCode.OK, ""
        if hello.version != __version__:
            code = grpc.StatusCode.FAILED_PRECONDITION
            reason = f"agent {hello.version or 'without version'} and controller {__version__} differ; upgrade"
        elif hello.host == CONTROLLER:
            code = grpc.StatusCode.INVALID_ARGUMENT
            reason = f"`{CONTROLLER}` means the controller itself in experiments; give this host another --name"
        elif known is not None and known.agent_id != agent_id and known.connected:
            code = grpc.StatusCode.ALREADY_EXISTS
            reason = f"another agent is connected as `{hello.host}`; give each host its own --name"
        if reason:
            self._fleet.turned_away[hello.host] = reason
            await context.abort(code, reason)
        self._fleet.turned_away.pop(hello.host, None)
        labels = {**hello.labels, "host": hello.host}
        if known is None or known.agent_id != agent_id:
            known = self._fleet.hosts[hello.host] = HostState(agent_id, hello.host, labels, hello)
        if known.hello.boot_id != hello.boot_id:
            known.clock = ClockEstimate()  # its clock began anew
        known.labels, known.hello = labels, hello
        return known

    def _certificate(self, request_pem: bytes, agent_id: str) -> fleet_pb2.Certificate:
        return fleet_pb2.Certificate(
            certificate_pem=self._authority.agent_certificate(request_pem, agent_id),
            authority_pem=self._authority.certificate_pem,
            agent_id=agent_id,
        )

    def _welcome(self) -> fleet_pb2.Welcome:
        return fleet_pb2.Welcome(
            controller_version=__version__,
            cluster=self._authority.cluster,
            epoch=self._epoch,
            lease_ms=LEASE_MS,
            renew_every_ms=RENEW_EVERY_MS,
        )


async def _next(messages: AsyncIterator[fleet_pb2.AgentMessage]) -> fleet_pb2.AgentMessage | None:
    return await anext(messages, None)


class FleetServer:
    """The listening side of a controller."""

    def __init__(self, service: FleetService, authority: Authority) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        fleet_pb2_grpc.add_FleetServicer_to_server(service, self._server)
        pair = authority.server_pair()
        keys = [(pair.key_pem, pair.certificate_pem)]
        self._mutual = grpc.ssl_server_credentials(keys, authority.certificate_pem, require_client_auth=True)
        self._enrolment = grpc.ssl_server_credentials(keys)

    async def start(self, host: str, port: int) -> tuple[int, int]:
        """Listen on `port` for agents and on the next one for enrolment; 0 picks two free ones. Returns both.

        Raises:
            OSError: an address cannot be bound.
        """
        try:
            fleet_port = self._server.add_secure_port(f"{host}:{port}", self._mutual)
            enrol_port = self._server.add_secure_port(f"{host}:{port + 1 if port else 0}", self._enrolment)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port} and {port + 1}: {error}") from error
        await self._server.start()
        return fleet_port, enrol_port

    async def stop(self) -> None:
        """Stop listening and end every stream."""
        await self._server.stop(_STOP_GRACE_S)
