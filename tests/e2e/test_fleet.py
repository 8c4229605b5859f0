"""Joining and staying in a fleet: real agent processes, real mutual TLS, and everybody who must be kept out."""

import asyncio
import os
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import grpc
import pytest
from brownout_agent.agent.identity import JoinError, load, new_key, request_for, save_membership
from brownout_agent.agent.joining import join
from brownout_agent.agent.trust import SERVER_NAME, controllers_of
from brownout_agent.kernel.clock import boottime_ns
from brownout_controller.fleet import server
from brownout_controller.fleet.authority import Authority, Peer, read_request
from brownout_controller.serving import Controller
from brownout_protos.v1 import fleet_pb2, fleet_pb2_grpc

from tests.host.network_pair import inside, network_namespace
from tests.support.fleets import BIN, Entries, agent, agent_id, controller, injector, joined, membership, said, until

pytestmark = pytest.mark.injects


def test_an_agent_joins_by_token_and_pin_and_its_clock_is_measured(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving, agent(await joined(serving, tmp_path / "a")):
            assert await serving.fleet.wait_for(1, 15)
            (host,) = serving.fleet.connected
            assert (host.name, host.labels) == ("app-1", {"role": "app", "host": "app-1"})
            clock = host.clock.best(time.monotonic_ns())
            assert clock is not None
            # Both clocks are this machine's: the true offset is known, and must lie within the stated error.
            truth = boottime_ns() - time.monotonic_ns()
            assert abs(clock.offset_ns - truth) <= clock.error_ns + 100_000

    asyncio.run(story())


def test_a_token_is_good_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            token = serving.identities.create_token()
            await join(tmp_path / "a", membership(serving), token, serving.authority.pin, wait_s=5)
            with pytest.raises(JoinError, match="the token is not good"):
                await join(tmp_path / "b", membership(serving), token, serving.authority.pin, wait_s=5)
            assert not (tmp_path / "b").exists()

    asyncio.run(story())


def test_of_many_that_show_one_token_at_once_one_gets_in(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            token = serving.identities.create_token()
            tries = [
                join(tmp_path / f"a{n}", membership(serving), token, serving.authority.pin, wait_s=5) for n in range(8)
            ]
            results = await asyncio.gather(*tries, return_exceptions=True)
            assert sum(not isinstance(result, BaseException) for result in results) == 1

    asyncio.run(story())


def test_an_expired_token_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            token = serving.identities.create_token(ttl_s=-1)
            with pytest.raises(JoinError, match="the token is not good"):
                await join(tmp_path / "a", membership(serving), token, serving.authority.pin, wait_s=5)

    asyncio.run(story())


def test_a_controller_with_another_pin_is_not_trusted_and_gets_no_token(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            token = serving.identities.create_token()
            with pytest.raises(JoinError, match="shows no authority with the pin"):
                await join(tmp_path / "a", membership(serving), token, "sha256:" + "0" * 64, wait_s=5)
            await join(tmp_path / "b", membership(serving), token, serving.authority.pin, wait_s=5)

    asyncio.run(story())


def test_an_agent_comes_back_to_a_controller_that_was_away(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            folder, port = await joined(serving, tmp_path / "a"), serving.port
            async with agent(folder):
                assert await serving.fleet.wait_for(1, 15)
                first = epoch_of(serving)
        async with agent(folder), controller(tmp_path / "c", port) as serving:
            assert await serving.fleet.wait_for(1, 15)
            assert epoch_of(serving) > first
            assert (folder / "epoch").read_text().split()[0] == str(epoch_of(serving))

    asyncio.run(story())


@pytest.mark.parametrize("role", ["nobody", "other authority", "not enrolled", "the controller itself"])
def test_who_is_no_agent_of_this_cluster_gets_no_session(tmp_path: Path, role: str) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            key, certificate = _credentials(role, serving.authority, tmp_path)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await _greet(serving, key, certificate)
            assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED}
            assert serving.fleet.connected == []

    asyncio.run(story())


def test_an_agent_that_controls_its_request_cannot_choose_its_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    request = read_request(request_for(new_key()))
    issued = authority.issue(request, "11111111-1111-1111-1111-111111111111")
    assert authority.peer_of(issued.certificate_pem) == Peer("11111111-1111-1111-1111-111111111111", issued.serial, 1)
    assert authority.peer_of(authority.server_pair().certificate_pem) is None


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    async def story() -> Path:
        async with controller(tmp_path / "c") as serving:
            return await joined(serving, tmp_path / "a")

    folder = asyncio.run(story())
    (folder / "identity.pem").chmod(0o644)
    argv = [BIN / "brownout-agent", "run", "--state-dir", folder]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "chmod 600" in done.stderr


def epoch_of(serving: Controller) -> int:
    """With which it owns the only host that is connected."""
    (host,) = serving.fleet.connected
    assert host.session is not None
    return host.session.epoch


def _credentials(role: str, authority: Authority, folder: Path) -> tuple[bytes, bytes]:
    key = new_key()
    request = read_request(request_for(key))
    if role == "nobody":
        return b"", b""
    if role == "other authority":
        return key, Authority(folder / "other").issue(request, "22222222-2222-2222-2222-222222222222").certificate_pem
    if role == "not enrolled":
        return key, authority.issue(request, "33333333-3333-3333-3333-333333333333").certificate_pem
    pair = authority.server_pair()
    return pair.key_pem, pair.certificate_pem


async def _greet(serving: Controller, key: bytes, certificate: bytes) -> None:
    credentials = grpc.ssl_channel_credentials(
        controllers_of(serving.authority.bundle_pem), key or None, certificate or None
    )
    options = (("grpc.ssl_target_name_override", SERVER_NAME),)
    async with grpc.aio.secure_channel(f"127.0.0.1:{serving.port}", credentials, options=options) as channel:
        # Nothing is written: who is refused is refused before a word, and a write into an ended call hides why.
        call = fleet_pb2_grpc.FleetStub(channel).Session(timeout=5)
        await call.read()
        raise AssertionError("it was let in")


def test_two_agents_with_one_name_are_told_so_and_the_first_one_stays(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            first, second = await joined(serving, tmp_path / "a"), await joined(serving, tmp_path / "b")
            async with agent(first):
                assert await serving.fleet.wait_for(1, 15)
                async with agent(second):
                    await said(second, "another agent is connected as `app-1`; give each host its own --name")
                assert [host.agent_id for host in serving.fleet.connected] == [agent_id(first)]
                assert "another agent" in serving.fleet.turned_away["app-1"]

    asyncio.run(story())


def test_who_has_the_key_of_one_host_cannot_come_as_another_that_is_away(tmp_path: Path) -> None:
    async def story() -> None:
        audit = Entries()
        async with controller(tmp_path / "c", auditor=audit) as serving:
            stolen, other = (
                await joined(serving, tmp_path / "a", "web-1"),
                await joined(serving, tmp_path / "b", "db-1"),
            )
            for folder in (stolen, other):
                async with agent(folder):
                    assert await serving.fleet.wait_for(1, 15)
            identity = load(stolen)
            save_membership(stolen, replace(identity.membership, name="db-1"))
            async with agent(stolen):
                await said(stolen, "this agent is host `web-1`, and not `db-1`")
                assert serving.fleet.connected == []
            async with agent(other):
                assert await serving.fleet.wait_for(1, 15)
                assert [host.agent_id for host in serving.fleet.connected] == [agent_id(other)]
            refusals = [entry.actor for entry in audit.refusals("agent.session")]
            assert set(refusals) == {f"agent:{agent_id(stolen)}"}
            assert {line.agent_id: line.host for line in serving.identities.agents()}[agent_id(stolen)] == "web-1"

    asyncio.run(story())


def test_an_agent_of_another_version_is_told_which_two_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "__version__", "9.9.9")

    async def story() -> None:
        async with controller(tmp_path / "c") as serving, agent(await joined(serving, tmp_path / "a")):
            await said(tmp_path / "a", "and controller 9.9.9 differ; upgrade")
            assert serving.fleet.connected == []

    asyncio.run(story())


def test_a_host_cannot_be_called_controller(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            async with agent(await joined(serving, tmp_path / "a", "controller")):
                await said(tmp_path / "a", "`controller` means the controller itself")
            assert serving.fleet.connected == []

    asyncio.run(story())


@pytest.mark.parametrize("greets", [True, False])
def test_a_controller_that_ends_leaves_no_traceback_whoever_is_connected(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], greets: bool
) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving:
            identity = load(await joined(serving, tmp_path / "a"))
            credentials = grpc.ssl_channel_credentials(
                controllers_of(identity.authority_pem), identity.key_pem, identity.certificate_pem
            )
            options = (("grpc.ssl_target_name_override", SERVER_NAME),)
            channel = grpc.aio.secure_channel(f"127.0.0.1:{serving.port}", credentials, options=options)
            call = fleet_pb2_grpc.FleetStub(channel).Session()
            if greets:
                hello = fleet_pb2.Hello(host="app-1", version=server.__version__)
                await call.write(fleet_pb2.AgentMessage(hello=hello))
                await call.read()
            else:
                await asyncio.wait_for(channel.channel_ready(), 5)
                await asyncio.sleep(0.2)  # a call without a message: nothing tells when the server has it
            begun = time.monotonic()
        assert time.monotonic() - begun < 2, "nobody was waited for"
        call.cancel()
        await channel.close()

    asyncio.run(story())
    assert "Traceback" not in capfd.readouterr().err


def test_an_injector_that_answers_while_the_stream_is_being_opened_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        asked, may_pass = asyncio.Event(), asyncio.Event()
        take = server.FleetService._take

        async def take_late(self: server.FleetService, *arguments: Any) -> int:
            asked.set()
            await may_pass.wait()
            return await take(self, *arguments)

        async with controller(tmp_path / "c") as serving:
            folder = await joined(serving, tmp_path / "a")
            async with agent(folder):  # whom it trusts is learned, of which it tells in a word of its own
                assert await serving.fleet.wait_for(1, 15)
            await until(lambda: not serving.fleet.connected)
            monkeypatch.setattr(server.FleetService, "_take", take_late)
            async with agent(folder):
                await asked.wait()
                async with injector(folder / "none.sock", tmp_path / "i"):
                    await said(folder, "the injector is able to do")
                    may_pass.set()
                    assert await serving.fleet.wait_for(1, 15, with_injector=True)

    asyncio.run(story())


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_the_fleet_knows_the_addresses_of_a_host_also_when_one_comes_or_goes(tmp_path: Path) -> None:
    # In a process of its own: threads of gRPC that are there already stay in the network in which they were started.
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:
        apart.submit(_addresses_come_and_go, tmp_path).result()


def _addresses_come_and_go(folder: Path) -> None:
    def change(verb: str, address: str) -> None:
        subprocess.run(["ip", "address", verb, address, "dev", "lo"], check=True)

    async def story() -> None:
        async with controller(folder / "c") as serving, agent(await joined(serving, folder / "a")):
            assert await serving.fleet.wait_for(1, 15)
            (host,) = serving.fleet.connected
            assert list(host.hello.addresses) == ["192.0.2.1"]
            change("add", "192.0.2.9/32")
            change("add", "2001:db8::9/128")
            await until(lambda: list(host.hello.addresses) == ["192.0.2.1", "192.0.2.9", "2001:db8::9"])
            change("delete", "192.0.2.9/32")
            await until(lambda: list(host.hello.addresses) == ["192.0.2.1", "2001:db8::9"])

    with network_namespace() as namespace, inside(namespace):
        change("add", "192.0.2.1/24")
        asyncio.run(story())


def test_a_dead_injector_and_a_new_one_are_seen_in_the_fleet(tmp_path: Path) -> None:
    async def story() -> None:
        async with controller(tmp_path / "c") as serving, agent(await joined(serving, tmp_path / "a")):
            assert await serving.fleet.wait_for(1, 15)
            (host,) = serving.fleet.connected
            assert not host.hello.injector_attached
            async with injector(tmp_path / "a" / "none.sock", tmp_path / "i"):
                assert await serving.fleet.wait_for(1, 15, with_injector=True)
                assert "cpu.load" in host.able
            await until(lambda: not host.hello.injector_attached)

    asyncio.run(story())
