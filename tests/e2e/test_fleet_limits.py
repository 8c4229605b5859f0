"""What one peer may take of a controller: each limit is reached, and meanwhile somebody else is served."""

import asyncio
import contextlib
import itertools
import resource
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from brownout_agent.agent.identity import Identity, new_key, request_for
from brownout_agent.agent.trust import SERVER_NAME, controllers_of
from brownout_controller import __version__
from brownout_controller.fleet import limits
from brownout_controller.serving import Controller
from brownout_protos.v1 import fault_pb2, fleet_pb2, fleet_pb2_grpc

from tests.support.fleets import Entries, agent, controller, identity, joined, until

Message = fleet_pb2.AgentMessage


def channel(one: Identity, port: int | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(controllers_of(one.authority_pem), one.key_pem, one.certificate_pem)
    options = (("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.use_local_subchannel_pool", 1))
    target = f"127.0.0.1:{port}" if port else one.membership.controller
    return grpc.aio.secure_channel(target, credentials, options=options)


@contextlib.asynccontextmanager
async def welcomed(one: Identity, port: int | None = None) -> AsyncIterator[Any]:
    async with channel(one, port) as open_channel:
        call = fleet_pb2_grpc.FleetStub(open_channel).Session()
        hello = fleet_pb2.Hello(host=one.membership.name, version=__version__)
        await call.write(Message(hello=hello))
        assert (await call.read()).HasField("welcome")
        yield call


async def ended(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        while await call.read() is not grpc.aio.EOF:
            pass
    return refusal.value


async def served(serving: Controller, folder: Path, name: str) -> None:
    """Somebody else joins and is welcomed."""
    async with welcomed(await identity(serving, folder, name)):
        pass


def test_a_message_of_more_than_256_kib_ends_its_stream_only(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            one = await identity(serving, tmp_path / "a")
            async with welcomed(one) as call:
                text = "x" * limits.MESSAGE_BYTES
                await call.write(Message(report=fault_pb2.FaultReport(message=text)))
                assert (await ended(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await served(serving, tmp_path / "b", "app-2")

    asyncio.run(story())


def test_metadata_of_more_than_8_kib_is_refused_and_less_is_not(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            one = await identity(serving, tmp_path / "a")
            async with channel(one) as open_channel:
                stub: Any = fleet_pb2_grpc.FleetStub(open_channel)
                request = fleet_pb2.RenewRequest(certificate_request_pem=request_for(new_key()))
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await stub.Renew(request, metadata=(("x", "y" * limits.METADATA_BYTES),), timeout=10)
                assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                await stub.Renew(request, metadata=(("x", "y" * 2_000),), timeout=10)

    asyncio.run(story())


def test_a_connection_carries_four_calls_and_the_fifth_waits(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            one = await identity(serving, tmp_path / "a")
            async with channel(one) as open_channel:
                stub: Any = fleet_pb2_grpc.FleetStub(open_channel)
                silent = [stub.Session() for _ in range(limits.STREAMS_A_CONNECTION)]
                await asyncio.gather(*(call.wait_for_connection() for call in silent))
                request = fleet_pb2.RenewRequest(certificate_request_pem=request_for(new_key()))
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await stub.Renew(request, timeout=2)
                assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                silent[0].cancel()
                await stub.Renew(request, timeout=10)

    asyncio.run(story())


def test_300_silent_sockets_are_dropped_in_6_s_while_others_are_served_and_are_written_down(tmp_path: Path) -> None:
    async def story() -> None:
        audit = Entries()
        async with controller(tmp_path / "c", auditor=audit) as serving:
            begun_s = time.monotonic()
            sockets = [await asyncio.open_connection("127.0.0.1", serving.port) for _ in range(300)]
            await served(serving, tmp_path / "a", "app-1")
            assert time.monotonic() - begun_s < limits.HANDSHAKE_MS / 1_000, "while they were all silent"
            dropped = await asyncio.gather(*(_dropped(reader) for reader, _ in sockets))
            print(f"dropped after {min(dropped) - begun_s:.2f} to {max(dropped) - begun_s:.2f} s")
            assert max(dropped) - begun_s < limits.HANDSHAKE_MS / 1_000 + 2
            for _, writer in sockets:
                writer.close()
            await until(lambda: bool(audit.refusals("agent.connect")))

    asyncio.run(story())


def test_an_authority_is_rotated_while_sockets_without_a_certificate_come_and_go(tmp_path: Path) -> None:
    """What ended the process, before `_ShownAtAPort`: one handshake uses the certificates that another one replaces."""

    async def churn(port: int) -> None:
        while True:
            with contextlib.ExitStack() as opened:
                for _ in range(50):
                    opened.enter_context(socket.create_connection(("127.0.0.1", port)))
                await asyncio.sleep(0)

    async def story() -> None:
        async with controller(tmp_path / "c") as serving, asyncio.TaskGroup() as group:
            churning = [group.create_task(churn(port)) for port in (serving.port, serving.enrol_port)]
            for turn in range(8):
                serving.authority.rotate(serving.authority.rotation.advanced(time.time_ns()))
                await served(serving, tmp_path / f"a-{turn}", f"app-{turn}")
            for one in churning:
                one.cancel()

    asyncio.run(story())


def test_a_controller_takes_the_descriptors_that_its_connections_need(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c"):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(limits.CONNECTIONS, hard)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1_024, hard), hard))
    try:
        asyncio.run(story())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _dropped(reader: asyncio.StreamReader) -> float:
    with contextlib.suppress(ConnectionError):
        while await reader.read(1024):
            pass
    return time.monotonic()


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 64, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes(range(256))]
)
def test_whoever_speaks_no_tls_is_hung_up_on(tmp_path: Path, said: bytes) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            for port in (serving.port, serving.enrol_port):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(said)
                async with asyncio.timeout(limits.HANDSHAKE_MS / 1_000 + 2):
                    await _dropped(reader)
                writer.close()

    asyncio.run(story())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")  # Python, too, has given these up
@pytest.mark.parametrize(
    ("version", "taken"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),  # gRPC has no option for it; its ciphers are then ECDHE with AES-GCM only
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
def test_tls_older_than_1_2_is_closed(tmp_path: Path, version: ssl.TLSVersion, taken: bool) -> None:
    def shake(port: int) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2"])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as raw, context.wrap_socket(raw) as tls:
            return tls.version()

    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            if taken:
                assert await asyncio.to_thread(shake, serving.enrol_port) == version.name.replace("_", ".")
            else:
                with pytest.raises(ssl.SSLError, match=r"EOF|PROTOCOL|ALERT"):
                    await asyncio.to_thread(shake, serving.enrol_port)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Message(report=fault_pb2.FaultReport(fault_id="f", at_boottime_ns=-5)), "a negative time"),
        (Message(samples=fleet_pb2.ProbeSamples(sent_boottime_ns=[1])), "columns of unequal length"),
        (Message(), "no body"),
    ],
)
def test_an_absurd_message_ends_the_stream_with_the_field_and_is_audited(
    tmp_path: Path, message: fleet_pb2.AgentMessage, reason: str
) -> None:
    async def story() -> None:
        audit = Entries()
        async with controller(tmp_path / "c", auditor=audit) as serving:
            async with welcomed(await identity(serving, tmp_path / "a")) as call:
                await call.write(message)
                refusal = await ended(call)
            assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert reason in str(refusal.details())
            assert reason in audit.refusals("agent.session")[0].reason

    asyncio.run(story())


def test_who_says_megabytes_and_nothing_of_its_clock_is_cut_off_before_they_are_many(tmp_path: Path) -> None:
    async def story() -> None:
        audit = Entries()
        async with controller(tmp_path / "c", auditor=audit) as serving:
            residue = ["x" * limits.TEXT_CHARACTERS] * (limits.MESSAGE_BYTES // limits.TEXT_CHARACTERS - 1)
            message = Message(report=fault_pb2.FaultReport(fault_id="f", residue=residue))
            async with welcomed(await identity(serving, tmp_path / "a")) as call:
                for _ in range(limits.HELD_BYTES // message.ByteSize() + 1):  # one more would meet an ended call
                    await call.write(message)
                assert (await ended(call)).code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "and no answer about its clock" in audit.refusals("agent.session")[0].reason
            await served(serving, tmp_path / "b", "app-2")

    asyncio.run(story())


def test_a_flood_of_one_agent_is_slowed_and_another_notices_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            heard = {"app-1": 0, "app-2": 0}

            def count(arrival: Any) -> None:
                heard[arrival.host.name] += arrival.message is not None

            serving.fleet.listen(count)
            quiet = await joined(serving, tmp_path / "b", "app-2")
            async with agent(quiet), welcomed(await identity(serving, tmp_path / "a")) as call:
                assert await serving.fleet.wait_for(1, 20)
                asked: deque[int] = deque()
                flooding = asyncio.create_task(_flood(call, asked))
                answering = asyncio.create_task(_hear(call, asked))
                await until(lambda: heard["app-1"] > limits.MESSAGES_BURST)
                begun_s, before, quiet_before = time.monotonic(), heard["app-1"], heard["app-2"]
                await until(lambda: heard["app-2"] - quiet_before >= 2)  # its clock answers, one each two seconds
                per_s = (heard["app-1"] - before) / (time.monotonic() - begun_s)
                print(f"taken of the flood: {per_s:.0f} messages/s")
                assert per_s < 1.3 * limits.MESSAGES_PER_S
                (flooded, calm) = serving.fleet.connected
                assert (flooded.name, calm.name) == ("app-1", "app-2")
                for task in (flooding, answering):
                    task.cancel()
                await asyncio.gather(flooding, answering, return_exceptions=True)

    asyncio.run(story())


async def _flood(call: Any, asked: deque[int]) -> None:
    """As fast as it is taken: thousands a second, were it not held back. A stream has one writer."""
    for number in itertools.count():
        if asked:
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            stamps = {"received_boottime_ns": now_ns, "sent_boottime_ns": now_ns}
            message = Message(clock=fleet_pb2.ClockReply(number=asked.popleft(), **stamps))
        else:
            message = Message(report=fault_pb2.FaultReport(fault_id=f"f-{number}", at_boottime_ns=1))
        await call.write(message)


async def _hear(call: Any, asked: deque[int]) -> None:
    """The clock's questions, which must be answered before anything counts."""
    while (message := await call.read()) is not grpc.aio.EOF:
        if message.HasField("clock"):
            asked.append(message.clock.number)


def test_a_stream_whose_cable_is_pulled_is_found_within_three_heartbeats(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving, _cable(serving.port) as (port, pull):
            one = await identity(serving, tmp_path / "a")
            async with welcomed(one, port):
                assert len(serving.fleet.connected) == 1
                pull()
                pulled_s = time.monotonic()
                await until(lambda: serving.fleet.connected == [], 3 * limits.HEARTBEAT_MS / 1_000)
                print(f"found after {time.monotonic() - pulled_s:.2f} s")

    asyncio.run(story())


@contextlib.asynccontextmanager
async def _cable(port: int) -> AsyncIterator[tuple[int, Any]]:
    """A relay that, once pulled, carries nothing and closes nothing."""
    connected = asyncio.Event()
    connected.set()
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await connected.wait()
            writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, there_writer))
        tasks.add(asyncio.create_task(carry(reader, there_writer)))
        tasks.add(asyncio.create_task(carry(there_reader, writer)))

    relay = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield relay.sockets[0].getsockname()[1], connected.clear
    finally:
        relay.close()
        for task in tasks:
            task.cancel()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*tasks, *(writer.wait_closed() for writer in writers), return_exceptions=True)
