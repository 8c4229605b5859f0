"""network.latency against the kernel: real traffic between two namespaces, timed by its users."""

import asyncio
import os
import select
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Peer
from brownout_agent.faults.network_queue import PACKETS_PER_S
from brownout_agent.faults.network_rules import FAMILY, table_name
from brownout_agent.injector.undoing import undo_and_verify
from brownout_agent.kernel.nftables import Nftables, table_names
from brownout_agent.kernel.processes import send_signal

from tests.host.network_pair import (
    BYSTANDER,
    FAR,
    FAR6,
    NEAR,
    Pair,
    echoing,
    inside,
    network_pair,
    run,
    tcp_answers,
    udp_answers,
)
from tests.support.faultbench import Held, held
from tests.support.polling import wait_until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
_QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
_SOON_MS = 30.0
"""A connect between two namespaces takes 0.1 ms; on a machine that has much else to do, mostly less than this."""
_LATE_BY_MS = 40.0
"""So much later than it was asked a packet may come on a machine that has much else to do."""


@pytest.fixture(scope="module")
def cable() -> Iterator[Pair]:
    with network_pair() as pair:
        yield pair


@pytest.fixture(autouse=True)
def pair(cable: Pair) -> Iterator[Pair]:
    """Every test runs inside `near`, finds it without rules and queues, and leaves it so."""
    with inside(cable.near):
        assert (table_names(FAMILY), _QUEUES.read_text()) == ([], "")
        yield cable
        assert (table_names(FAMILY), _QUEUES.read_text()) == ([], "")


def connect_ms(address: str, port: int = 7001, times: int = 5) -> list[float]:
    """How long TCP connections took to be made, each."""
    took = []
    for _ in range(times):
        begun_s = time.monotonic()
        socket.create_connection((address, port), timeout=5).close()
        took.append((time.monotonic() - begun_s) * 1_000)
    return took


def assert_late_by(asked_ms: float, address: str, port: int = 7001) -> None:
    took = connect_ms(address, port)
    assert asked_ms <= min(took), took
    assert statistics.median(took) < asked_ms + _LATE_BY_MS, took


def assert_soon(address: str, port: int = 7001) -> None:
    took = connect_ms(address, port)
    assert statistics.median(took) < _SOON_MS, took


