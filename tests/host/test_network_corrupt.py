"""network.corrupt against the kernel: real traffic between two namespaces, its bits looked at where it comes."""

import asyncio
import os
import select
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host
from brownout_agent.faults.network_share import wilson_interval
from brownout_agent.kernel.processes import send_signal

from tests.host.network_pair import FAR, FAR6, NEAR, NEAR6, Pair, inside, network_pair, run, tcp_answers
from tests.host.numbered_datagrams import PORT, QUIET_S, listening, sent
from tests.support.faultbench import held

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
_QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
_MANY = 1_000
_ETH_P_IP = 0x0800
_UDP_AT, _UDP_BYTES = 20, 8


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


def count(namespace: str, name: str) -> int:
    """A counter of this namespace's kernel: `UdpInCsumErrors`."""
    with inside(namespace):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        six = dict(line.split() for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines())
    if name in six:
        return int(six[name])
    values = {
        title.split(":")[0] + key: int(value)
        for title, numbers in zip(lines[::2], lines[1::2], strict=True)
        for key, value in zip(title.split()[1:], numbers.split()[1:], strict=True)
    }
    return values[name]


def test_it_can_be_done_here_and_finding_that_out_leaves_nothing() -> None:
    assert catalogue()["network.corrupt"].detect(Host()).able


@pytest.mark.parametrize(
    ("near", "far", "counter"),
    [(NEAR, FAR, "UdpInCsumErrors"), (NEAR6, FAR6, "Udp6InCsumErrors")],
    ids=["IPv4", "IPv6"],
)
@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_the_share_that_is_asked_is_dropped_for_its_checksum_by_who_gets_it(
    near: str, far: str, counter: str, direction: str, pair: Pair
) -> None:
    async def scene() -> None:
        sender, receiver, address = (pair.near, pair.far, far) if direction == "egress" else (pair.far, pair.near, near)
        with listening(receiver, address) as to:
            before = count(receiver, counter)
            async with held("network.corrupt", to=far, percent=30, direction=direction) as it:
                came = sent(sender, to, _MANY)
                it.meter.sample()
                effect = it.meter.effect()
            lost = _MANY - len(came)
            assert len(set(came)) == len(came)
            assert count(receiver, counter) - before == lost
            lowest, highest = wilson_interval(lost, _MANY, 0.9999)
            assert lowest <= 0.3 <= highest, lost
            said = f"the kernel drew {lost} of {_MANY} packets ({far}), the holder sent {lost} with a wrong bit"
            assert effect.explanation.startswith(said)
            assert effect.achieved == pytest.approx(100 * lost / _MANY)
            assert effect.proved == ("inside the 99.9 % interval" in effect.explanation)
            assert sent(sender, to, 100) == [*range(100)]

    asyncio.run(scene())


@contextmanager
def capturing(namespace: str) -> Iterator[socket.socket]:
    """Every IPv4 packet that comes through eth0 of this namespace, from its IP header on."""
    with inside(namespace):
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
    with packets:
        packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
        packets.bind(("eth0", _ETH_P_IP))
        yield packets


def test_one_bit_of_the_payload_is_wrong_and_nothing_else(pair: Pair) -> None:
    content = b"all the same".ljust(64, b".")

    async def scene() -> None:
        with listening(pair.far, FAR), capturing(pair.far) as packets:
            async with held("network.corrupt", to=FAR, percent=100, direction="egress"):
                with inside(pair.near), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.connect((FAR, PORT))
                    ports = struct.pack("!HH", client.getsockname()[1], PORT)
                    for _ in range(200):
                        client.send(content)
                turned = set()
                for _ in range(200):
                    assert select.select([packets], [], [], 5)[0]
                    packet = packets.recv(2_048)
                    assert packet[_UDP_AT : _UDP_AT + 4] == ports
                    payload = packet[_UDP_AT + _UDP_BYTES :]
                    difference = int.from_bytes(payload) ^ int.from_bytes(content)
                    assert (len(payload), difference.bit_count()) == (len(content), 1)
                    turned.add(difference.bit_length())
                assert len(turned) > 50  # of 512: chosen anew for each

    asyncio.run(scene())


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_a_tcp_stream_comes_whole_since_what_is_corrupt_is_sent_again(direction: str, pair: Pair) -> None:
    async def scene() -> None:
        receiver, sender = (pair.far, pair.near) if direction == "egress" else (pair.near, pair.far)
        before = counts = count(receiver, "TcpInCsumErrors"), count(sender, "TcpRetransSegs")
        async with held("network.corrupt", to=FAR, port=7001, percent=20, direction=direction):
            with socket.create_connection((FAR, 7001), timeout=20) as connection:
                # Until it has met both: what is drawn may be acknowledgements only, which are not sent again.
                for _ in range(200):
                    data = os.urandom(2**14)
                    connection.sendall(data)
                    assert _read(connection, len(data)) == data
                    counts = count(receiver, "TcpInCsumErrors"), count(sender, "TcpRetransSegs")
                    if counts[0] > before[0] and counts[1] > before[1]:
                        break
        assert counts[0] > before[0]
        assert counts[1] > before[1]

    asyncio.run(scene())


def _read(connection: socket.socket, size: int) -> bytes:
    read = bytearray()
    while len(read) < size and (chunk := connection.recv(2**16)):
        read += chunk
    return bytes(read)


def test_a_killed_holder_lets_everything_pass_whole(pair: Pair) -> None:
    async def scene() -> None:
        with listening(pair.far, FAR) as to:
            async with held("network.corrupt", to=FAR, percent=100, direction="egress") as it:
                with inside(pair.near), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.sendto(b"lost", (FAR, PORT))
                assert not select.select([to], [], [], QUIET_S)[0]
                assert tcp_answers(FAR, 22)
                send_signal(it.holder.key, signal.SIGKILL)
                await it.holder.died()
                assert (run("nft", "list", "tables"), _QUEUES.read_text()) == ("", "")
                assert sent(pair.near, to, 100) == [*range(100)]

    asyncio.run(scene())
