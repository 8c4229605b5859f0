"""A controller that was stolen, with every paper of a real one, talks to a real agent: the honest one gets it back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from brownout_agent.agent.identity import load, load_epoch, save_epoch, save_membership
from brownout_agent.chain import read_line
from brownout_agent.epochs import STEP_MAX
from brownout_controller.fleet.authority import Authority, read_request
from brownout_controller.serving import Controller
from brownout_controller.store.backup import back_up, restore
from brownout_protos.v1 import fault_pb2, fleet_pb2, fleet_pb2_grpc

from tests.support.fleets import agent, controller, joined, until

IDENTITY = ("identity.pem", "authority.pem")


class Thief(fleet_pb2_grpc.FleetServicer):
    """It shows a certificate that the cluster's own authority has made, and says what it likes."""

    def __init__(self, serving: Controller, folder: Path, welcome: fleet_pb2.Welcome) -> None:
        self.other = Authority(folder)
        self.heard: list[fleet_pb2.AgentMessage] = []
        self.renewals = 0
        self.says: list[fleet_pb2.ControllerMessage] = []
        self._welcome = welcome
        self._pair = serving.authority.server_pair()
        self._clients_pem = serving.authority.clients_pem
        self._server = grpc.aio.server()

    async def __aenter__(self) -> int:
        fleet_pb2_grpc.add_FleetServicer_to_server(self, self._server)
        pair = (self._pair.key_pem, self._pair.certificate_pem)
        credentials = grpc.ssl_server_credentials([pair], self._clients_pem, require_client_auth=True)
        port = self._server.add_secure_port("127.0.0.1:0", credentials)
        await self._server.start()
        return int(port)

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)

    async def Session(self, messages: Any, context: Any) -> AsyncIterator[fleet_pb2.ControllerMessage]:  # noqa: N802
        self.heard.append(await anext(messages))
        yield fleet_pb2.ControllerMessage(welcome=self._welcome)
        for message in self.says:
            yield message
        async for message in messages:
            self.heard.append(message)

    async def Renew(self, request: Any, context: Any) -> fleet_pb2.Certificate:  # noqa: N802
        """The agent's very key, signed by another authority."""
        self.renewals += 1
        given = self.other.issue(read_request(request.certificate_request_pem), "somebody")
        return fleet_pb2.Certificate(certificate_pem=given.certificate_pem, authority_pem=self.other.bundle_pem)


Told = Callable[[Controller, Path, Thief], Awaitable[None]]


def stolen(folder: Path, welcome: fleet_pb2.Welcome, told: Told) -> None:
    """An agent's home that knows the thief as well, and tries it first."""

    async def story() -> None:
        async with controller(folder / "c") as serving:
            home = await joined(serving, folder / "a")
            thief = Thief(serving, folder / "other", welcome)
            if welcome.authority_pem == b"other":
                welcome.authority_pem = thief.other.bundle_pem
            elif welcome.authority_pem == b"both":
                welcome.authority_pem = serving.authority.bundle_pem + thief.other.bundle_pem
            async with thief as port:
                membership = replace(load(home).membership, controllers=[f"127.0.0.1:{port}"])
                save_membership(home, membership)
                await told(serving, home, thief)

    asyncio.run(story())


def refusals(home: Path, action: str) -> list[str]:
    lines = (home / "audit.jsonl").read_text().splitlines() if (home / "audit.jsonl").exists() else []
    kept = [read_line(line).document for line in lines]
    return [one["reason"] for one in kept if one["action"] == action and one["outcome"] == "refused"]


