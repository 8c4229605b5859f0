"""network.duplicate against the kernel: real traffic between two namespaces, counted by who gets it."""

import asyncio
import os
import select
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Peer
from brownout_agent.faults.network_rules import table_name
from brownout_agent.faults.network_share import wilson_interval
from brownout_agent.injector.undoing import undo_and_verify
from brownout_agent.kernel.nftables import Nftables, families_of
from brownout_agent.kernel.processes import send_signal

from tests.host.network_pair import BYSTANDER, FAR, FAR6, NEAR, NEAR6, Pair, inside, network_pair, run, tcp_answers
from tests.host.numbered_datagrams import PATIENCE_S, PORT, QUIET_S, listening, sent
from tests.support.faultbench import held

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]


@pytest.fixture(scope="module")
def cable() -> Iterator[Pair]:
    with network_pair() as pair:
        yield pair


@pytest.fixture(autouse=True)
def pair(cable: Pair) -> Iterator[Pair]:
    """Every test runs inside `near`, finds it without tables and leaves it so."""
    with inside(cable.near):
        assert run("nft", "list", "tables") == ""
        yield cable
        assert run("nft", "list", "tables") == ""


def counted(namespace: str, to: socket.socket, datagrams: int, *, size: int = 16, mark: int = 0) -> Counter[int]:
    """Send so many numbered datagrams from this namespace; how often each of them came."""
    return Counter(sent(namespace, to, datagrams, size=size, mark=mark))


def test_it_can_be_done_here_and_finding_that_out_leaves_nothing() -> None:
    assert catalogue()["network.duplicate"].detect(Host()).able


