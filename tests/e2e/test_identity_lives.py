"""Certificates come and go while faults run: renewal, revocation and rotation, with real agents and injectors."""

import asyncio
import contextlib
import datetime
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from brownout_agent.agent.identity import Identity, load, next_key, request_for
from brownout_agent.agent.trust import SERVER_NAME, controllers_of
from brownout_agent.frames import to_value
from brownout_controller import __version__
from brownout_controller.cli.authority import agents_behind
from brownout_controller.fleet.authority import Authority
from brownout_controller.fleet.rotation import Phase
from brownout_controller.fleet.sessions import Arrival
from brownout_controller.serving import Controller
from brownout_controller.store.database import Database
from brownout_controller.store.identities import Identities
from brownout_protos.v1 import fault_pb2, fleet_pb2, fleet_pb2_grpc
from cryptography import x509

from tests.support.fleets import BIN, Entries, agent, controller, identity, injector, joined, said, until

LIFE = datetime.timedelta(seconds=6)
REVOKED_WITHIN_S = 2.0
VICTIM = f"victim-{uuid.uuid4().hex}"
pytestmark = pytest.mark.injects


@contextlib.contextmanager
def victim() -> "contextlib.AbstractContextManager[subprocess.Popen[bytes]]":  # type: ignore[misc]
    process = subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.sleep(0.05)", VICTIM])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def stands_still(process: "subprocess.Popen[bytes]") -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] in {"t", "T"}


@contextlib.asynccontextmanager
async def paused(serving: Controller, folder: Path, for_s: int) -> AsyncIterator["subprocess.Popen[bytes]"]:
    """A host `app-1` with agent and injector, and a fault on it that lasts; what it is done to stands still."""
    socket = folder / "i.sock"
    home = await joined(serving, folder / "a")
    with victim() as process:
        async with injector(socket, folder / "i"), agent(home, socket):
            assert await serving.fleet.wait_for(1, 20, with_injector=True)
            (host,) = serving.fleet.connected
            order = fault_pb2.Inject(
                fault_id="pause-1", environment=host.hello.environment, kind="process.pause",
                parameters={"command": to_value(VICTIM)}, duration_ms=for_s * 1000, lease_ms=10_000,
            )  # fmt: skip
            assert host.session is not None
            host.session.send(fleet_pb2.ControllerMessage(inject=order))
            await until(lambda: stands_still(process))
            yield process


def hears(serving: Controller) -> list[Arrival]:
    """Every arrival that says that a host was lost, from now on."""
    lost: list[Arrival] = []
    serving.fleet.listen(lambda arrival: lost.append(arrival) if arrival.lost else None)
    return lost


def serial(folder: Path) -> int:
    return x509.load_pem_x509_certificate(load(folder).certificate_pem).serial_number


def test_a_fault_runs_on_over_two_renewals_and_no_moment_without_a_stream_is_seen(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            controller(tmp_path / "c", agent_life=LIFE) as serving,
            paused(serving, tmp_path, 60) as process,
        ):
            lost, used = hears(serving), set()
            keys = set()

            def renewed_twice() -> bool:
                assert stands_still(process)
                (host,) = serving.fleet.connected
                assert host.session is not None
                used.add(host.session.peer.serial)
                keys.add(load(tmp_path / "a").key_pem)
                return len(used) >= 3

            await until(renewed_twice, 30)
            assert len(keys) >= 3, "every certificate has a fresh key"
            assert lost == []
            (host,) = serving.fleet.connected
            assert host.session is not None
            host.session.send(fleet_pb2.ControllerMessage(stop=fault_pb2.Stop(fault_id="pause-1")))
            await until(lambda: not stands_still(process))

    asyncio.run(story())


def test_an_agent_that_never_heard_of_its_renewal_goes_on_and_asks_again(tmp_path: Path) -> None:
    """The controller has renewed and the agent does not know: the same key is shown again, and that is no fork."""

    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            home = await joined(serving, tmp_path / "a")
            one = load(home)
            request = fleet_pb2.RenewRequest(certificate_request_pem=request_for(next_key(home, one)))
            async with grpc.aio.secure_channel(*dial(one)) as channel:
                lost = await fleet_pb2_grpc.FleetStub(channel).Renew(request)
            async with agent(home):
                assert await serving.fleet.wait_for(1, 20)
                (host,) = serving.fleet.connected
                assert host.session is not None
                host.session.send(
                    fleet_pb2.ControllerMessage(welcome=fleet_pb2.Welcome(renew=True, epoch=host.session.epoch))
                )
                await until(lambda: load(home).certificate_pem == lost.certificate_pem)
                await until(lambda: serving.identities.agents()[0].withdrawn_as is None and used(serving, lost))
            assert not (home / "next-key.pem").exists()

    asyncio.run(story())


