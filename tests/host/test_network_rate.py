"""network.rate against the kernel: real traffic between two namespaces, timed by who gets it, beside tc-tbf(8)."""

import asyncio
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host
from brownout_agent.kernel.processes import send_signal

from tests.host.network_pair import FAR, FAR6, Pair, inside, network_pair, run, udp_answers
from tests.host.numbered_datagrams import PATIENCE_S, listening, sent
from tests.support.faultbench import held

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
_QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
_ECHO = 7001
_PAYLOAD_BYTES = 972
_BITS = {FAR: (20 + 8 + _PAYLOAD_BYTES) * 8, FAR6: (40 + 8 + _PAYLOAD_BYTES) * 8}
"""Of one datagram of a flood with its headers."""
_EVERY_S, _AT_ONCE = 0.005, 8
"""A flood: 12.8 Mbit/s."""
_QUIET_S = 0.5
_SO_SNDBUFFORCE = 32
_HEAD = struct.Struct("!Id")
_TOLERANCE = 0.03
_LATE_BY_S = 0.04
"""So much later than it should a packet may come on a machine that has much else to do."""


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


class Flood:
    """More datagrams than a slow link carries, to the echo and back."""

    def __init__(self, address: str, seconds: float) -> None:
        self._bits = _BITS[address]
        self.sent = 0
        self.numbers: list[int] = []
        self.came_s: list[float] = []
        self.took_s: list[float] = []
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
            # What leaves and waits counts against its socket: one that may have less would wait with it.
            client.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2**24)
            client.connect((address, _ECHO))
            begun_s = time.monotonic()
            while (now_s := time.monotonic()) < begun_s + seconds:
                while self.sent < (now_s - begun_s) / _EVERY_S * _AT_ONCE:
                    client.send(_HEAD.pack(self.sent, time.monotonic()).ljust(_PAYLOAD_BYTES))
                    self.sent += 1
                self._receive(client, _EVERY_S)
            while self._receive(client, _QUIET_S):
                pass

    def _receive(self, client: socket.socket, patience_s: float) -> bool:
        """All that comes until there is nothing for a moment, or for so long; whether anything did."""
        has_come = False
        while select.select([client], [], [], 0 if has_come else patience_s)[0]:
            number, sent_s = _HEAD.unpack_from(client.recv(2_048))
            now_s = time.monotonic()
            self.numbers.append(number)
            self.came_s.append(now_s)
            self.took_s.append(now_s - sent_s)
            has_come = True
        return has_come

    @property
    def mbit_s(self) -> float:
        """What came, from the first to the last."""
        return (len(self.came_s) - 1) * self._bits / (self.came_s[-1] - self.came_s[0]) / 1e6


def test_it_can_be_done_here_and_finding_that_out_leaves_nothing() -> None:
    assert catalogue()["network.rate"].detect(Host()).able


@pytest.mark.alone
@pytest.mark.parametrize("address", [FAR, FAR6])
@pytest.mark.parametrize("direction", ["egress", "ingress", "both"])
def test_a_flood_gets_through_at_the_rate_that_is_asked_in_its_order(direction: str, address: str) -> None:
    async def scene() -> None:
        async with held("network.rate", to=address, protocol="udp", rate="4mbit", direction=direction) as it:
            flood = Flood(address, 2.0)
            it.meter.sample()
            effect = it.meter.effect()
        assert flood.mbit_s == pytest.approx(4, rel=_TOLERANCE)
        assert flood.numbers == sorted(flood.numbers)
        assert len(flood.numbers) < flood.sent / 2
        assert effect.proved, effect
        assert effect.asked == 4
        assert effect.achieved == pytest.approx(4, rel=_TOLERANCE)
        assert " found the queue full" in effect.explanation

    asyncio.run(scene())


@pytest.mark.alone
def test_it_carries_what_tbf_carries() -> None:
    run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "4mbit", "burst", "5000", "latency", "200ms")
    try:
        by_tbf = Flood(FAR, 2.0)
    finally:
        run("tc", "qdisc", "delete", "dev", "eth0", "root")

    async def scene() -> None:
        async with held("network.rate", to=FAR, rate="4mbit", queue="200ms", direction="egress"):
            ours = Flood(FAR, 2.0)
        assert ours.mbit_s == pytest.approx(by_tbf.mbit_s, rel=_TOLERANCE)
        assert max(ours.took_s) == pytest.approx(max(by_tbf.took_s), abs=_LATE_BY_S)

    asyncio.run(scene())


def test_nobody_waits_for_longer_than_the_queue_is() -> None:
    async def scene() -> None:
        async with held("network.rate", to=FAR, rate="4mbit", queue="50ms", direction="egress"):
            flood = Flood(FAR, 1.0)
        assert 0.045 < max(flood.took_s) < 0.055 + _LATE_BY_S

    asyncio.run(scene())


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_a_tcp_stream_comes_whole_and_as_slowly_as_it_must(direction: str) -> None:
    async def scene() -> None:
        async with held("network.rate", to=FAR, rate="8mbit", direction=direction) as it:
            data = os.urandom(2**20)
            with socket.create_connection((FAR, _ECHO), timeout=20) as connection:
                begun_s = time.monotonic()
                sending = asyncio.to_thread(connection.sendall, data)
                echo, _ = await asyncio.gather(asyncio.to_thread(_read, connection, len(data)), sending)
                took_s = time.monotonic() - begun_s
            assert echo == data
            assert 2**20 * 8 / 8e6 < took_s < 3
            it.meter.sample()
            assert it.meter.effect().proved, it.meter.effect()

    asyncio.run(scene())


def _read(connection: socket.socket, size: int) -> bytes:
    read = bytearray()
    while len(read) < size and (chunk := connection.recv(2**16)):
        read += chunk
    return bytes(read)


def test_where_nobody_has_to_wait_nothing_is_proved() -> None:
    async def scene() -> None:
        async with held("network.rate", to=FAR, rate="100mbit") as it:
            assert udp_answers(FAR, _ECHO)
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.proved, effect.achieved) == (False, None)
            assert "of 2 packets (10.99.0.2) hardly any had to wait" in effect.explanation

    asyncio.run(scene())


def test_a_killed_holder_lets_everything_pass_at_once(pair: Pair) -> None:
    async def scene() -> None:
        with listening(pair.far, FAR) as to:
            async with held("network.rate", to=FAR, rate="1kbit", queue="30s", direction="egress") as it:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.sendto(b"waits for its turn".ljust(200), to.getsockname())
                assert not select.select([to], [], [], 0.2)[0]
                send_signal(it.holder.key, signal.SIGKILL)
                await it.holder.died()
                assert (run("nft", "list", "tables"), _QUEUES.read_text()) == ("", "")
                begun_s = time.monotonic()
                assert sent(pair.near, to, 100) == [*range(100)]
                assert time.monotonic() - begun_s < PATIENCE_S

    asyncio.run(scene())
