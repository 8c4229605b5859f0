"""The HAProxy watcher against real HAProxy and nginx, with HAProxy's own log as the oracle of when things happened."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.observe import Change
from brownout_agent.watchers.haproxy import HaproxyWatcher

from tests.support.peers import peer, says_then_hangs
from tests.support.residue import nothing_left
from tests.support.services import Haproxy, LogLines, Service, app_server, free_port, haproxy, log_receiver

EVERY_S = 0.05
SLACK_NS = 50_000_000
"""What a log line may take from HAProxy to the test's thread, and a look from HAProxy to us."""


@dataclass
class Shop:
    """An HAProxy with two real servers behind it."""

    balancer: Haproxy
    apps: list[Service]
    log: LogLines

    def watcher(self) -> HaproxyWatcher:
        return HaproxyWatcher(str(self.balancer.socket), "shop", timeout_ms=300)


def backend(*ports: int, check: str = "check inter 100ms fall 2 rise 2") -> str:
    servers = "\n".join(f"  server app-{number} 127.0.0.1:{port} {check}" for number, port in enumerate(ports, 1))
    return f"frontend edge\n  bind 127.0.0.1:{free_port()}\n  default_backend shop\nbackend shop\n{servers}\n"


@pytest.fixture
def shop() -> Iterator[Shop]:
    ports = free_port(), free_port()
    with (
        app_server("app-1", ports[0]) as one,
        app_server("app-2", ports[1]) as two,
        log_receiver() as log,
        haproxy(backend(*ports), log.path) as balancer,
    ):
        yield Shop(balancer, [one, two], log)


@dataclass
class Watched:
    """A watcher's changes as a test reads them: each is awaited, none is skipped over unseen."""

    stream: AsyncIterator[Change]
    seen: list[Change] = field(default_factory=list)

    async def until(self, subject: str, after: str) -> Change:
        """The next change of `subject` to `after`; fails when it does not come within ten seconds."""
        async with asyncio.timeout(10):
            async for change in self.stream:
                self.seen.append(change)
                if (change.subject, change.after) == (subject, after):
                    return change
        raise AssertionError(f"the watcher ended before {subject} was {after}")


@contextlib.asynccontextmanager
async def watching(watcher: HaproxyWatcher) -> AsyncIterator[Watched]:
    """Begin to watch, and have read the first look's three changes."""
    async with nothing_left(), contextlib.aclosing(watcher.changes(EVERY_S)) as stream:
        watched = Watched(stream)
        await watched.until("shop/app-2", "UP")
        yield watched


async def logged(log: LogLines, text: str, after_ns: int) -> int:
    """When the line came that holds `text`; it may still be on its way to the reading thread."""
    async with asyncio.timeout(2):
        while not (at_ns := log.first(text, after_ns)):
            await asyncio.sleep(0.002)
    return at_ns


def assert_agrees(change: Change, logged_ns: int) -> None:
    """The change lies where the log says, and was seen within one interval."""
    assert change.not_before_ns - SLACK_NS <= logged_ns <= change.at_ns + SLACK_NS
    assert change.at_ns - logged_ns <= EVERY_S * 1e9 + SLACK_NS


def test_the_first_look_tells_how_the_timeline_begins(shop: Shop) -> None:
    async def look() -> list[Change]:
        async with watching(shop.watcher()) as watched:
            return watched.seen

    begin_ns = boottime_ns()
    seen = asyncio.run(look())
    assert [(change.subject, change.before, change.after) for change in seen] == [
        ("shop", "", "UP"),
        ("shop/app-1", "", "UP"),
        ("shop/app-2", "", "UP"),
    ]
    assert all(begin_ns <= change.not_before_ns <= change.at_ns <= boottime_ns() for change in seen)


def test_a_killed_server_is_seen_down_and_up_again_when_haproxys_own_log_says_so(shop: Shop) -> None:
    async def lose_and_regain() -> list[Change]:
        async with watching(shop.watcher()) as watched:
            killed_ns = boottime_ns()
            shop.apps[0].kill()
            down = await watched.until("shop/app-1", "DOWN")
            assert_agrees(down, await logged(shop.log, "Server shop/app-1 is DOWN", killed_ns))
            assert "refused" in down.detail
            started_ns = boottime_ns()
            shop.apps[0].start()
            up = await watched.until("shop/app-1", "UP")
            assert_agrees(up, await logged(shop.log, "Server shop/app-1 is UP", started_ns))
            return watched.seen

    seen = asyncio.run(lose_and_regain())
    # A failing check on the way (`UP 1/2`, `DOWN 1/2`) is no change, and the backend was up all the while.
    assert [(change.subject, change.before, change.after) for change in seen[3:]] == [
        ("shop/app-1", "UP", "DOWN"),
        ("shop/app-1", "DOWN", "UP"),
    ]


def test_a_backend_without_servers_is_down(shop: Shop) -> None:
    async def lose_both() -> Change:
        async with watching(shop.watcher()) as watched:
            killed_ns = boottime_ns()
            for app in shop.apps:
                app.kill()
            down = await watched.until("shop", "DOWN")
            assert_agrees(down, await logged(shop.log, "backend shop has no server available", killed_ns))
            return down

    assert asyncio.run(lose_both()).before == "UP"