def used(serving: Controller, given: fleet_pb2.Certificate) -> bool:
    """Whether the agent's stream was opened with this certificate."""
    number = x509.load_pem_x509_certificate(given.certificate_pem).serial_number
    sessions = [host.session for host in serving.fleet.connected if host.session]
    return [session.peer.serial for session in sessions] == [format(number, "x")]


def dial(one: Identity) -> tuple[str, grpc.ChannelCredentials, tuple[tuple[str, object], ...]]:
    credentials = grpc.ssl_channel_credentials(controllers_of(one.authority_pem), one.key_pem, one.certificate_pem)
    options = (("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.use_local_subchannel_pool", 1))
    return one.membership.controller, credentials, options


# ---- revocation ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def stream(serving: Controller, folder: Path, name: str) -> AsyncIterator[tuple[str, grpc.aio.StreamStreamCall]]:  # type: ignore[type-arg]
    one = await identity(serving, folder, name)
    async with grpc.aio.secure_channel(*dial(one)) as channel:
        call = fleet_pb2_grpc.FleetStub(channel).Session()
        await call.write(fleet_pb2.AgentMessage(hello=fleet_pb2.Hello(host=name, version=__version__)))
        assert (await call.read()).HasField("welcome")
        yield one.membership.agent_id, call


async def _cut(call: "grpc.aio.StreamStreamCall") -> tuple[float, str]:  # type: ignore[type-arg]
    """When the stream ended, and why."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as refusal:
        return time.monotonic(), f"{refusal.code().name} {refusal.details()}"
    return time.monotonic(), "in good order"


def test_twenty_open_streams_are_cut_within_2_s_of_another_process_revoking_their_hosts(tmp_path: Path) -> None:
    async def story() -> None:
        audit = Entries()
        async with controller(tmp_path / "c", auditor=audit) as serving, contextlib.AsyncExitStack() as stack:
            calls = [
                await stack.enter_async_context(stream(serving, tmp_path / f"a{n}", f"app-{n}")) for n in range(20)
            ]
            elsewhere = Database.in_folder(tmp_path / "c")
            stack.callback(elsewhere.close)
            took_s = []
            for number, (agent_id, call) in enumerate(calls):
                cut = asyncio.create_task(_cut(call))
                await asyncio.to_thread(Identities(elsewhere).revoke, f"app-{number}", "sold")
                revoked_s = time.monotonic()
                ended_s, why = await asyncio.wait_for(cut, 10)
                assert why.startswith("PERMISSION_DENIED this agent is revoked: sold")
                took_s.append(ended_s - revoked_s)
                assert any(agent_id in entry.actor for entry in audit.refusals("agent.session"))
            print(f"cut after: median {statistics.median(took_s):.3f} s, max {max(took_s):.3f} s")
            assert max(took_s) <= REVOKED_WITHIN_S

    asyncio.run(story())


def test_the_command_revokes_a_live_host_and_its_agent_says_so_and_stays_out(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving, paused(serving, tmp_path, 120) as process:
            argv = [BIN / "brownout", "hosts", "revoke", "app-1", "--reason", "sold", "--data-dir", tmp_path / "c"]
            revoking = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
            out, _ = await revoking.communicate()
            assert revoking.returncode == 0
            assert out.decode().strip() == load(tmp_path / "a").membership.agent_id
            await until(lambda: serving.fleet.connected == [], REVOKED_WITHIN_S)
            await said(tmp_path / "a", "this agent is revoked: sold")
            await until(lambda: not stands_still(process), 15)  # its lease runs out: nobody renews it
            assert serving.fleet.connected == []

    asyncio.run(story())


def test_an_agent_that_reads_nothing_is_cut_as_well(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            controller(tmp_path / "c") as serving,
            stream(serving, tmp_path / "a", "app-1") as (agent_id, _),
        ):
            (host,) = serving.fleet.connected
            assert host.session is not None
            stop = fault_pb2.Stop(fault_id="f", reason="x" * 100_000)
            for _ in range(200):  # far more than flow control lets through unread
                host.session.send(fleet_pb2.ControllerMessage(stop=stop))
            serving.identities.revoke(agent_id, "sold")
            await until(lambda: serving.fleet.connected == [], REVOKED_WITHIN_S)

    asyncio.run(story())


# ---- rotation --------------------------------------------------------------------------------------------------------


async def rotate(folder: Path, *options: str) -> tuple[int, str]:
    argv = [BIN / "brownout", "ca", "rotate", "--data-dir", folder, *options]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def all_along(serving: Controller) -> None:
    """Wait until the controller is in the phase of the folder, and every agent has come along with it."""
    authority, identities = Authority(serving.authority.folder), serving.identities

    def behind() -> bool:
        return serving.authority.rotation != authority.rotation or bool(agents_behind(authority, identities.agents()))

    await until(lambda: not behind(), 20)


def test_the_authority_is_rotated_under_a_running_fault_and_who_was_away_is_named_first(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving, paused(serving, tmp_path, 150) as process:
            away = await joined(serving, tmp_path / "away", "app-2")
            pin, lost = serving.authority.pin, hears(serving)
            old_id, old_serial = load(tmp_path / "a").membership.agent_id, serial(tmp_path / "a")
            assert (await rotate(tmp_path / "c"))[0] == 0
            await until(lambda: serving.authority.rotation.phase is Phase.INIT)
            await until(lambda: (tmp_path / "a/authority.pem").read_bytes() == serving.authority.bundle_pem)
            code, text = await rotate(tmp_path / "c")
            assert code == 4
            assert load(away).membership.agent_id in text
            assert old_id not in text
            assert "was not here in phase init" in text
            serving.identities.revoke(load(away).membership.agent_id, "gone")
            elsewhere = Authority(serving.authority.folder)  # another process, to the controller
            for phase in (Phase.UPDATE_CLIENTS, Phase.UPDATE_SERVERS, Phase.STANDBY):
                await all_along(serving)
                elsewhere.rotate(elsewhere.rotation.advanced(time.time_ns()))
                assert elsewhere.rotation.phase is phase
                await until(lambda: serving.authority.rotation == elsewhere.rotation)
                assert stands_still(process)
            assert serving.authority.pin != pin
            assert serial(tmp_path / "a") != old_serial
            await until(lambda: (tmp_path / "a/authority.pem").read_bytes() == serving.authority.bundle_pem)
            assert not (tmp_path / "c/authority/1").exists()
            assert lost == []
            newcomer = await joined(serving, tmp_path / "new", "app-3")
            async with agent(newcomer):
                assert await serving.fleet.wait_for(2, 20)

    asyncio.run(story())


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_rotation_can_be_taken_back_in_every_phase_and_the_agent_stays(tmp_path: Path, steps: int) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            home = await joined(serving, tmp_path / "a")
            async with agent(home):
                assert await serving.fleet.wait_for(1, 20)
                pin = serving.authority.pin
                elsewhere = Authority(serving.authority.folder)  # another process, to the controller
                for back in [False] * steps + [True, False]:
                    await all_along(serving)
                    now_ns, rotation = time.time_ns(), elsewhere.rotation
                    elsewhere.rotate(rotation.rolled_back(now_ns) if back else rotation.advanced(now_ns))
                await until(lambda: serving.authority.rotation.phase is Phase.STANDBY)
                assert serving.authority.pin == pin
                await until(lambda: (home / "authority.pem").read_bytes() == serving.authority.bundle_pem)
                assert len(serving.fleet.connected) == 1
            async with agent(home):
                assert await serving.fleet.wait_for(1, 20)

    asyncio.run(story())


# ---- what people are told --------------------------------------------------------------------------------------------


def test_a_certificate_that_ran_out_is_called_that_with_the_clock_beside_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c", agent_life=datetime.timedelta(seconds=1)) as serving:
            home = await joined(serving, tmp_path / "a")
            await until(lambda: load(home).lives_s < 0)
            async with agent(home):
                await said(home, "this agent's certificate has run out by this host's clock")
            assert serving.fleet.connected == []

    asyncio.run(story())


def test_a_controller_never_signs_for_both_roles_with_one_intermediate(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            chain = x509.load_pem_x509_certificates(serving.authority.server_pair().certificate_pem)
            own = x509.load_pem_x509_certificate((await identity(serving, tmp_path / "a")).certificate_pem)
            assert chain[0].issuer == chain[1].subject
            assert own.issuer != chain[0].issuer
            names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
            assert uri.startswith(f"spiffe://{serving.authority.cluster}/controller/")
            assert SERVER_NAME in names.get_values_for_type(x509.DNSName)

    asyncio.run(story())
