"""Everybody who must be kept out, at every door: each wrong identity tries each call of `Fleet`.

A cell of the grid is one attempt against a controller of its own, with everything else about it right. Its result says
who refused and where that was written. Dates, roles and authorities are judged inside the TLS handshake, of which gRPC
tells nobody; there the audit says that a connection came to nothing, but neither whose nor why.
"""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from brownout_agent import __version__
from brownout_agent.agent.identity import Identity, JoinError, Membership, load, new_key, request_for, save
from brownout_agent.agent.joining import join
from brownout_agent.agent.trust import SERVER_NAME, controllers_of
from brownout_agent.chain import read_line
from brownout_controller.audit.entry import Outcome
from brownout_controller.fleet.authority import Authority, read_request
from brownout_controller.fleet.certificates import sign_leaf
from brownout_controller.serving import Controller
from brownout_controller.store.schema import identities as tables
from brownout_protos.v1 import fault_pb2, fleet_pb2, fleet_pb2_grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from sqlalchemy import update

from tests.support.fleets import Entries, agent, controller, identity, membership, said, until

IDENTITIES = (
    "none",
    "expired",
    "not yet valid",
    "other authority",
    "agent as controller",
    "controller as agent",
    "revoked",
    "another's id in a message",
    "replayed token",
    "two users of one token",
)
CALLS = tuple(method.name for method in fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].methods)
DAY = datetime.timedelta(days=1)
_TIMEOUT_S = 20
_ANOTHER = "44444444-4444-4444-4444-444444444444"


class LetIn(AssertionError):
    """Somebody came in who must not."""


@dataclass(frozen=True)
class Cell:
    """What became of one attempt."""

    identity: str
    call: str
    refused: str
    written: str


@dataclass
class Place:
    """A controller of one's own, and what it audited."""

    serving: Controller
    audit: Entries
    folder: Path
    made: int = field(default=0)

    async def agent(self, name: str = "app-1") -> Identity:
        self.made += 1
        return await identity(self.serving, self.folder / f"agent-{self.made}", name)

    def token(self) -> str:
        return self.serving.identities.create_token()

    def forged(self, begins_in: datetime.timedelta, agent_id: str) -> tuple[bytes, bytes]:
        """A key and certificate as the authority would have made them at another time."""
        key = ec.generate_private_key(ec.SECP256R1())
        authority = self.serving.authority
        name = x509.UniformResourceIdentifier(f"spiffe://{authority.cluster}/agent/{agent_id}")
        return self._leaf(key, [name], ExtendedKeyUsageOID.CLIENT_AUTH, begins_in)

    def impostor(self) -> tuple[bytes, bytes]:
        """A server's certificate with every name of a controller, but made by the agents' intermediate."""
        key = ec.generate_private_key(ec.SECP256R1())
        uri = f"spiffe://{self.serving.authority.cluster}/controller/{_ANOTHER}"
        names = [x509.DNSName(SERVER_NAME), x509.UniformResourceIdentifier(uri)]
        key_pem, leaf = self._leaf(key, names, ExtendedKeyUsageOID.SERVER_AUTH, datetime.timedelta())
        # It shows the real controllers' intermediate and root as well: nothing of them is secret.
        return key_pem, leaf + self.serving.authority.clients_pem + self.serving.authority.bundle_pem

    def _leaf(self, key: Any, names: list[Any], usage: Any, begins_in: datetime.timedelta) -> tuple[bytes, bytes]:
        now = datetime.datetime.now(datetime.UTC)
        signer = self.serving.authority.keys.generations[1].agents
        leaf = sign_leaf(signer, key.public_key(), names, usage, now + begins_in, DAY)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return private, leaf.public_bytes(serialization.Encoding.PEM)

    # ---- what is tried -------------------------------------------------------------------------------------------

    async def attempt(self, call: str, pair: tuple[bytes, bytes] | None, **request: Any) -> str:
        """Try a call with a certificate, or with none, over the agents' port; who refused it, and how."""
        return await self._attempt(call, self.serving.port, pair, **request)

    async def attempt_without(self, call: str, **request: Any) -> str:
        """The same over the port for enrolment, which asks for no certificate."""
        return await self._attempt(call, self.serving.enrol_port, None, **request)

    async def _attempt(self, call: str, port: int, pair: tuple[bytes, bytes] | None, **request: Any) -> str:
        async with _channel(self.serving.authority, port, pair) as channel:
            try:
                await _speak(fleet_pb2_grpc.FleetStub(channel), call, **request)
            except grpc.aio.AioRpcError as refusal:
                if refusal.code() is grpc.StatusCode.UNAVAILABLE:
                    return "TLS handshake"
                return f"{refusal.code().name}: {refusal.details()}"
        raise LetIn(f"{call} on port {port} was answered")

    async def audited(self, action: str, count: int = 1) -> str:
        """Wait until so many refusals of an action are in the audit; the last one, shortly."""
        await until(lambda: len(self.audit.refusals(action)) >= count, _TIMEOUT_S)
        entry = self.audit.refusals(action)[-1]
        return f"`{entry.action}` by {entry.actor.partition(':')[0]}"


