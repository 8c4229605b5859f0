"""`Fleet` on gRPC: the three calls.

An RPC handler here owns no fault and no run: it moves messages between a stream and a `HostState`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import grpc
from brownout_protos.v1 import fleet_pb2, fleet_pb2_grpc

from brownout_controller import __version__
from brownout_controller.access.guessing import Guesses
from brownout_controller.audit.entry import NOBODY, Auditor, Outcome
from brownout_controller.fleet import sessions
from brownout_controller.fleet.admission import TWINS, Admission, Context, actor_of, address_of
from brownout_controller.fleet.authority import Authority, Peer, RequestRefused, read_request
from brownout_controller.fleet.clocks import ClockEstimate
from brownout_controller.fleet.flow import Allowance
from brownout_controller.fleet.knocks import Knocks
from brownout_controller.fleet.limits import CHALLENGE_S, HELD_BYTES, HELLO_S, MESSAGES_BURST, MESSAGES_PER_S
from brownout_controller.fleet.ownership import Ownership, stop_strays
from brownout_controller.fleet.screening import Absurd, named_id, screen
from brownout_controller.fleet.sessions import LEASE_MS, RENEW_EVERY_MS, Arrival, Fleet, HostState
from brownout_controller.language.experiment import CONTROLLER
from brownout_controller.store.database import StoreError
from brownout_controller.store.identities import Identities, IdentityRefused, TokenRefused

_LET_GO_S = 0.5
"""How long an agent that was cut off may take to read why."""

log = logging.getLogger(__name__)


class FleetService(fleet_pb2_grpc.FleetServicer):
    """Identity comes from the TLS peer and from nowhere else."""

    def __init__(
        self,
        fleet: Fleet,
        authority: Authority,
        identities: Identities,
        ownership: Ownership,
        auditor: Auditor,
        knocks: Knocks,
    ) -> None:
        self._fleet = fleet
        self._authority = authority
        self._identities = identities
        self._ownership = ownership
        self._knocks = knocks
        self._admission = Admission(authority, identities, auditor)
        self._guesses = Guesses()

    async def Enrol(self, request: fleet_pb2.EnrolRequest, context: Context) -> fleet_pb2.Certificate:  # noqa: N802
        """Swap a join token for a certificate. Who shows wrong ones is kept waiting, by address."""
        origin = address_of(context)
        if (wait_s := self._guesses.wait_s(origin, "")) > 0:
            reason = f"too many wrong tokens; wait {wait_s:.0f} s"
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            await self._admission.refuse(context, "agent.enrol", NOBODY, reason, code)  # the audit log only counts it
        try:
            # The request is checked first, so that a bad one does not cost the token.
            asked = read_request(request.certificate_request_pem)
            agent_id, given = await asyncio.to_thread(
                self._identities.redeem, request.token, asked.digest, lambda one: self._authority.issue(asked, one)
            )
            await self._admission.audit(context, "agent.enrol", actor_of(agent_id), Outcome.ALLOWED)
        except RequestRefused as error:
            code = grpc.StatusCode.INVALID_ARGUMENT
            await self._admission.refuse(context, "agent.enrol", NOBODY, str(error), code)
        except TokenRefused as error:
            self._guesses.wrong(origin, "")
            await self._admission.refuse(context, "agent.enrol", NOBODY, str(error))
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return self._answer(given.certificate_pem, agent_id)

    async def Renew(self, request: fleet_pb2.RenewRequest, context: Context) -> fleet_pb2.Certificate:  # noqa: N802
        """A certificate for a fresh key of the same agent."""
        peer = await self._admission.peer(context, "agent.renew")
        actor = actor_of(peer.agent_id)
        try:
            asked = read_request(request.certificate_request_pem)
            given = await asyncio.to_thread(
                self._identities.renew,
                peer.agent_id, peer.serial, asked.digest, lambda one: self._authority.issue(asked, one),
            )  # fmt: skip
            await self._admission.audit(context, "agent.renew", actor, Outcome.ALLOWED)
        except RequestRefused as error:
            code = grpc.StatusCode.INVALID_ARGUMENT
            await self._admission.refuse(context, "agent.renew", actor, str(error), code)
        except IdentityRefused as error:
            self._cut(peer.agent_id, str(error))
            await self._admission.refuse(context, "agent.renew", actor, str(error))
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return self._answer(given.certificate_pem, peer.agent_id)

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[fleet_pb2.AgentMessage], context: Context
    ) -> AsyncIterator[fleet_pb2.ControllerMessage]:
        """One agent's stream."""
        self._knocks.answer()
        peer = await self._admission.admitted(context, "agent.session")
        hello = await self._greeting(peer, request_iterator, context)
        await self._admission.named(context, "agent.session", peer, hello.host)
        await self._challenge(peer, context)
        epoch = await self._take(peer, hello.epoch_seen, context)
        host = await self._admit(peer, hello, context)
        session = self._begin(peer, host, epoch)
        tasks: list[asyncio.Task[None]] = []
        try:  # from here on, for the agent may leave before it is welcomed
            await self._note_seen(peer, hello)
            yield self._welcome(session)
            self._stop_strays(host, session)
            tasks += (
                asyncio.create_task(self._read(host, session, request_iterator, context)),
                asyncio.create_task(session.tend()),
            )
            self._fleet.arrive(Arrival(host, time.monotonic_ns(), up=True))
            async for message in session.outgoing():
                yield message
        finally:
            for task in tasks:
                task.cancel()
            session.close()
            if host.session is session:
                host.session = None
                self._fleet.arrive(Arrival(host, time.monotonic_ns(), lost=True))
        if session.refusal:
            actor = actor_of(peer.agent_id)
            await self._admission.refuse(context, "agent.session", actor, session.refusal, session.refusal_code)

    def welcome_again(self) -> None:
        """Tell every agent which authorities and controllers count now, and whether it needs another certificate."""
        for host in self._fleet.connected:
            if host.session is not None:
                host.session.send(self._welcome(host.session))

    def _begin(self, peer: Peer, host: HostState, epoch: int) -> sessions.Session:
        """The agent's only session from now on."""
        for earlier in self._fleet.sessions_of(peer.agent_id):
            earlier.close()  # the same agent, come back, or come with its next certificate
        session = sessions.Session(peer, lambda order: self._fleet.order_sent(order, peer.agent_id), epoch)
        host.session = session
        handler = asyncio.current_task()
        loop = asyncio.get_running_loop()

        def let_go() -> None:
            self._fleet.turned_away[host.name] = session.refusal
            if handler is not None:
                loop.call_later(_LET_GO_S, handler.cancel)  # no more than a no-op where the stream has ended

        session.when_cut(let_go)
        return session

    async def _take(self, peer: Peer, seen_epoch: int, context: Context) -> int:
        try:
            epoch = await self._ownership.take(peer.agent_id, seen_epoch)
        except StoreError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return epoch

    def _stop_strays(self, host: HostState, session: sessions.Session) -> None:
        stop_strays(host, session, lambda order: self._fleet.ordered_to(order) is not None)

    async def _challenge(self, peer: Peer, context: Context) -> None:
        """An agent that comes back has left its earlier stream; where somebody still answers on that, there are two."""
        rivals = [session for session in self._fleet.sessions_of(peer.agent_id) if session.peer.serial == peer.serial]
        alive = await asyncio.gather(*(session.answers(CHALLENGE_S) for session in rivals))
        if any(alive):
            await self._admission.lock(context, peer.agent_id, TWINS)
            self._cut(peer.agent_id, f"this agent is locked: {TWINS}")
            await self._admission.refuse(context, "agent.session", actor_of(peer.agent_id), f"locked: {TWINS}")

    def _cut(self, agent_id: str, refusal: str) -> None:
        for session in self._fleet.sessions_of(agent_id):
            session.cut(refusal)

    async def _greeting(
        self, peer: Peer, messages: AsyncIterator[fleet_pb2.AgentMessage], context: Context
    ) -> fleet_pb2.Hello:
        """The first message. A controller that ends waits for none: a call cancelled by gRPC prints a traceback."""
        first = asyncio.create_task(_next(messages))
        ending = asyncio.create_task(self._fleet.ending.wait())
        try:
            await asyncio.wait({first, ending}, timeout=HELLO_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            first.cancel()
        if self._fleet.ending.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this controller ends")
        message = first.result() if first.done() and not first.cancelled() else None
        reason = "the first message must be Hello"
        try:
            if message is not None and message.WhichOneof("body") == "hello":
                screen(message)
                return message.hello
        except Absurd as error:
            reason = str(error)
        code = grpc.StatusCode.INVALID_ARGUMENT
        return await self._admission.refuse(context, "agent.session", actor_of(peer.agent_id), reason, code)

    async def _read(
        self,
        host: HostState,
        session: sessions.Session,
        messages: AsyncIterator[fleet_pb2.AgentMessage],
        context: Context,
    ) -> None:
        """Pass on what the agent says. What it says before its clock is known waits: it has no place in time yet."""
        held: list[fleet_pb2.AgentMessage] = []
        held_bytes = 0
        allowance = Allowance(MESSAGES_PER_S, MESSAGES_BURST)
        try:
            async for message in messages:
                if session.refusal:
                    return
                await self._check(host, session, message, context)
                now_ns = time.monotonic_ns()
                _heed(host, session, message, now_ns)
                if message.HasField("hello"):
                    self._stop_strays(host, session)
                held.append(message)
                held_bytes += message.ByteSize()
                if host.clock.best(now_ns) is not None:
                    ready, held, held_bytes = held, [], 0
                    for one in ready:
                        self._fleet.arrive(Arrival(host, now_ns, message=one))
                elif held_bytes > HELD_BYTES:
                    raise Absurd(f"{held_bytes} bytes, and no answer about its clock among them")
                await allowance.take()
        except Absurd as error:
            session.cut(str(error), grpc.StatusCode.INVALID_ARGUMENT)
        except _AnothersId as error:
            session.cut(str(error))
        except Exception:
            log.exception("a message of %s could not be taken, so its stream ends", host.name)
        finally:
            session.close()

    async def _check(
        self, host: HostState, session: sessions.Session, message: fleet_pb2.AgentMessage, context: Context
    ) -> None:
        screen(message)
        if message.HasField("hello"):
            another = message.hello.host if message.hello.host != host.name else ""
            if not another:
                await self._note_seen(session.peer, message.hello)
        else:
            order = named_id(message)
            another = order if self._fleet.ordered_to(order) not in {None, session.peer.agent_id} else ""
        if another:
            await self._admission.strike(context, session.peer.agent_id)
            raise _AnothersId(f"`{another}` is another agent's")

    async def _note_seen(self, peer: Peer, hello: fleet_pb2.Hello) -> None:
        try:
            await asyncio.to_thread(self._identities.saw, peer.agent_id, hello.host, hello.trusts, peer.generation)
        except StoreError as error:  # a note for people, and no reason to turn a host away in the middle of a run
            log.warning("%s", error)

    async def _admit(self, peer: Peer, hello: fleet_pb2.Hello, context: Context) -> HostState:
        known = self._fleet.hosts.get(hello.host)
        code, reason = grpc.StatusCode.OK, ""
        if hello.version != __version__:
            code = grpc.StatusCode.FAILED_PRECONDITION
            reason = f"agent {hello.version or 'without version'} and controller {__version__} differ; upgrade"
        elif hello.host == CONTROLLER:
            code = grpc.StatusCode.INVALID_ARGUMENT
            reason = f"`{CONTROLLER}` means the controller itself in experiments; give this host another --name"
        elif known is not None and known.agent_id != peer.agent_id and known.connected:
            code = grpc.StatusCode.ALREADY_EXISTS
            reason = f"another agent is connected as `{hello.host}`; give each host its own --name"
        if reason:
            self._fleet.turned_away[hello.host] = reason
            await self._admission.refuse(context, "agent.session", actor_of(peer.agent_id), reason, code)
        self._fleet.turned_away.pop(hello.host, None)
        labels = {**hello.labels, "host": hello.host}
        if known is None or known.agent_id != peer.agent_id:
            known = self._fleet.hosts[hello.host] = HostState(peer.agent_id, hello.host, labels, hello)
        if known.hello.boot_id != hello.boot_id:
            known.clock = ClockEstimate()  # its clock began anew
        known.labels, known.hello = labels, hello
        return known

    def _answer(self, certificate_pem: bytes, agent_id: str) -> fleet_pb2.Certificate:
        return fleet_pb2.Certificate(
            certificate_pem=certificate_pem, authority_pem=self._authority.bundle_pem, agent_id=agent_id
        )

    def _welcome(self, session: sessions.Session) -> fleet_pb2.ControllerMessage:
        welcome = fleet_pb2.Welcome(
            controller_version=__version__,
            cluster=self._authority.cluster,
            epoch=session.epoch,
            lease_ms=LEASE_MS,
            renew_every_ms=RENEW_EVERY_MS,
            session=session.number,
            agent_id=session.peer.agent_id,
            controllers=self._ownership.controllers,
            authority_pem=self._authority.bundle_pem,
            renew=session.peer.generation != self._authority.rotation.issuing,
        )
        return fleet_pb2.ControllerMessage(welcome=welcome)


class _AnothersId(Exception):
    """An agent speaks of what is another's."""


def _heed(host: HostState, session: sessions.Session, message: fleet_pb2.AgentMessage, now_ns: int) -> None:
    """What a message says to the session itself: of the host, of its clock, or whether the stream carries both ways."""
    host.note(message)
    if message.HasField("ping"):
        session.answer(message.ping)
    exchange = session.clock_answer(message.clock, now_ns) if message.HasField("clock") else None
    if exchange is not None:
        host.clock.add(exchange)


async def _next(messages: AsyncIterator[fleet_pb2.AgentMessage]) -> fleet_pb2.AgentMessage | None:
    return await anext(messages, None)
