"""network.reject against the kernel: what real programs of both ends are told, by the errors of their own sockets."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator

import pytest
from brownout_agent.faults.contract import Host, Peer
from brownout_agent.faults.network_rules import FAMILY
from brownout_agent.kernel.nftables import table_names
from brownout_agent.kernel.processes import send_signal

from tests.host.network_pair import (
    BYSTANDER,
    BYSTANDER6,
    FAR,
    FAR6,
    NEAR,
    NEAR6,
    Pair,
    echo_error,
    echoing,
    inside,
    network_pair,
    run,
    tcp_answers,
    tcp_error,
    udp_answers,
    udp_errors,
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


@pytest.mark.parametrize(
    ("answer", "peer", "new", "opened", "datagram"),
    [
        ("refused", FAR, "ECONNREFUSED", "ECONNRESET", "ECONNREFUSED"),
        ("refused", FAR6, "ECONNREFUSED", "ECONNRESET", "ECONNREFUSED"),
        ("host-unreachable", FAR, "EHOSTUNREACH", "timed out", "timed out"),
        ("host-unreachable", FAR6, "EHOSTUNREACH", "timed out", "timed out"),
        ("admin-prohibited", FAR, "EHOSTUNREACH", "timed out", "EHOSTUNREACH"),
        ("admin-prohibited", FAR6, "EACCES", "timed out", "EACCES"),
    ],
)
def test_both_ends_are_told_what_was_asked_and_a_bystander_nothing(
    pair: Pair, answer: str, peer: str, new: str, opened: str, datagram: str
) -> None:
    own = NEAR if peer == FAR else NEAR6

    async def scene() -> None:
        with socket.create_connection((peer, 7001), timeout=0.4) as before:
            async with held("network.reject", to=[FAR, FAR6], answer=answer) as it:
                assert tcp_error(peer, 7001) == new
                assert echo_error(before) == opened
                assert udp_errors(peer, 7001) == ("EPERM", datagram)
                with inside(pair.far):
                    assert tcp_error(own, 6000) == new
                    assert udp_errors(own, 6000) == ("", datagram)
                assert tcp_answers(BYSTANDER, 7001)
                assert tcp_answers(BYSTANDER6, 7001)
                it.meter.sample()
                effect = it.meter.effect()
                assert (effect.proved, effect.achieved) == (True, 100)
                assert effect.explanation.startswith("the kernel refused ")
        assert tcp_answers(peer, 7001)
        assert udp_answers(peer, 7001)

    asyncio.run(scene())


def test_in_one_direction_only_the_senders_of_that_one_are_told(pair: Pair) -> None:
    async def scene() -> None:
        async with held("network.reject", to=FAR, direction="egress"):
            assert tcp_error(FAR, 7001) == "ECONNREFUSED"
            with inside(pair.far):
                assert tcp_error(NEAR, 6000, timeout_s=0.4) == "timed out"
        async with held("network.reject", to=FAR, direction="ingress"):
            assert tcp_error(FAR, 7001, timeout_s=0.4) == "timed out"
            assert udp_errors(FAR, 7001) == ("", "timed out")
            with inside(pair.far):
                assert tcp_error(NEAR, 6000) == "ECONNREFUSED"
                assert udp_errors(NEAR, 6000) == ("", "ECONNREFUSED")

    asyncio.run(scene())


def test_an_open_connection_ends_at_both_ends_each_at_a_segment_of_its_own(pair: Pair) -> None:
    async def scene() -> None:
        with inside(pair.far):
            listener = socket.create_server((FAR, 0))
        with listener, socket.create_connection(listener.getsockname()) as client:
            server, _ = listener.accept()
            with server:
                async with held("network.reject", to=FAR):
                    assert echo_error(client) == "ECONNRESET"
                    assert echo_error(server) == "ECONNRESET"

    asyncio.run(scene())


def test_a_port_is_refused_on_either_side_and_others_are_not(pair: Pair) -> None:
    async def scene() -> None:
        async with held("network.reject", port=["5432", "6000"]):
            assert tcp_error(FAR, 5432) == "ECONNREFUSED"
            assert udp_errors(FAR, 5432) == ("EPERM", "ECONNREFUSED")
            assert tcp_answers(FAR, 7001)
            with inside(pair.far):
                assert tcp_error(NEAR, 6000) == "ECONNREFUSED"

    asyncio.run(scene())


@pytest.mark.parametrize("direction", ["both", "ingress", "egress"])
def test_loopback_is_refused_at_once_when_it_is_asked_for(direction: str) -> None:
    """Where what the rules themselves answer passes them again."""

    async def scene() -> None:
        async with held("network.reject", to="127.0.0.1", direction=direction):
            assert tcp_error("127.0.0.1", 6000) == "ECONNREFUSED"
            assert udp_errors("127.0.0.1", 6000)[1] == "ECONNREFUSED"
            assert tcp_answers("::1", 6000)
            assert tcp_answers(NEAR, 6000)

    asyncio.run(scene())


def test_ssh_and_the_controller_stay_up_when_everything_else_is_refused(pair: Pair) -> None:
    async def scene() -> None:
        async with held("network.reject", Host(exempt_peers=(Peer(FAR, 7002), Peer(BYSTANDER6)))):
            assert tcp_error(FAR, 7001) == "ECONNREFUSED"
            run("ip", "-n", pair.near, "neigh", "flush", "dev", "eth0")
            assert tcp_answers(FAR, 22)
            assert tcp_answers(FAR, 7002)
            assert tcp_answers(BYSTANDER6, 7001)
            assert tcp_answers("127.0.0.1", 6000)

    asyncio.run(scene())


def test_a_peer_is_answered_every_segment_and_only_as_many_datagrams_as_the_kernel_allows(pair: Pair) -> None:
    async def scene() -> None:
        async with held("network.reject", to=FAR, direction="ingress"):
            with inside(pair.far):
                assert {tcp_error(NEAR, 6000) for _ in range(20)} == {"ECONNREFUSED"}
                told = [udp_errors(NEAR, 6000, timeout_s=0.02)[1] for _ in range(20)].count("ECONNREFUSED")
            assert 1 <= told < 20, "net.ipv4.icmp_ratelimit"

    asyncio.run(scene())


def test_it_ends_with_its_holder() -> None:
    async def scene() -> None:
        async with held("network.reject", to=FAR) as it:
            assert tcp_error(FAR, 7001) == "ECONNREFUSED"
            send_signal(it.holder.key, signal.SIGKILL)
            await it.holder.died()
            assert table_names(FAMILY) == []
            assert tcp_answers(FAR, 7001)

    asyncio.run(scene())


def test_where_nobody_talked_nothing_is_proved() -> None:
    async def scene() -> None:
        async with held("network.reject", to="10.99.0.77") as it:
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.proved, effect.achieved) == (False, None)
            assert effect.explanation == "no packet matched: nobody talked to 10.99.0.77 during the fault"

    asyncio.run(scene())