Try = Callable[[Place, str], Awaitable[tuple[str, str]]]
"""Makes one attempt; who refused, and where it is written."""


def _channel(authority: Authority, port: int, pair: tuple[bytes, bytes] | None) -> grpc.aio.Channel:
    key, certificate = pair or (None, None)
    credentials = grpc.ssl_channel_credentials(controllers_of(authority.bundle_pem), key, certificate)
    options = (("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.use_local_subchannel_pool", 1))
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


async def _speak(
    stub: "fleet_pb2_grpc.FleetAsyncStub",
    call: str,
    token: str = "",
    csr: bytes = b"",
    says: fleet_pb2.AgentMessage | None = None,
    host: str = "app-1",
) -> None:
    csr = csr or request_for(new_key())
    match call:
        case "Enrol":
            request = fleet_pb2.EnrolRequest(token=token, certificate_request_pem=csr)
            await stub.Enrol(request, timeout=_TIMEOUT_S)
        case "Renew":
            await stub.Renew(fleet_pb2.RenewRequest(certificate_request_pem=csr), timeout=_TIMEOUT_S)
        case "Session":
            stream = stub.Session(timeout=_TIMEOUT_S)
            await _greet(stream, host)
            if says is not None:
                await stream.write(says)
                while await stream.read() is not grpc.aio.EOF:
                    pass


async def _greet(stream: Any, host: str = "app-1") -> None:
    """Say Hello and be welcomed, or raise what the stream ended with."""
    hello = fleet_pb2.Hello(host=host, version=__version__)
    with contextlib.suppress(asyncio.InvalidStateError):  # it was ended before a word; the read says why
        await stream.write(fleet_pb2.AgentMessage(hello=hello))
    assert (await stream.read()).HasField("welcome")


# ---- who tries -------------------------------------------------------------------------------------------------------


async def _none(place: Place, call: str) -> tuple[str, str]:
    if call == "Enrol":
        return await place.attempt_without(call), await place.audited("agent.enrol")
    by_app = await place.attempt_without(call)
    await place.audited(f"agent.{call.lower()}")
    by_tls = await place.attempt(call, None)
    return f"{by_tls}; without TLS asking: {by_app}", await place.audited("agent.connect")


def _dated(begins_in: datetime.timedelta) -> Try:
    async def attempt(place: Place, call: str) -> tuple[str, str]:
        if call == "Enrol":
            token = place.token()
            now_ns = int((datetime.datetime.now(datetime.UTC) + begins_in).timestamp() * 1e9)
            moved = update(tables.tokens).values(created_ns=now_ns, expires_ns=now_ns + 900 * 10**9)
            with place.serving.store.database.writing() as connection:
                connection.execute(moved)
            return await place.attempt_without(call, token=token), await place.audited("agent.enrol")
        known = (await place.agent()).membership.agent_id
        return await place.attempt(call, place.forged(begins_in, known)), await place.audited("agent.connect")

    return attempt


async def _other_authority(place: Place, call: str) -> tuple[str, str]:
    known = (await place.agent()).membership.agent_id
    other = Authority(place.folder / "other")
    key = new_key()
    pair = key, other.issue(read_request(request_for(key)), known).certificate_pem
    refused = await place.attempt(call, pair, token=place.token())  # a good token does not help
    return refused, await place.audited("agent.connect")


async def _agent_as_controller(place: Place, call: str) -> tuple[str, str]:
    victim = await place.agent()
    called: list[str] = []
    async with _Impostor(place, called) as port:
        astray = replace(victim.membership, controller=f"127.0.0.1:{port}", enrol_port=port)
        folder = place.folder / "astray"
        if call == "Enrol":
            return await _enrolled_astray(place, astray, called)
        save(folder, replace(victim, membership=astray))
        async with agent(folder):
            await said(folder, "CERTIFICATE_VERIFY_FAILED")
            written = await _in_own_copy(folder, "controller.session")
        if call != "Session":  # no agent calls anything else before it has a session; so by hand as well
            async with _channel_of(load(folder)) as channel:
                with pytest.raises(grpc.aio.AioRpcError, match="CERTIFICATE_VERIFY_FAILED"):
                    await _speak(fleet_pb2_grpc.FleetStub(channel), call)
        if called:
            raise LetIn(f"an agent spoke to an agent that plays controller: {called}")
    return "TLS handshake, by the agent", written