def burst(datagrams: int, patience_s: float, meanwhile: Callable[[], None] = lambda: None) -> list[int]:
    """Send so many datagrams to the echo in one go; returns the numbers of those that came back, as they came."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
        client.connect((FAR, 7001))
        for number in range(datagrams):
            client.send(b"%d" % number)
        meanwhile()
        came = []
        while len(came) < datagrams and select.select([client], [], [], patience_s)[0]:
            came.append(int(client.recv(16)))
        return came


def judged(it: Held) -> str:
    """How the effect is explained as of now."""
    it.meter.sample()
    return it.meter.effect().explanation


def wait_held(packets: int) -> None:
    """Until the kernel keeps so many packets for the one queue that there is."""
    until_s = time.monotonic() + 5
    while (kept := int(_QUEUES.read_text().split()[2])) < packets:  # number, port id, how many it keeps
        assert time.monotonic() < until_s, f"{kept} of {packets} are held"


def test_it_can_be_done_here_and_finding_that_out_leaves_nothing() -> None:
    assert catalogue()["network.latency"].detect(Host()).able
    assert table_names(FAMILY) == []


@pytest.mark.parametrize("address", [FAR, FAR6])
def test_a_peer_is_late_by_what_is_asked_its_neighbour_is_not_and_the_end_brings_it_back(address: str) -> None:
    async def scene() -> None:
        assert_soon(address)
        async with held("network.latency", to=address, latency="100ms") as it:
            assert_late_by(100, address)
            assert_soon(BYSTANDER)
            it.meter.sample()
            effect = it.meter.effect()
            assert effect.asked == 100
            assert effect.achieved is not None
            assert effect.achieved >= 99.5
            assert effect.proved or effect.achieved > 103, effect  # on a machine that has much else to do
            assert address in effect.explanation
            assert it.record.facts["path"] == "nfqueue"
        assert_soon(address)

    asyncio.run(scene())


@pytest.mark.parametrize(("direction", "times"), [("ingress", 1), ("egress", 1), ("both", 2)])
def test_each_direction_that_is_asked_makes_a_round_trip_late_once(direction: str, times: int, pair: Pair) -> None:
    async def scene() -> None:
        with echoing(pair.near, 6000):
            async with held("network.latency", port=[7001, 6000], latency="60ms", direction=direction):
                assert_late_by(60 * times, FAR)
                assert_soon(FAR, 7002)
                with inside(pair.far):
                    assert_late_by(60 * times, NEAR, 6000)

    asyncio.run(scene())


def test_a_loopback_packet_is_late_once_when_it_is_asked_for(pair: Pair) -> None:
    async def scene() -> None:
        with echoing(pair.near, 6000):
            async with held("network.latency", to="127.0.0.1", latency="50ms", direction="both"):
                # A connect is there and back, and each packet is late once.
                assert_late_by(100, "127.0.0.1", 6000)
                assert statistics.median(connect_ms("127.0.0.1", 6000)) < 150

    asyncio.run(scene())


def test_ssh_and_the_controller_are_not_late_when_everyone_is() -> None:
    async def scene() -> None:
        async with held("network.latency", Host(exempt_peers=(Peer(FAR, 7002),)), latency="100ms"):
            assert_late_by(100, FAR)
            assert_soon(FAR, 7002)
            assert_soon(FAR, 22)

    asyncio.run(scene())


def test_jitter_spreads_packets_and_keeps_the_order_of_a_flow_unless_reordering_is_asked() -> None:
    async def scene() -> None:
        spread = {"to": FAR, "protocol": "udp", "latency": "100ms", "jitter": "100ms", "distribution": "uniform"}
        async with held("network.latency", **spread):
            assert burst(200, 2) == [*range(200)]
        async with held("network.latency", **spread, reorder=True) as it:
            came = burst(200, 2)
            assert sorted(came) == [*range(200)]
            assert came != sorted(came)
            it.meter.sample()
            effect = it.meter.effect()
            assert effect.lowest is not None
            assert effect.highest is not None
            assert effect.lowest < 20
            assert effect.highest > 180
            assert effect.achieved == pytest.approx(100, abs=40)

    asyncio.run(scene())


def test_bulk_data_comes_whole_and_at_the_speed_of_a_real_link_through_ingress() -> None:
    async def scene() -> None:
        async with held("network.latency", to=FAR, latency="20ms"):
            data = os.urandom(2**22)
            with socket.create_connection((FAR, 7001), timeout=10) as connection:
                begun_s = time.monotonic()
                sending = asyncio.to_thread(connection.sendall, data)
                echo, _ = await asyncio.gather(asyncio.to_thread(_read, connection, len(data)), sending)
            assert echo == data
            # One segment a round trip would take a minute.
            assert time.monotonic() - begun_s < 10

    asyncio.run(scene())


def _read(connection: socket.socket, size: int) -> bytes:
    read = bytearray()
    while len(read) < size and (chunk := connection.recv(2**16)):
        read += chunk
    return bytes(read)


def test_an_orderly_undo_loses_no_packet_that_is_held() -> None:
    async def scene() -> None:
        async with held("network.latency", to=FAR, protocol="udp", latency="20s") as it:

            def undo() -> None:
                wait_held(200)
                assert undo_and_verify(it.fault, it.record, it.record.holders) == []

            begun_s = time.monotonic()
            assert burst(200, 2, undo) == [*range(200)]
            assert time.monotonic() - begun_s < 5
            assert "exit code 0" in await it.holder.died()

    asyncio.run(scene())


def test_a_killed_holder_takes_what_it_holds_along_and_everything_later_passes() -> None:
    async def scene() -> None:
        async with held("network.latency", to=FAR, protocol="udp", latency="20s") as it:
            table = table_name(it.record.fault_id)
            assert table_names(FAMILY) == [table]
            assert f"queue num {it.record.facts['queue']} bypass" in run("nft", "list", "table", FAMILY, table)

            def kill() -> None:
                wait_held(50)
                send_signal(it.holder.key, signal.SIGKILL)

            assert burst(50, 0.5, kill) == []
            await it.holder.died()
            assert table_names(FAMILY) == []
            assert burst(50, 0.5) == [*range(50)]
            it.meter.sample()
            effect = it.meter.effect()
            assert not effect.proved
            assert "could not be read" in effect.explanation

    asyncio.run(scene())


def test_a_stopped_holder_stops_nobody_once_its_lease_is_over(pair: Pair) -> None:
    """Nobody extends it: its rules pass everything when their time is over, stopped or not."""

    async def scene() -> None:
        async with held("network.latency", to=FAR, latency="1ms", duration_s=2.0) as it:
            send_signal(it.holder.key, signal.SIGSTOP)
            assert not udp_answers(FAR, 7001, timeout_s=0.2)
            begun_s = time.monotonic()
            while not udp_answers(FAR, 7001, timeout_s=0.1):
                assert time.monotonic() - begun_s < 6

    asyncio.run(scene())


def test_what_is_more_than_it_can_carry_passes_at_once_and_is_not_called_proved() -> None:
    async def scene() -> None:
        async with held("network.latency", to=FAR, protocol="udp", latency="200ms", direction="egress") as it:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**24)
                client.connect((FAR, 9))
                until_s = time.monotonic() + 0.3
                sent = 0
                while sent < 3 * PACKETS_PER_S and time.monotonic() < until_s + 5:
                    try:
                        client.send(b"x")
                        sent += 1
                    except ConnectionRefusedError:  # what came of an earlier one
                        pass
            it.meter.sample()
            effect = it.meter.effect()
            assert not effect.proved
            assert "passed without being held" in effect.explanation
        assert tcp_answers(FAR, 7001)

    asyncio.run(scene())


def test_nobody_talked_so_nothing_is_proved() -> None:
    async def scene() -> None:
        async with held("network.latency", to="10.99.0.77", latency="10ms") as it:
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.proved, effect.achieved) == (False, None)
            assert effect.explanation == "no packet matched: nobody talked to 10.99.0.77 during the fault"

    asyncio.run(scene())


def test_two_latencies_of_one_peer_add_up_and_each_ends_by_itself() -> None:
    async def scene() -> None:
        async with held("network.latency", to=FAR, latency="60ms"):
            async with held("network.latency", to=FAR, port=7001, latency="80ms"):
                assert_late_by(140, FAR)
                assert_late_by(60, FAR, 7002)
            assert_late_by(60, FAR)
        assert_soon(FAR)

    asyncio.run(scene())


def descriptors() -> set[str]:
    """Those of this process, without the one by which they are listed."""
    return {entry.name for entry in [*Path("/proc/self/fd").iterdir()] if entry.is_symlink()}


def test_looking_for_the_librarys_socket_finds_one_of_netfilter_and_leaves_no_descriptor() -> None:
    before = descriptors()
    with Nftables(with_descriptor=True) as nft:
        with socket.socket(fileno=os.dup(nft.descriptor)) as found:
            assert (found.family, found.proto) == (socket.AF_NETLINK, 12)
        assert descriptors() == before | {str(nft.descriptor)}
    assert descriptors() == before


def test_packets_that_a_holder_was_never_handed_keep_it_from_being_proved() -> None:
    """A holder that is stopped reads nothing: what its socket cannot take passes, and is missed at the next reading."""

    async def scene() -> None:
        async with held("network.latency", to=FAR, protocol="udp", latency="20ms") as it:
            assert burst(100, 1) == [*range(100)]
            wait_until(lambda: "let 100 go" in judged(it), "the holder has counted what it let go a moment ago")
            send_signal(it.holder.key, signal.SIGSTOP)
            assert not udp_answers(FAR, 7001, timeout_s=0.1)
            assert not udp_answers(FAR, 7001, timeout_s=0.1)
            it.meter.sample()
            assert "passed" not in it.meter.effect().explanation  # they may be on their way
            it.meter.sample()
            effect = it.meter.effect()
            assert not effect.proved
            assert "2 passed without being held" in effect.explanation

    asyncio.run(scene())