@pytest.mark.parametrize(("near", "far"), [(NEAR, FAR), (NEAR6, FAR6)], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_the_share_that_is_asked_comes_twice_and_none_is_lost(near: str, far: str, direction: str, pair: Pair) -> None:
    async def scene() -> None:
        sender, receiver, address = (pair.near, pair.far, far) if direction == "egress" else (pair.far, pair.near, near)
        with listening(receiver, address) as to:
            async with held("network.duplicate", to=far, percent=30, direction=direction) as it:
                came = counted(sender, to, 2_000)
                it.meter.sample()
                effect = it.meter.effect()
            assert sorted(came) == [*range(2_000)]
            assert set(came.values()) == {1, 2}
            twice = sum(count == 2 for count in came.values())
            lowest, highest = wilson_interval(twice, 2_000, 0.9999)
            assert lowest <= 0.3 <= highest, twice
            # What the kernel counted is what its users got.
            assert effect.explanation.startswith(f"the kernel met copies of {twice} of 2000 packets ({far})")
            assert effect.achieved == pytest.approx(twice / 20)
            assert effect.proved == ("inside the 99.9 % interval" in effect.explanation)
            assert set(counted(sender, to, 200).values()) == {1}

    asyncio.run(scene())


def test_both_directions_bring_up_to_four_answers_to_a_question_and_no_more() -> None:
    async def scene() -> None:
        async with held("network.duplicate", to=FAR, protocol="udp", percent=100) as it:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.connect((FAR, 7001))
                client.send(struct.pack("!I", 7))
                came: Counter[int] = Counter()
                while came[7] < 4 and select.select([client], [], [], PATIENCE_S)[0]:
                    came[struct.unpack("!I", client.recv(16))[0]] += 1
                assert not select.select([client], [], [], QUIET_S)[0]
                assert came == {7: 4}
            it.meter.sample()
            effect = it.meter.effect()
            # One question and two answers, each with its copy: too few to prove anything.
            assert effect.explanation.startswith("the kernel met copies of 3 of 3 packets")
            assert not effect.proved

    asyncio.run(scene())


@pytest.mark.parametrize("direction", ["ingress", "egress", "both"])
def test_through_loopback_a_packet_comes_twice_and_not_for_ever(direction: str, pair: Pair) -> None:
    async def scene() -> None:
        with listening(pair.near, "127.0.0.1") as to:
            async with held("network.duplicate", to="127.0.0.1", percent=100, direction=direction):
                assert counted(pair.near, to, 50) == dict.fromkeys(range(50), 2)

    asyncio.run(scene())


def test_datagrams_in_fragments_come_twice_as_well(pair: Pair) -> None:
    async def scene() -> None:
        with listening(pair.far, FAR) as to:
            async with held("network.duplicate", to=FAR, percent=100, direction="egress"):
                assert counted(pair.near, to, 20, size=4_000) == dict.fromkeys(range(20), 2)

    asyncio.run(scene())


def test_a_broadcast_that_arrives_is_not_sent_on(pair: Pair) -> None:
    async def scene() -> None:
        with listening(pair.near, "") as to, listening(pair.far, "") as back:
            async with held("network.duplicate", percent=100, direction="ingress"):
                with inside(pair.far), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                    sender.sendto(b"all", ("10.99.0.255", PORT))
                assert select.select([to], [], [], PATIENCE_S)[0]
                assert to.recv(16) == b"all"
                # A sender hears its own broadcast.
                assert back.recv(16) == b"all"
                assert not select.select([to, back], [], [], QUIET_S)[0]

    asyncio.run(scene())


def test_a_tcp_stream_comes_whole_and_bystanders_ssh_and_the_controller_are_not_met(pair: Pair) -> None:
    async def scene() -> None:
        exempt = Host(exempt_peers=(Peer(FAR, 7002),))
        with listening(pair.far, BYSTANDER) as bystander:
            async with held("network.duplicate", exempt, to=FAR, percent=50) as it:
                data = os.urandom(2**20)
                with socket.create_connection((FAR, 7001), timeout=10) as connection:
                    sending = asyncio.to_thread(connection.sendall, data)
                    echo, _ = await asyncio.gather(asyncio.to_thread(_read, connection, len(data)), sending)
                assert echo == data
                assert set(counted(pair.near, bystander, 50).values()) == {1}
                it.meter.sample()
                seen = it.meter.effect().explanation
                assert tcp_answers(FAR, 22)
                assert tcp_answers(FAR, 7002)
                it.meter.sample()
                assert it.meter.effect().explanation == seen

    asyncio.run(scene())


def _read(connection: socket.socket, size: int) -> bytes:
    read = bytearray()
    while len(read) < size and (chunk := connection.recv(2**16)):
        read += chunk
    return bytes(read)


def test_a_packet_keeps_its_own_mark_and_one_whose_mark_is_in_use_is_left_alone(pair: Pair) -> None:
    async def scene() -> None:
        count = (
            "table inet others { counter kept { }; counter upper { }\nchain c { type filter hook output priority 0\n"
        )
        count += "meta mark 0xbeef counter name kept\nmeta mark 0x5eef0001 counter name upper\n}\n}\n"
        with Nftables() as nft, listening(pair.far, FAR) as to:
            nft.run(count)
            async with held("network.duplicate", to=FAR, percent=100, direction="egress") as it:
                assert counted(pair.near, to, 10, mark=0xBEEF) == dict.fromkeys(range(10), 2)
                assert counted(pair.near, to, 10, mark=0x5EEF_0001) == dict.fromkeys(range(10), 1)
                it.meter.sample()
                assert "copies of 10 of 10 packets" in it.meter.effect().explanation
            listed = run("nft", "list", "table", "inet", "others")
            assert listed.count("packets 10 ") == 2, listed
            nft.run("delete table inet others")

    asyncio.run(scene())


def test_two_of_them_share_the_packets_that_both_mean_and_each_counts_its_own(pair: Pair) -> None:
    async def scene() -> None:
        with listening(pair.far, FAR) as to:
            async with held("network.duplicate", to=FAR, percent=50, direction="egress") as first:
                async with held("network.duplicate", to=FAR, percent=50, direction="egress") as second:
                    came = counted(pair.near, to, 2_000)
                    assert set(came.values()) == {1, 2}
                    copies = 0
                    for it in (first, second):
                        it.meter.sample()
                        effect = it.meter.effect()
                        assert 40 < (effect.achieved or 0) < 60, effect
                        copies += int(effect.explanation.split()[5])
                    assert copies == sum(came.values()) - 2_000
                assert set(counted(pair.near, to, 200).values()) == {1, 2}

    asyncio.run(scene())


@pytest.mark.parametrize("first", ["network.duplicate", "network.latency"])
def test_copies_are_late_like_other_packets_in_whichever_order_the_faults_come(first: str, pair: Pair) -> None:
    how: dict[str, dict[str, Any]] = {"network.duplicate": {"percent": 100}, "network.latency": {"latency": "100ms"}}
    second = next(kind for kind in how if kind != first)

    async def scene() -> None:
        with listening(pair.far, FAR) as to:
            async with (
                held(first, to=FAR, direction="egress", **how[first]),
                held(second, to=FAR, direction="egress", **how[second]),
            ):
                begun_s = time.monotonic()
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.sendto(b"late", (FAR, PORT))
                for _ in range(2):
                    assert select.select([to], [], [], PATIENCE_S)[0]
                    assert to.recv(16) == b"late"
                    assert time.monotonic() - begun_s >= 0.1
                assert not select.select([to], [], [], QUIET_S)[0]

    asyncio.run(scene())


def test_a_killed_holder_takes_every_table_along_and_packets_come_once(pair: Pair) -> None:
    async def scene() -> None:
        with listening(pair.far, FAR) as to:
            async with held("network.duplicate", to=FAR, percent=100, direction="egress") as it:
                table = table_name(it.record.fault_id)
                assert sorted(families_of(table)) == ["inet", "ip", "ip6"]
                send_signal(it.holder.key, signal.SIGKILL)
                await it.holder.died()
                assert run("nft", "list", "tables") == ""
                assert set(counted(pair.near, to, 100).values()) == {1}
                it.meter.sample()
                assert not it.meter.effect().proved

    asyncio.run(scene())


def test_a_stopped_holder_copies_no_longer_than_its_lease(pair: Pair) -> None:
    async def scene() -> None:
        with listening(pair.far, FAR) as to:
            async with held("network.duplicate", to=FAR, percent=100, direction="egress", duration_s=1.0) as it:
                send_signal(it.holder.key, signal.SIGSTOP)
                assert set(counted(pair.near, to, 10).values()) == {2}
                for _ in range(100):
                    if set(counted(pair.near, to, 10).values()) == {1}:
                        return
                raise AssertionError("packets still come twice")

    asyncio.run(scene())


@pytest.mark.parametrize("left", [("inet", "ip", "ip6"), ("ip6",), ("inet",)])
def test_tables_that_an_old_kernel_kept_are_removed_whichever_they_are(left: tuple[str, ...]) -> None:
    """A kernel before 5.12 ties no table to its maker: what stands then is what somebody else made."""

    async def scene() -> None:
        async with held("network.duplicate", to=FAR, percent=100) as it:
            await it.holder.end()
            table = table_name(it.record.fault_id)
            with Nftables() as nft:
                nft.run("".join(f"add table {family} {table}\n" for family in left))
            assert len(it.fault.residue(it.record)) == len(left)
            assert undo_and_verify(it.fault, it.record, it.record.holders) == []
            assert families_of(table) == []

    asyncio.run(scene())