async def _in_own_copy(folder: Path, action: str) -> str:
    """Wait until an agent has written a refusal into its own copy."""

    def found() -> bool:
        path = folder / "audit.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [read_line(line).document for line in lines]
        return any(one["action"] == action and one["outcome"] == "refused" for one in kept)

    await until(found, _TIMEOUT_S)
    return f"`{action}` in the agent's own copy"


async def _enrolled_astray(place: Place, astray: Membership, called: list[str]) -> tuple[str, str]:
    try:
        await join(place.folder / "astray", astray, place.token(), place.serving.authority.pin, wait_s=5)
    except JoinError as refusal:
        if called:
            raise LetIn("a token was shown to an agent that plays controller") from refusal
        return f"the agent: {str(refusal).partition('. Next')[0].partition(' ')[2]}", await _in_own_copy(
            place.folder / "astray", "controller.enrol"
        )
    raise LetIn("an agent that plays controller was joined")


def _channel_of(one: Identity) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(controllers_of(one.authority_pem), one.key_pem, one.certificate_pem)
    options = (("grpc.ssl_target_name_override", SERVER_NAME),)
    return grpc.aio.secure_channel(one.membership.controller, credentials, options=options)


class _Impostor(fleet_pb2_grpc.FleetServicer):
    """A server with an agent's certificate that would answer anything."""

    def __init__(self, place: Place, called: list[str]) -> None:
        self._pair = place.impostor()
        self._called = called
        self._server = grpc.aio.server()

    async def __aenter__(self) -> int:
        fleet_pb2_grpc.add_FleetServicer_to_server(self, self._server)
        port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([self._pair]))
        await self._server.start()
        return int(port)

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)

    async def Enrol(self, request: Any, context: Any) -> fleet_pb2.Certificate:  # noqa: N802
        self._called.append("Enrol")
        return fleet_pb2.Certificate()

    async def Renew(self, request: Any, context: Any) -> fleet_pb2.Certificate:  # noqa: N802
        self._called.append("Renew")
        return fleet_pb2.Certificate()

    async def Session(self, request: Any, context: Any) -> AsyncIterator[fleet_pb2.ControllerMessage]:  # noqa: N802
        self._called.append("Session")
        yield fleet_pb2.ControllerMessage(welcome=fleet_pb2.Welcome())


async def _controller_as_agent(place: Place, call: str) -> tuple[str, str]:
    pair = place.serving.authority.server_pair()
    refused = await place.attempt(call, (pair.key_pem, pair.certificate_pem), token=place.token())
    return refused, await place.audited("agent.connect")


async def _revoked(place: Place, call: str) -> tuple[str, str]:
    token = place.token()
    folder = place.folder / "revoked"
    await join(folder, membership(place.serving), token, place.serving.authority.pin, wait_s=10)
    one = load(folder)
    assert place.serving.identities.revoke(one.membership.agent_id, "its host was sold")
    pair = one.key_pem, one.certificate_pem
    refused = await place.attempt(call, pair, token=token)
    return refused, await place.audited(f"agent.{call.lower()}")


async def _anothers_id(place: Place, call: str) -> tuple[str, str]:
    one, another = await place.agent("app-1"), await place.agent("app-2")
    pair = one.key_pem, one.certificate_pem
    if call != "Session":
        csr = _request_naming(place.serving.authority.cluster, another.membership.agent_id)
        refused = await place.attempt(call, pair, token=place.token(), csr=csr)
        return refused, await place.audited(f"agent.{call.lower()}")
    place.serving.fleet.order_sent("fault-of-app-2", another.membership.agent_id)
    report = fault_pb2.FaultReport(fault_id="fault-of-app-2", state=fault_pb2.CLEAN)
    for _ in range(3):
        refused = await place.attempt(call, pair, says=fleet_pb2.AgentMessage(report=report))
    (entry,) = [one for one in place.audit.entries if one.action == "agent.lock"]
    assert entry.outcome is Outcome.ALLOWED
    last = await place.attempt(call, pair)
    assert "locked" in last
    return f"{refused}; locked after the third", await place.audited("agent.session", 4)


