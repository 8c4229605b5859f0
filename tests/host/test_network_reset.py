"""network.reset against the kernel: real connections between two namespaces, judged by the errors of their sockets."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from brownout_agent.faults.network_rules import FAMILY
from brownout_agent.kernel.nftables import table_names

from tests.host.network_pair import (
    BYSTANDER,
    FAR,
    FAR6,
    NEAR,
    NEAR6,
    Pair,
    echo_error,
    echoing,
    inside,
    network_pair,
    tcp_answers,
    tcp_error,
)
from tests.support.faultbench import held

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]


@pytest.fixture(scope="module")
def cable() -> Iterator[Pair]:
    with network_pair() as pair, echoing(pair.near, 6000):
        yield pair


@pytest.fixture(autouse=True)
def pair(cable: Pair) -> Iterator[Pair]:
    """Every test runs inside `near`, finds it without rules and leaves it so."""
    with inside(cable.near):
        assert table_names(FAMILY) == []
        yield cable
        assert table_names(FAMILY) == []


@pytest.fixture
def connect() -> Iterator["Connect"]:
    with ExitStack() as stack:
        yield Connect(stack)


class Connect:
    """Opens connections that echo, and closes them when the test is over."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(self, address: str, port: int) -> socket.socket:
        connection = self._stack.enter_context(socket.create_connection((address, port), timeout=3))
        assert echo_error(connection) == ""
        return connection


def test_connections_that_stood_are_reset_at_their_next_segment_and_who_reconnects_recovers(
    pair: Pair, connect: Connect
) -> None:
    async def scene() -> None:
        ours = [connect(FAR, 7001), connect(FAR6, 7001)]
        with inside(pair.far):
            theirs = [connect(NEAR, 6000), connect(NEAR6, 6000)]
        idle, bystander, ssh = connect(FAR, 7002), connect(BYSTANDER, 7001), connect(FAR, 22)
        async with held("network.reset", to=[FAR, FAR6]) as it:
            assert [echo_error(one) for one in (*ours, *theirs)] == ["ECONNRESET"] * 4
            assert tcp_answers(FAR, 7001)
            assert tcp_answers(FAR6, 7001)
            with inside(pair.far):
                assert tcp_answers(NEAR, 6000)
            assert echo_error(bystander) == ""
            assert echo_error(ssh) == ""
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.proved, effect.achieved, effect.unit) == (True, 80, "% of connections")
            assert "reset 4 of the 5 connections that stood" in effect.explanation
        assert echo_error(idle) == ""

    asyncio.run(scene())


@pytest.mark.parametrize("direction", ["both", "egress", "ingress"])
def test_both_ends_of_a_connection_hear_of_it(pair: Pair, direction: str) -> None:
    async def scene() -> None:
        with inside(pair.far):
            listener = socket.create_server((FAR, 0))
        with listener, socket.create_connection(listener.getsockname(), timeout=3) as client:
            server, _ = listener.accept()
            server.settimeout(3)
            with server:
                async with held("network.reset", to=FAR, direction=direction):
                    first, second = (server, client) if direction == "ingress" else (client, server)
                    assert echo_error(first) == "ECONNRESET"
                    assert echo_error(second) == "ECONNRESET"

    asyncio.run(scene())


@pytest.mark.parametrize("peer", [FAR, FAR6])
@pytest.mark.parametrize("connections", ["existing", "both"])
def test_who_waits_for_an_answer_is_told_instead_of_getting_it_and_so_is_who_answered(
    pair: Pair, peer: str, connections: str
) -> None:
    async def scene() -> None:
        with inside(pair.far):
            listener = socket.create_server((peer, 0), family=socket.AF_INET6 if ":" in peer else socket.AF_INET)
        with listener, socket.create_connection(listener.getsockname()[:2], timeout=3) as client:
            server, _ = listener.accept()
            server.settimeout(3)
            with server:
                async with held("network.reset", to=peer, connections=connections) as it:
                    server.sendall(b"answer")
                    with pytest.raises(ConnectionResetError):
                        client.recv(16)
                    with pytest.raises(ConnectionResetError):
                        server.recv(16)
                    it.meter.sample()
                    assert it.meter.effect().proved
                    assert it.meter.effect().achieved == 100

    asyncio.run(scene())


def test_new_ones_are_reset_once_their_handshake_is_over_and_those_that_stood_are_not(
    pair: Pair, connect: Connect
) -> None:
    async def scene() -> None:
        before = [connect(FAR, 7001), connect(FAR6, 7001)]
        with inside(pair.far):
            before += [connect(NEAR, 6000), connect(NEAR6, 6000)]
        async with held("network.reset", to=[FAR, FAR6], connections="new") as it:
            assert [tcp_error(peer, 7001) for peer in (FAR, FAR6)] == ["ECONNRESET"] * 2
            with inside(pair.far):
                assert [tcp_error(own, 6000) for own in (NEAR, NEAR6)] == ["ECONNRESET"] * 2
            assert [echo_error(one) for one in before] == [""] * 4
            assert tcp_answers(BYSTANDER, 7001)
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.proved, effect.achieved) == (True, 100)
            assert effect.explanation.startswith("the kernel reset ")
        assert tcp_answers(FAR, 7001)
        assert tcp_answers(FAR6, 7001)

    asyncio.run(scene())


def test_both_old_and_new_ones_are_reset_where_both_are_asked_for(pair: Pair, connect: Connect) -> None:
    async def scene() -> None:
        before = connect(FAR, 7001)
        async with held("network.reset", to=FAR, connections="both") as it:
            assert echo_error(before) == "ECONNRESET"
            assert tcp_error(FAR, 7001) == "ECONNRESET"
            with inside(pair.far):
                assert tcp_error(NEAR, 6000) == "ECONNRESET"
            it.meter.sample()
            assert it.meter.effect().proved

    asyncio.run(scene())


def test_loopback_connections_are_reset_where_they_are_asked_for(connect: Connect) -> None:
    async def scene() -> None:
        asked, other = connect("127.0.0.1", 6000), connect("::1", 6000)
        async with held("network.reset", to="127.0.0.1", port=6000) as it:
            assert echo_error(asked) == "ECONNRESET"
            assert echo_error(other) == ""
            it.meter.sample()
            # Each end is a connection of this host; the one that only listens has not been told.
            assert it.meter.effect().achieved == 50

    asyncio.run(scene())


def test_connections_that_carry_nothing_or_are_not_there_prove_nothing(connect: Connect) -> None:
    async def scene() -> None:
        async with held("network.reset", to=FAR, port=7002) as it:
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.proved, effect.achieved) == (False, None)
            assert effect.explanation == f"no connection ({FAR} port 7002 tcp) stood when the fault began"
        idle = connect(FAR, 7002)
        async with held("network.reset", to=FAR, port=7002) as it:
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.proved, effect.achieved) == (False, 0)
            assert effect.explanation.endswith("; the rest carried nothing")
        assert echo_error(idle) == ""

    asyncio.run(scene())
