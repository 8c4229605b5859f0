"""The controller's lever on a real database and real sessions; hosts are played by their words."""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from brownout_controller.audit.entry import AuditEntry
from brownout_controller.fleet.sessions import Arrival, Fleet, HostState, Peer, Session
from brownout_controller.running import halting
from brownout_controller.running.halting import HaltLever
from brownout_controller.store.database import Database
from brownout_protos.v1 import fault_pb2, fleet_pb2


class Audit:
    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    def record(self, entry: AuditEntry) -> None:
        self.entries.append(entry)

    record_later = record


class Run:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def halt(self, reason: str) -> None:
        self.reasons.append(reason)


class Runs:
    def __init__(self) -> None:
        self.active: dict[int, Run] = {1: Run(), 2: Run()}


def connected(fleet: Fleet, name: str) -> HostState:
    host = fleet.hosts[name] = HostState(f"id-{name}", name, {}, fleet_pb2.Hello(host=name))
    host.session = Session(Peer(f"id-{name}", "serial", 1))
    return host


async def answering(fleet: Fleet, host: HostState, **halted: object) -> None:
    """Play a host that answers every halt at once."""
    assert host.session is not None
    async for message in host.session.outgoing():
        if message.HasField("halt"):
            answer = fault_pb2.Halted(halt_id=message.halt.halt_id, **halted)  # type: ignore[arg-type]
            fleet.arrive(Arrival(host, time.monotonic_ns(), message=fleet_pb2.AgentMessage(halted=answer)))


def story(folder: Path, told: Callable[[Database, Fleet], Awaitable[None]]) -> None:
    async def with_database() -> None:
        database = Database.in_folder(folder)
        try:
            await told(database, Fleet())
        finally:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            database.close()

    asyncio.run(with_database())


def test_hosts_are_confirmed_by_their_word_alone_and_the_others_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halting, "ANSWER_WITHIN_S", 0.5)

    async def told(database: Database, fleet: Fleet) -> None:
        audit = Audit()
        lever = HaltLever(database, fleet, audit)
        good, left, _mute = (connected(fleet, name) for name in ("good", "left", "mute"))
        connected(fleet, "gone").session = None
        playing = [
            asyncio.create_task(answering(fleet, good, clean=True)),
            asyncio.create_task(answering(fleet, left, remaining=["f1", "f2"])),
        ]
        came = await lever.pull("fire", "user:mary")
        assert came.confirmed == ("good",)
        assert came.unconfirmed == {
            "gone": "no controller reached it within 0.5 s; by now its leases should have run out",
            "left": "not verified gone: f1, f2",
            "mute": "it did not answer within 0.5 s",
        }
        assert came.trouble == ""
        assert await lever.why_not() == "everything is halted: fire (user:mary); next: brownout resume"
        assert [(entry.actor, entry.action) for entry in audit.entries] == [("user:mary", "lever.pull")]
        assert all(not task.done() for task in playing)

    story(tmp_path, told)


def test_a_lever_outlives_its_controller_and_only_a_release_ends_it(tmp_path: Path) -> None:
    async def told(database: Database, fleet: Fleet) -> None:
        first = await HaltLever(database, fleet, Audit()).pull("fire", "user:mary")
        later = HaltLever(database, Fleet(), Audit())
        assert "fire" in await later.why_not()
        again = await later.pull("water", "user:bob")
        assert again.lever == first.lever, "the first reason stands"
        assert await later.release("user:bob") == first.lever
        assert await later.why_not() == ""
        assert await HaltLever(database, Fleet(), Audit()).why_not() == ""

    story(tmp_path, told)


def test_a_halt_from_elsewhere_reaches_runs_first_then_hosts_and_hosts_that_come_later(tmp_path: Path) -> None:
    async def told(database: Database, fleet: Fleet) -> None:
        host, runs, here = connected(fleet, "good"), Runs(), HaltLever(database, fleet, Audit())
        playing = asyncio.create_task(answering(fleet, host, clean=True))
        async with here.obeying(runs):
            begun_s = time.monotonic()
            came = await HaltLever(database, Fleet(), Audit()).pull("fire", "user:mary")  # a process without hosts
            while "good" not in came.confirmed:  # it knows of no host, so it need not wait for one
                assert time.monotonic() - begun_s < 5
                came = await HaltLever(database, Fleet(), Audit()).pull("fire", "user:mary")
            assert [run.reasons for run in runs.active.values()] == [["everything is halted: fire (user:mary)"]] * 2
            runs.active[3] = Run()  # one that was just beginning
            late = connected(fleet, "late")
            fleet.arrive(Arrival(late, time.monotonic_ns(), up=True))
            assert late.session is not None
            assert (await anext(late.session.outgoing())).HasField("halt")
            while not runs.active[3].reasons:
                assert time.monotonic() - begun_s < 10
                await asyncio.sleep(0.01)
        assert not playing.done()

    story(tmp_path, told)


def test_a_database_that_does_not_answer_keeps_no_halt_from_hosts_and_is_told_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halting, "ANSWER_WITHIN_S", 3.0)

    async def told(database: Database, fleet: Fleet) -> None:
        lever, host, runs = HaltLever(database, fleet, Audit()), connected(fleet, "good"), Runs()
        halted_s: list[float] = []

        async def play() -> None:
            assert host.session is not None
            async for message in host.session.outgoing():
                if message.HasField("halt"):
                    halted_s.append(time.monotonic())
                    answer = fault_pb2.Halted(halt_id=message.halt.halt_id, clean=True)
                    fleet.arrive(Arrival(host, time.monotonic_ns(), message=fleet_pb2.AgentMessage(halted=answer)))

        playing = asyncio.create_task(play())
        blocker = sqlite3.connect(tmp_path / "brownout.db", isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        begun_s = time.monotonic()
        came = await lever.pull("fire", "user:mary")
        assert halted_s[0] - begun_s < 2.0
        assert came.confirmed == ("good",)
        assert "did not answer" in came.trouble
        assert came.lever.number == 0
        assert "fire" in await lever.why_not()
        blocker.execute("COMMIT")
        blocker.close()
        async with lever.obeying(runs):
            while not (lever.standing and lever.standing.number):
                assert time.monotonic() - begun_s < 30
                await asyncio.sleep(0.01)
        assert "fire" in await HaltLever(database, Fleet(), Audit()).why_not()
        assert not playing.done()

    story(tmp_path, told)