def _request_naming(cluster: str, agent_id: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.UniformResourceIdentifier(f"spiffe://{cluster}/agent/{agent_id}")
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


async def _replayed(place: Place, call: str) -> tuple[str, str]:
    """A token shown twice; a certificate shown again after its successor was in use."""
    token = place.token()
    folder = place.folder / "replayed"
    await join(folder, membership(place.serving), token, place.serving.authority.pin, wait_s=10)
    if call == "Enrol":
        return await place.attempt_without(call, token=token), await place.audited("agent.enrol")
    one = load(folder)
    key = new_key()
    async with _channel(place.serving.authority, place.serving.port, (one.key_pem, one.certificate_pem)) as channel:
        request = fleet_pb2.RenewRequest(certificate_request_pem=request_for(key))
        newer = await fleet_pb2_grpc.FleetStub(channel).Renew(request, timeout=_TIMEOUT_S)
    async with _channel(place.serving.authority, place.serving.port, (key, newer.certificate_pem)) as channel:
        await _greet(fleet_pb2_grpc.FleetStub(channel).Session())
    refused = await place.attempt(call, (one.key_pem, one.certificate_pem))
    assert "locked" in refused
    return refused, await place.audited(f"agent.{call.lower()}")


async def _two_users(place: Place, call: str) -> tuple[str, str]:
    if call == "Enrol":
        token = place.token()
        tries = [place.attempt_without(call, token=token) for _ in range(8)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(result, LetIn) for result in results) == 1, results
        refused = next(result for result in results if isinstance(result, str))
        return f"7 of 8: {refused}", await place.audited("agent.enrol", 7)
    one = await place.agent()
    pair = one.key_pem, one.certificate_pem
    if call == "Renew":
        results = await asyncio.gather(*(place.attempt(call, pair) for _ in range(2)), return_exceptions=True)
        (refused,) = [result for result in results if isinstance(result, str)]
    else:
        refused = await _twins(place, pair)
    assert "locked" in refused
    assert "locked" in await place.attempt("Session", pair)
    return f"{refused}; both are locked", await place.audited(f"agent.{call.lower()}")


async def _twins(place: Place, pair: tuple[bytes, bytes]) -> str:
    """Two that live at the same time; the first one answers what a living agent answers."""
    async with _channel(place.serving.authority, place.serving.port, pair) as channel:
        stream = fleet_pb2_grpc.FleetStub(channel).Session(timeout=_TIMEOUT_S)
        await _greet(stream)
        living = asyncio.create_task(_answer_clock(stream))
        refused = await place.attempt("Session", pair)
        ended = await living
        assert "locked" in ended or ended == _ENDED_WHILE_WRITING, f"the first one is cut off as well, but: {ended}"
    return refused


_ENDED_WHILE_WRITING = "Internal error from Core"
"""What grpc.aio says in the place of the server's words where the stream ends between a read and the write after it."""


async def _answer_clock(stream: Any) -> str:
    try:
        while (message := await stream.read()) is not grpc.aio.EOF:
            if message.HasField("clock"):
                await stream.write(fleet_pb2.AgentMessage(clock=fleet_pb2.ClockReply(number=message.clock.number)))
    except grpc.aio.AioRpcError as refusal:
        return str(refusal.details())
    return "ended in good order"


_TRIES: dict[str, Try] = {
    "none": _none,
    "expired": _dated(-2 * DAY),
    "not yet valid": _dated(2 * DAY),
    "other authority": _other_authority,
    "agent as controller": _agent_as_controller,
    "controller as agent": _controller_as_agent,
    "revoked": _revoked,
    "another's id in a message": _anothers_id,
    "replayed token": _replayed,
    "two users of one token": _two_users,
}


async def try_one(folder: Path, identity_: str, call: str) -> Cell:
    """One cell, against a controller of its own.

    Raises:
        LetIn: it was not refused.
        TimeoutError: it was refused and not audited.
    """
    audit = Entries()
    folder.mkdir()
    async with controller(folder / "controller", auditor=audit) as serving:
        refused, written = await _TRIES[identity_](Place(serving, audit, folder), call)
    return Cell(identity_, call, refused, written)


async def try_all(folder: Path) -> dict[tuple[str, str], Cell | BaseException]:
    """The whole grid; what should have been refused and was not stands there as its exception."""
    cells = [(identity_, call) for identity_ in IDENTITIES for call in CALLS]
    tries = [try_one(folder / f"cell-{number}", *cell) for number, cell in enumerate(cells)]
    return dict(zip(cells, await asyncio.gather(*tries, return_exceptions=True), strict=True))
