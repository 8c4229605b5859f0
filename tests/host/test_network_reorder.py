"""network.reorder against the kernel: real traffic between two namespaces, put in order by who gets it."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Meter
from brownout_agent.faults.network_queue import RECEIVED, QueueMeter
from brownout_agent.faults.network_share import wilson_interval
from brownout_agent.injector.undoing import undo_and_verify
from brownout_agent.kernel.nftables import Nftables
from brownout_agent.kernel.processes import send_signal

from tests.host.network_pair import FAR, FAR6, NEAR, NEAR6, Pair, inside, network_pair, run, udp_answers
from tests.host.numbered_datagrams import listening, sent
from tests.support.faultbench import held

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
_QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
_MANY = 2_000


@pytest.fixture(scope="module")
def cable() -> Iterator[Pair]:
    with network_pair() as pair:
        yield pair


@pytest.fixture(autouse=True)
def pair(cable: Pair) -> Iterator[Pair]:
    """Every test runs inside `near`, finds it without tables and queues, and leaves it so."""
    with inside(cable.near):
        assert (run("nft", "list", "tables"), _QUEUES.read_text()) == ("", "")
        yield cable
        assert (run("nft", "list", "tables"), _QUEUES.read_text()) == ("", "")


def reordered(came: list[int]) -> list[int]:
    """Those that came behind a later one: Type-P-Reordered of RFC 4737, 3.3, with its NextExp."""
    late, next_expected = [], 0
    for number in came:
        if number < next_expected:
            late.append(number)
        else:
            next_expected = number + 1
    return late


def test_it_can_be_done_here_and_finding_that_out_leaves_nothing() -> None:
    assert catalogue()["network.reorder"].detect(Host()).able


@pytest.mark.parametrize(("near", "far"), [(NEAR, FAR), (NEAR6, FAR6)], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_the_share_that_is_asked_is_overtaken_and_none_is_lost(near: str, far: str, direction: str, pair: Pair) -> None:
    async def scene() -> None:
        sender, receiver, address = (pair.near, pair.far, far) if direction == "egress" else (pair.far, pair.near, near)
        with listening(receiver, address) as to:
            async with held("network.reorder", to=far, percent=20, delay="50ms", direction=direction) as it:
                came = sent(sender, to, _MANY)
                it.meter.sample()
                effect = it.meter.effect()
            assert sorted(came) == [*range(_MANY)]
            late = len(reordered(came))
            lowest, highest = wilson_interval(late, _MANY, 0.9999)
            # At its end a stream has held packets that nothing follows.
            assert lowest - 0.01 <= 0.2 <= highest + 0.01, (late, it.record.facts["seed"])
            # What the holder counted is what its users got.
            assert f"; {late} of them were overtaken" in effect.explanation
            assert effect.achieved == pytest.approx(100 * late / _MANY)
            assert effect.proved == ("inside the 99.9 % interval" in effect.explanation), it.record.facts["seed"]
            assert reordered(sent(sender, to, 200)) == []

    asyncio.run(scene())


def test_with_a_gap_every_so_manieth_packet_is_held_and_the_others_keep_their_order(pair: Pair) -> None:
    async def scene() -> None:
        with listening(pair.far, FAR) as to:
            async with held("network.reorder", to=FAR, percent=100, gap=5, delay="100ms", direction="egress") as it:
                came = sent(pair.near, to, 100)
                assert sorted(came) == [*range(100)]
                assert set(reordered(came)) <= {*range(0, 100, 5)}
                assert [number for number in came if number % 5] == [number for number in range(100) if number % 5]
                assert [number for number in came if not number % 5] == [*range(0, 100, 5)]
                it.meter.sample()
                assert it.meter.effect().proved

    asyncio.run(scene())


def test_where_one_waits_for_the_other_packets_are_late_and_not_called_reordered() -> None:
    async def scene() -> None:
        async with held("network.reorder", to=FAR, percent=50, delay="20ms", direction="egress") as it:
            for _ in range(30):
                assert udp_answers(FAR, 7001, timeout_s=5)
            it.meter.sample()
            effect = it.meter.effect()
            assert not effect.proved
            assert effect.achieved == 0
            assert "0 of them were overtaken, the others only late" in effect.explanation

    asyncio.run(scene())


def test_a_tcp_stream_comes_whole_and_the_kernel_saw_it_out_of_order() -> None:
    async def scene() -> None:
        before = out_of_order()
        async with held("network.reorder", to=FAR, port=7001, percent=10, delay="5ms", direction="ingress"):
            data = os.urandom(2**21)
            with socket.create_connection((FAR, 7001), timeout=10) as connection:
                sending = asyncio.to_thread(connection.sendall, data)
                echo, _ = await asyncio.gather(asyncio.to_thread(_read, connection, len(data)), sending)
            assert echo == data
        assert out_of_order() > before

    asyncio.run(scene())


def out_of_order() -> int:
    """Segments that TCP of this namespace kept for later, since earlier ones were missing."""
    names, values = [
        line.split()[1:]
        for line in Path("/proc/thread-self/net/netstat").read_text().splitlines()
        if line.startswith("TcpExt:")
    ]
    return int(values[names.index("TCPOFOQueue")])


def _read(connection: socket.socket, size: int) -> bytes:
    read = bytearray()
    while len(read) < size and (chunk := connection.recv(2**16)):
        read += chunk
    return bytes(read)


async def kept_of(meter: Meter, packets: int) -> int:
    """How many the kernel keeps, once the holder has dealt with all of these."""
    assert isinstance(meter, QueueMeter)
    while True:
        meter.sample()
        kept = int(_QUEUES.read_text().split()[2])  # number, port id, how many it keeps
        if meter.noted[RECEIVED] == packets and meter.noted["held"] == kept:
            return kept
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("is_killed", [False, True])
def test_an_end_lets_go_what_is_held_and_a_death_takes_it_along(is_killed: bool, pair: Pair) -> None:
    async def scene() -> None:
        with listening(pair.far, FAR) as to:
            async with held("network.reorder", to=FAR, percent=50, delay="20s", direction="egress") as it:
                with inside(pair.near), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.connect(to.getsockname())
                    for number in range(100):
                        client.send(number.to_bytes(4))
                kept = await kept_of(it.meter, 100)
                if is_killed:
                    send_signal(it.holder.key, signal.SIGKILL)
                    await it.holder.died()
                    assert run("nft", "list", "tables") == ""
                else:
                    assert undo_and_verify(it.fault, it.record, it.record.holders) == []
                came = sent(pair.near, to, 0)
                assert 20 < kept < 80
                assert len(came) == (100 - kept if is_killed else 100)
                assert reordered(sent(pair.near, to, 100)) == []

    asyncio.run(scene())


def test_what_is_not_asked_for_is_not_reordered(pair: Pair) -> None:
    async def scene() -> None:
        with listening(pair.far, FAR) as to:
            async with held("network.reorder", to=FAR, port=7001, percent=50, delay="50ms", direction="egress"):
                assert sent(pair.near, to, 200) == [*range(200)]
            with Nftables() as nft:
                assert nft.run("list tables") == ""

    asyncio.run(scene())
