"""Whose a host is, on a real database, beside another controller: taken, shown, let go, and locked when it is two."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from brownout_controller.audit.log import audit_log
from brownout_controller.fleet import ownership
from brownout_controller.fleet.authority import Peer
from brownout_controller.fleet.ownership import LOOK_EVERY_S, Ownership, stop_strays
from brownout_controller.fleet.sessions import Fleet, HostState, Session
from brownout_controller.store.audit import AuditStore
from brownout_controller.store.database import Database, StoreError
from brownout_controller.store.identities import Certified, Identities, IdentityRefused
from brownout_controller.store.owners import Owners
from brownout_protos.v1 import fault_pb2, fleet_pb2

WITHIN_S = 30.0
US, THEM = "controller-us", "controller-them"
OUR_ADDRESS, THEIR_ADDRESS = "10.0.0.1:7700", "10.0.0.2:7700"
LOCKED = "this agent is locked: two live agents use its certificate"


class Looked(Owners):
    """Owners that count how often they are asked, of a database that does not answer while there is a reason."""

    reason = ""
    looks = 0

    def owned_by(self, controller_id: str) -> dict[str, int]:
        self.looks += 1
        if self.reason:
            raise StoreError(self.reason)
        return super().owned_by(controller_id)


class Locks(Identities):
    """Identities that cannot be written where a test wants it."""

    reason = ""

    def lock(self, agent_id: str, reason: str) -> None:
        if self.reason:
            raise StoreError(self.reason)
        super().lock(agent_id, reason)


@dataclass
class Site:
    """One controller's part of a fleet, and the database that it shares with another."""

    database: Database
    fleet: Fleet
    owners: Looked
    theirs: Owners
    identities: Locks
    audit: AuditStore
    ownership: Ownership
    descriptions: dict[str, str] = field(default_factory=dict)
    welcomes: list[tuple[str, ...]] = field(default_factory=list)

    def enrol(self) -> str:
        certified = Certified(b"pem", "serial", time.time_ns() + 3600 * 10**9)
        return self.identities.redeem(self.identities.create_token(), "key", lambda _: certified)[0]

    async def connected(self, name: str = "app-1") -> HostState:
        """A host that came to us and is ours."""
        agent_id = self.enrol()
        session = Session(Peer(agent_id, "serial", 1), epoch=await self.ownership.take(agent_id, 0))
        host = HostState(agent_id, name, {}, fleet_pb2.Hello(host=name), session=session)
        self.fleet.hosts[name] = host
        return host

    def shown(self) -> dict[str, str]:
        """What the other controller can tell of our hosts."""
        return {one.agent_id: one.description for one in self.theirs.elsewhere(THEM)}

    async def looked(self, more: int = 5) -> None:
        """Return when the database was asked so often again."""
        enough = self.owners.looks + more
        await until(lambda: self.owners.looks >= enough)

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator["asyncio.Task[None]"]:
        task = asyncio.create_task(self.ownership.run(lambda: self.welcomes.append(self.ownership.controllers)))
        try:
            yield task
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(ownership, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(ownership, "CHALLENGE_S", 0.2)
    database = Database.in_folder(tmp_path / "data")
    fleet, identities, audit = Fleet(), Locks(database), AuditStore(database)
    owners, theirs = Looked(database, OUR_ADDRESS), Owners(database, THEIR_ADDRESS)
    descriptions: dict[str, str] = {}
    with audit_log(audit, tmp_path / "keys") as log, owners.life(US):
        mine = Ownership(fleet, owners, identities, log, US, lambda host: descriptions.get(host.name, host.name))
        mine.address = OUR_ADDRESS
        yield Site(database, fleet, owners, theirs, identities, audit, mine, descriptions)
    database.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def story(told: Callable[[], Awaitable[None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(WITHIN_S):
            await told()

    asyncio.run(in_time())


async def answering(session: Session) -> None:
    """An agent that reads its stream and answers what it is asked."""
    async for message in session.outgoing():
        if message.HasField("clock"):
            session.clock_answer(fleet_pb2.ClockReply(number=message.clock.number), time.monotonic_ns())


def session_of(host: HostState) -> Session:
    assert host.session is not None
    return host.session


# ---- taken and let go ------------------------------------------------------------------------------------------------


def test_a_host_that_comes_is_ours_by_an_epoch_that_rises_when_it_was_anothers(site: Site) -> None:
    async def told() -> None:
        agent_id = site.enrol()
        assert await site.ownership.take(agent_id, 0) == 1
        assert await site.ownership.take(agent_id, 0) == 1
        assert site.theirs.take(agent_id, THEM) == 2
        assert await site.ownership.take(agent_id, 0) == 3
        assert site.owners.owned_by(US) == {agent_id: 3}
        assert await site.ownership.take(agent_id, 9) == 10, "it goes beyond what the host has seen"

    story(told)


def test_a_host_that_another_controller_had_meanwhile_is_shown_as_before(site: Site) -> None:
    async def told() -> None:
        host = await site.connected()
        async with site.kept():
            await until(lambda: site.shown() == {host.agent_id: "app-1"})
            site.theirs.take(host.agent_id, THEM)
            host.session = Session(session_of(host).peer, epoch=await site.ownership.take(host.agent_id, 0))
            await until(lambda: site.shown() == {host.agent_id: "app-1"})

    story(told)


def test_a_host_that_is_shown_while_it_is_taken_is_shown_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real, may_go_on = site.owners.take, threading.Event()

    def take(*order: Any) -> int:
        assert may_go_on.wait(WITHIN_S)
        return real(*order)

    async def told() -> None:
        host = await site.connected()
        async with site.kept():
            await until(lambda: site.shown() == {host.agent_id: "app-1"})
            monkeypatch.setattr(ownership, "CHALLENGE_S", WITHIN_S)
            monkeypatch.setattr(site.owners, "take", take)
            site.theirs.take(host.agent_id, THEM)
            taking = asyncio.create_task(site.ownership.take(host.agent_id, 0))
            await site.looked()
            may_go_on.set()
            await taking
            await until(lambda: site.shown() == {host.agent_id: "app-1"})

    story(told)


def test_what_could_not_be_shown_is_tried_again_and_nothing_else(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written: list[dict[str, str | None]] = []
    taken: list[str] = []
    real = site.owners.describe

    def describe(controller_id: str, descriptions: dict[str, str | None]) -> None:
        written.append(descriptions)
        if len(written) == 2:
            site.ownership._shown.pop(taken[0])  # as it is when a host is taken at this very moment
            raise StoreError("the disk is full")
        real(controller_id, descriptions)

    monkeypatch.setattr(site.owners, "describe", describe)

    async def told() -> None:
        hosts = [await site.connected(f"app-{number}") for number in range(4)]
        changed, gone, same, retaken = (host.agent_id for host in hosts)
        taken.append(retaken)
        async with site.kept():
            await until(lambda: len(written) == 1)
            site.descriptions["app-0"], hosts[1].session = "app-0, busy", None
            await until(lambda: len(written) == 3)
            await until(lambda: site.shown() == {changed: "app-0, busy", same: "app-2", retaken: "app-3"})
            await site.looked()
        assert written[1:] == [
            {gone: None, changed: "app-0, busy"}, {gone: None, changed: "app-0, busy", retaken: "app-3"},
        ]  # fmt: skip

    story(told)
    assert "whose each host is cannot be read now: the disk is full" in caplog.text


def test_where_agents_reach_a_controller_is_not_known_before_it_is_said(site: Site) -> None:
    fresh = Ownership(site.fleet, site.owners, site.identities, site.ownership._auditor, US, lambda host: host.name)
    assert (fresh.address, fresh.controllers) == ("", ())


def test_a_stream_whose_host_another_controller_took_is_let_go_and_the_others_are_not(site: Site) -> None:
    async def told() -> None:
        taken, kept = await site.connected("app-1"), await site.connected("app-2")
        async with site.kept():
            site.theirs.take(taken.agent_id, THEM)
            await until(lambda: session_of(taken).taken)
            await until(lambda: session_of(taken).closed)
            assert session_of(taken).refusal == "another controller owns this host now"
            assert session_of(taken).refusal_code is grpc.StatusCode.ABORTED
            assert (session_of(kept).taken, session_of(kept).closed) == (False, False)
            site.identities.admit(taken.agent_id, "serial")  # it is not locked
            await until(lambda: not site.ownership._leaving)

    story(told)


def test_a_stream_of_an_older_epoch_is_let_go_though_the_host_is_ours_again(site: Site) -> None:
    async def told() -> None:
        host = await site.connected()
        old = session_of(host)
        site.theirs.take(host.agent_id, THEM)
        new = Session(old.peer, epoch=await site.ownership.take(host.agent_id, 0))
        async with site.kept():
            await until(lambda: old.closed)
            host.session = new
            await site.looked()
            assert (new.taken, new.closed) == (False, False)

    story(told)


def test_whoever_still_answers_on_a_taken_stream_is_a_twin_and_locks_the_agent(site: Site) -> None:
    async def told() -> None:
        host = await site.connected()
        answers = asyncio.create_task(answering(session_of(host)))
        async with site.kept():
            site.theirs.take(host.agent_id, THEM)
            await until(lambda: len(site.audit.newest(9)) == 1)
        await answers
        session = session_of(host)
        assert (session.refusal, session.refusal_code) == (LOCKED, grpc.StatusCode.PERMISSION_DENIED)
        with pytest.raises(IdentityRefused, match="two live agents use its certificate"):
            site.identities.admit(host.agent_id, "serial")
        (row,) = site.audit.newest(9)
        actor = f"agent:{host.agent_id}"
        assert (row["actor"], row["action"], row["subject"], row["outcome"], row["reason"]) == (
            actor, "agent.lock", actor, "allowed", "two live agents use its certificate",
        )  # fmt: skip

    story(told)


def test_a_twin_is_cut_off_though_its_lock_cannot_be_written(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async def told() -> None:
        host = await site.connected()
        site.identities.reason = "the disk is full"
        answers = asyncio.create_task(answering(session_of(host)))
        async with site.kept():
            site.theirs.take(host.agent_id, THEM)
            await until(lambda: "could not be locked: the disk is full" in caplog.text)
        await answers
        assert session_of(host).refusal == LOCKED

    story(told)


def test_a_taken_stream_is_asked_once_and_one_that_ended_by_itself_never(site: Site) -> None:
    async def told() -> None:
        asked, ended = await site.connected("app-1"), await site.connected("app-2")
        session_of(ended).close()
        for host in (asked, ended):
            site.theirs.take(host.agent_id, THEM)
        async with site.kept():
            await until(lambda: session_of(asked).taken)
            begun = set(site.ownership._leaving)
            await until(lambda: session_of(asked).closed)
            assert len(begun) == 1
        assert (session_of(ended).taken, session_of(ended).refusal) == (False, "")
        assert len(session_of(asked)._queue) == 0, "nothing of its questions is written any more"
        assert session_of(asked)._challenged.keys() == {session_of(asked)._number}

    story(told)


def test_a_controller_that_ends_leaves_no_question_open(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "CHALLENGE_S", 60.0)

    async def told() -> None:
        host = await site.connected()
        site.theirs.take(host.agent_id, THEM)
        async with site.kept():
            await until(lambda: bool(site.ownership._leaving))
            (asking,) = site.ownership._leaving
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()
        assert session_of(host).refusal == ""

    story(told)


# ---- shown to the others ---------------------------------------------------------------------------------------------


def test_the_others_see_our_hosts_as_they_are_and_no_longer_when_they_went(site: Site) -> None:
    async def told() -> None:
        one, other = await site.connected("app-1"), await site.connected("app-2")
        async with site.kept():
            await until(lambda: site.shown() == {one.agent_id: "app-1", other.agent_id: "app-2"})
            site.descriptions["app-1"] = "app-1, busy"
            await until(lambda: site.shown()[one.agent_id] == "app-1, busy")
            other.session = None
            await until(lambda: site.shown() == {one.agent_id: "app-1, busy"})

    story(told)


def test_what_did_not_change_is_not_written_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[dict[str, str | None]] = []
    real = site.owners.describe

    def describe(controller_id: str, descriptions: dict[str, str | None]) -> None:
        written.append(descriptions)
        real(controller_id, descriptions)

    monkeypatch.setattr(site.owners, "describe", describe)

    async def told() -> None:
        one = await site.connected("app-1")
        async with site.kept():
            await site.looked()
            assert written == [{one.agent_id: "app-1"}]
            other = await site.connected("app-2")
            await until(lambda: len(written) == 2)
            one.session = None
            await until(lambda: len(written) == 3)
        assert written[1:] == [{other.agent_id: "app-2"}, {one.agent_id: None}]

    story(told)


def test_a_host_that_came_back_from_another_controller_is_shown_again(site: Site) -> None:
    async def told() -> None:
        host = await site.connected()
        async with site.kept():
            await until(lambda: site.shown() == {host.agent_id: "app-1"})
        site.theirs.take(host.agent_id, THEM)
        assert site.shown() == {}
        host.session = Session(session_of(host).peer, epoch=await site.ownership.take(host.agent_id, 0))
        async with site.kept():
            await until(lambda: site.shown() == {host.agent_id: "app-1"})

    story(told)


# ---- where the controllers are ---------------------------------------------------------------------------------------


def test_agents_are_told_of_controllers_when_there_are_others_and_this_one_comes_first(site: Site) -> None:
    async def told() -> None:
        async with site.kept():
            await until(lambda: site.welcomes == [(OUR_ADDRESS,)])
            with site.theirs.life(THEM):
                await until(lambda: len(site.welcomes) == 2)
            await until(lambda: len(site.welcomes) == 3)
            await site.looked()
        assert site.welcomes == [(OUR_ADDRESS,), (OUR_ADDRESS, THEIR_ADDRESS), (OUR_ADDRESS,)]

    story(told)


def test_this_controller_comes_first_though_another_lives_longer_and_is_left_out_without_an_address(
    site: Site, tmp_path: Path
) -> None:
    other = Database.in_folder(tmp_path / "other")
    elder, younger = Owners(other, THEIR_ADDRESS), Looked(other, OUR_ADDRESS)

    async def told() -> None:
        site.ownership._owners = younger
        with elder.life(THEM), younger.life(US):
            for address, controllers in (
                (OUR_ADDRESS, (OUR_ADDRESS, THEIR_ADDRESS)),
                ("", (THEIR_ADDRESS, OUR_ADDRESS)),
            ):
                site.ownership.address = address
                async with site.kept():
                    await until(lambda wanted=controllers: site.ownership.controllers == wanted)  # type: ignore[misc]

    story(told)
    other.close()


def test_a_database_that_does_not_answer_is_told_once_and_asked_again(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.name == ownership.__name__]

    async def told() -> None:
        async with site.kept():
            for reason, host in (("it is away", "app-1"), ("it is away", "app-2")):
                site.owners.reason = reason
                await site.looked()
                site.owners.reason = ""
                came = await site.connected(host)
                await until(lambda agent_id=came.agent_id: agent_id in site.shown())  # type: ignore[misc]
            for reason in ("it is away", "it is full"):
                site.owners.reason = reason
                await site.looked()

    with caplog.at_level(logging.WARNING, ownership.__name__):
        story(told)
    told_of = "whose each host is cannot be read now: {}"
    assert warnings() == [told_of.format(reason) for reason in ("it is away",) * 3 + ("it is full",)]


def test_it_looks_once_a_second() -> None:
    assert LOOK_EVERY_S == 1.0, "docs/several-controllers.md counts on it"


# ---- what a host brought along ---------------------------------------------------------------------------------------


def test_what_a_host_brought_along_and_was_not_ordered_here_is_stopped_unless_it_is_over() -> None:
    states = [
        fault_pb2.RECORDED, fault_pb2.ACTIVE, fault_pb2.UNDOING, fault_pb2.CLEAN, fault_pb2.RESIDUE,
    ]  # fmt: skip
    faults = [fault_pb2.FaultReport(fault_id=fault_pb2.FaultState.Name(state), state=state) for state in states]
    faults.append(fault_pb2.FaultReport(fault_id="ours", state=fault_pb2.ACTIVE))
    session = Session(Peer("agent", "serial", 1), epoch=7)
    host = HostState("agent", "app-1", {}, fleet_pb2.Hello(host="app-1", faults=faults), session=session)
    stop_strays(host, session, lambda fault_id: fault_id == "ours")
    session.close()

    async def sent() -> list[fleet_pb2.ControllerMessage]:
        return [message async for message in session.outgoing()]

    stops = [message.stop for message in asyncio.run(sent())]
    assert {stop.fault_id for stop in stops} == {"RECORDED", "ACTIVE"}
    reason = "another controller ordered it, and does not own this host any more"
    assert {(stop.reason, stop.epoch) for stop in stops} == {(reason, 7)}