@pytest.mark.parametrize(
    ("welcome", "why"),
    [
        (fleet_pb2.Welcome(epoch=2**64 - 1), "epoch 18446744073709551615 is more than"),
        (fleet_pb2.Welcome(epoch=STEP_MAX + 1), "is more than"),
        (fleet_pb2.Welcome(epoch=5, authority_pem=b"other"), "no root that this host knows"),
        (fleet_pb2.Welcome(epoch=5, authority_pem=b"both"), "tells of a new root"),
        (
            fleet_pb2.Welcome(epoch=5, authority_pem=b"nonsense"),
            "without a controllers' authority|cannot be read|no root",
        ),
    ],
    ids=["last epoch", "epoch too far", "other authority", "another root beside", "nonsense"],
)
def test_a_welcome_that_would_lock_the_honest_ones_out_is_refused_whole_and_the_agent_goes_on_to_them(
    tmp_path: Path, welcome: fleet_pb2.Welcome, why: str
) -> None:
    async def told(serving: Controller, home: Path, thief: Thief) -> None:
        before = [(home / name).read_bytes() for name in IDENTITY]
        async with agent(home):
            assert await serving.fleet.wait_for(1, 40)
            (host,) = serving.fleet.connected
            assert host.session is not None
            assert host.session.epoch == 1
            assert thief.heard, "it was tried first"
            reasons = refusals(home, "controller.session")
            assert any(part in reasons[0] for part in why.split("|")), reasons
            assert [(home / name).read_bytes() for name in IDENTITY] == before
            await until(lambda: load_epoch(home) == 1)

    stolen(tmp_path, fleet_pb2.Welcome.FromString(welcome.SerializeToString()), told)


def test_the_largest_step_that_is_obeyed_is_one_that_the_honest_controller_goes_beyond(tmp_path: Path) -> None:
    async def told(serving: Controller, home: Path, thief: Thief) -> None:
        async with agent(home):
            await until(lambda: load_epoch(home) == STEP_MAX, 40)
            await thief.__aexit__()
            assert await serving.fleet.wait_for(1, 40)
            (host,) = serving.fleet.connected
            assert host.session is not None
            assert host.session.epoch == STEP_MAX + 1

    stolen(tmp_path, fleet_pb2.Welcome(epoch=STEP_MAX), told)


def test_its_renewal_and_its_order_of_another_epoch_are_refused_and_nothing_of_them_is_kept(tmp_path: Path) -> None:
    async def told(serving: Controller, home: Path, thief: Thief) -> None:
        before = [(home / name).read_bytes() for name in IDENTITY]
        order = fault_pb2.Inject(
            fault_id="f-1", kind="cpu.load", agent_id=load(home).membership.agent_id, session=9, epoch=2**64 - 1
        )
        thief.says = [
            fleet_pb2.ControllerMessage(inject=order),
            fleet_pb2.ControllerMessage(welcome=fleet_pb2.Welcome(epoch=5, session=9, renew=True)),
        ]
        async with agent(home):
            await until(lambda: thief.renewals > 0 and bool(refusals(home, "controller.renew")), 40)
            await until(lambda: any(one.reply.fault_id == "f-1" for one in thief.heard), 40)
            (refused, *_) = refusals(home, "fault.inject")
            assert refused == "it carries epoch 18446744073709551615; this host obeys 5"
            await thief.__aexit__()
            assert await serving.fleet.wait_for(1, 40)
            assert [(home / name).read_bytes() for name in IDENTITY] == before

    stolen(tmp_path, fleet_pb2.Welcome(epoch=5, session=9), told)


def test_who_joins_anew_begins_anew_and_comes_in(tmp_path: Path) -> None:
    async def told(serving: Controller, home: Path, thief: Thief) -> None:
        save_epoch(home, 2**62)
        await joined(serving, home)
        assert load_epoch(home) == 0
        async with agent(home):
            assert await serving.fleet.wait_for(1, 40)

    stolen(tmp_path, fleet_pb2.Welcome(), told)


def test_hosts_that_obeyed_later_epochs_than_a_restored_backup_knows_are_owned_beyond_them(tmp_path: Path) -> None:
    async def story() -> None:
        data, port, home = tmp_path / "c", 0, tmp_path / "a"
        for life in range(1, 4):
            async with controller(data, port) as serving:
                port = serving.port
                if life == 1:
                    await joined(serving, home)
                async with agent(home):
                    await until(lambda least=life: load_epoch(home) >= least, 40)
            if life == 1:
                back_up(data, tmp_path / "backup")
        obeyed = load_epoch(home)
        restore(data, tmp_path / "backup")
        async with controller(data, port) as serving, agent(home):
            await until(lambda: load_epoch(home) > obeyed, 40)
            await until(lambda: bool(serving.fleet.connected), 40)
            (host,) = serving.fleet.connected
            assert host.session is not None
            assert host.session.epoch > obeyed

    asyncio.run(story())