def test_what_an_operator_does_is_seen_as_maintenance_and_drain(shop: Shop) -> None:
    async def operate() -> list[str]:
        async with watching(shop.watcher()) as watched:
            for state, word in (("maint", "MAINT"), ("ready", "UP"), ("drain", "DRAIN"), ("ready", "UP")):
                shop.balancer.command(f"set server shop/app-2 state {state}")
                await watched.until("shop/app-2", word)
            return [change.after for change in watched.seen[3:] if change.subject == "shop/app-2"]

    # Out of maintenance HAProxy lets the first check decide: it may be DOWN for a moment before it is UP.
    words = [word for word in asyncio.run(operate()) if word != "DOWN"]
    assert words == ["MAINT", "UP", "DRAIN", "UP"]


def test_a_lost_haproxy_is_unreadable_and_says_nothing_of_its_servers(shop: Shop) -> None:
    async def lose_haproxy() -> tuple[list[Change], int, int]:
        async with watching(shop.watcher()) as watched:
            killed_ns = boottime_ns()
            shop.balancer.service.kill()
            lost = await watched.until("shop", "unreadable")
            assert lost.not_before_ns <= killed_ns <= lost.at_ns
            shop.apps[0].kill()
            started_ns = boottime_ns()
            shop.balancer.service.start()
            await watched.until("shop/app-1", "DOWN")
            return watched.seen[3:], killed_ns, started_ns

    seen, killed_ns, started_ns = asyncio.run(lose_haproxy())
    steps = [(change.subject, change.before, change.after) for change in seen]
    assert steps == [("shop", "UP", "unreadable"), ("shop", "unreadable", "UP"), ("shop/app-1", "UP", "DOWN")]
    assert seen[0].detail, "why it could not be read"
    assert seen[1].not_before_ns >= killed_ns
    assert seen[1].at_ns >= started_ns


def test_a_haproxy_that_hangs_is_unreadable_after_the_timeout(shop: Shop) -> None:
    async def hang() -> Change:
        async with watching(shop.watcher()) as watched:
            shop.balancer.service.pause()
            try:
                lost = await watched.until("shop", "unreadable")
            finally:
                shop.balancer.service.resume()
            await watched.until("shop", "UP")
            return lost

    lost = asyncio.run(hang())
    assert "no answer within 300 ms" in lost.detail
    assert lost.at_ns - lost.not_before_ns < 700_000_000


def test_servers_without_checks_are_said_to_have_none() -> None:
    async def look(balancer: Haproxy) -> Change:
        watcher = HaproxyWatcher(str(balancer.socket), "shop")
        async with nothing_left(), contextlib.aclosing(watcher.changes(EVERY_S)) as stream:
            return await Watched(stream).until("shop/app-1", "no check")

    with haproxy(backend(free_port(), check="")) as balancer:
        assert asyncio.run(look(balancer)).before == ""


def test_a_runtime_socket_on_tcp_is_read_the_same_way() -> None:
    port = free_port()
    runtime = f"global\n  stats socket ipv4@127.0.0.1:{port} level user\n"

    async def look() -> Change:
        watcher = HaproxyWatcher(f"127.0.0.1:{port}", "shop")
        async with nothing_left(), contextlib.aclosing(watcher.changes(EVERY_S)) as stream:
            return await Watched(stream).until("shop/app-1", "no check")

    with haproxy(runtime + backend(free_port(), check="")):
        assert asyncio.run(look()).subject == "shop/app-1"


async def first_change(watcher: HaproxyWatcher) -> Change:
    async with nothing_left(), contextlib.aclosing(watcher.changes(EVERY_S)) as stream:
        return await anext(stream)


def test_a_socket_that_was_never_there_raises_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(first_change(HaproxyWatcher(str(tmp_path / "admin.sock"), "shop")))


def test_a_backend_that_haproxy_does_not_have_is_refused_with_those_it_has(shop: Shop) -> None:
    with pytest.raises(ValueError, match="no backend `shpo`; it has shop"):
        asyncio.run(first_change(HaproxyWatcher(str(shop.balancer.socket), "shpo")))


def test_a_socket_that_belongs_to_somebody_else_is_refused() -> None:
    def banter(connection: socket.socket) -> None:
        connection.recv(1_000)
        connection.sendall(b"-ERR unknown command\r\n")

    with peer(banter) as port, pytest.raises(ValueError, match=r"not HAProxy's whole answer.*-ERR unknown command"):
        asyncio.run(first_change(HaproxyWatcher(f"127.0.0.1:{port}", "shop")))


def test_a_first_look_that_gets_no_answer_raises_at_its_timeout() -> None:
    with peer(says_then_hangs(b"")) as port, pytest.raises(TimeoutError, match="no answer within 200 ms"):
        asyncio.run(first_change(HaproxyWatcher(f"127.0.0.1:{port}", "shop", timeout_ms=200)))
