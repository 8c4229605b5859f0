"""dns.failure and dns.delay against real servers, judged by dig, by getaddrinfo and by the kernel."""

import asyncio
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Effect, Host, Record
from brownout_agent.faults.dns_rules import QUEUED, ruleset
from brownout_agent.faults.network_rules import FAMILY, table_name
from brownout_agent.injector.undoing import undo_and_verify
from brownout_agent.kernel.nftables import Nftables, table_names
from brownout_agent.kernel.packet_queue import PacketQueue
from brownout_agent.kernel.processes import send_signal
from brownout_agent.kernel.queue_rule import append_queue_rule

from tests.host.dns_server import OTHER, SERVERS, SHOP, SHOP6, STUB, dig, dns_hosts, look_up
from tests.host.network_pair import BYSTANDER, FAR, FAR6, Pair, inside, run
from tests.support.faultbench import Held, held
from tests.support.polling import wait_until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
NOBODY = 65534


@pytest.fixture(scope="module")
def net() -> Iterator[Pair]:
    with dns_hosts() as pair:
        yield pair


@pytest.fixture(autouse=True)
def near(net: Pair) -> Iterator[Pair]:
    """Every test runs inside `near`, finds it without rules and leaves it so."""
    with inside(net.near):
        assert table_names(FAMILY) == []
        yield net
        assert table_names(FAMILY) == []


def query(name: str, kind: int = 1, query_id: int = 7) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", query_id, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def ask(client: socket.socket, name: str) -> int:
    """The response code, by a connected UDP socket."""
    client.send(query(name))
    return client.recv(4096)[3] & 15


def client_of(address: str, timeout_s: float = 5.0) -> socket.socket:
    client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(timeout_s)
    client.connect((address, 53))
    return client


def judged(it: Held) -> Effect:
    """As of now."""
    it.meter.sample()
    return it.meter.effect()


def test_they_can_be_done_here_and_finding_that_out_leaves_nothing() -> None:
    for kind in ("dns.failure", "dns.delay"):
        assert catalogue()[kind].detect(Host()).able
        assert table_names(FAMILY) == []


# ---- dns.failure ----------------------------------------------------------------------------------------------------


def test_a_name_is_gone_for_every_server_by_udp_and_tcp_others_are_not_and_the_end_brings_it_back(near: Pair) -> None:
    async def scene() -> None:
        assert look_up(near.near, "db.shop.test")[0] == [SHOP, SHOP6]
        async with held("dns.failure", names="*.shop.test") as it:
            for server in SERVERS:
                for more in ((), ("+tcp",)):
                    met = dig(server, "db.shop.test", *more)
                    assert (met.status, met.values, met.by_tcp) == ("NXDOMAIN", [], bool(more)), met.text
                    assert dig(server, "web.other.test", *more).values == [OTHER]
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.proved, effect.achieved) == (True, 100)
            asked = 2 * len(SERVERS)
            assert (
                f"{asked} of {asked} queries for *.shop.test were met; {asked} answers NXDOMAIN" in effect.explanation
            )
            assert look_up(near.near, "db.shop.test")[0] == "EAI_NONAME"
            assert look_up(near.near, "web.other.test")[0] == [OTHER]
        assert look_up(near.near, "db.shop.test")[0] == [SHOP, SHOP6]

    asyncio.run(scene())


@pytest.mark.parametrize(("answer", "status"), [("servfail", "SERVFAIL"), ("refused", "REFUSED"), ("timeout", "")])
def test_a_failure_is_of_the_kind_that_was_asked_for(near: Pair, answer: str, status: str) -> None:
    async def scene() -> None:
        async with held("dns.failure", names=["db.shop.test"], answer=answer) as it:
            assert dig(FAR, "db.shop.test").status == status
            assert dig(FAR, "db.shop.test", "+tcp").status == status
            found, seconds = look_up(near.near, "db.shop.test")
            assert found == "EAI_AGAIN"
            assert seconds < 0.9 or answer == "timeout"
            assert seconds > 0.9 or answer != "timeout"
            it.meter.sample()
            assert it.meter.effect().proved, it.meter.effect().explanation

    asyncio.run(scene())


def test_a_failure_is_for_the_record_types_that_were_asked_for(near: Pair) -> None:
    async def scene() -> None:
        async with held("dns.failure", names="*.shop.test", type="AAAA"):
            assert dig(FAR, "db.shop.test", "AAAA").status == "NXDOMAIN"
            assert dig(FAR, "db.shop.test", "A").values == [SHOP]

    asyncio.run(scene())


def test_two_questions_in_one_segment_are_answered_both_as_glibc_asks_by_tcp(near: Pair) -> None:
    async def scene() -> None:
        async with held("dns.failure", names="*.shop.test"):
            with socket.create_connection((FAR, 53), timeout=5) as client:
                both = [query("db.shop.test", 1, 1), query("db.shop.test", 28, 2)]
                client.sendall(b"".join(len(one).to_bytes(2) + one for one in both))
                answers = b"".join(iter(lambda: client.recv(4096), b""))  # up to the server's end
            size = len(both[0])
            assert [answers[2:4], answers[size + 4 : size + 6]] == [b"\0\1", b"\0\2"]
            assert [answers[5] & 15, answers[size + 7] & 15] == [3, 3]

    asyncio.run(scene())


def test_nothing_is_left_of_a_connection_that_was_taken_over(near: Pair) -> None:
    def open_ends(namespace: str) -> set[str]:
        with inside(namespace):
            lines = run("ss", "--no-header", "--numeric", "--tcp", "--all").splitlines()
        return {line for line in lines if ":53 " in line and not line.startswith(("LISTEN", "TIME-WAIT"))}

    # A fault that ends within a moment of its answer leaves the server's end to the server's own time-out.
    before = open_ends(near.far) | open_ends(near.near)

    async def scene() -> None:
        async with held("dns.failure", names="*.shop.test"):
            assert dig(FAR, "db.shop.test", "+tcp").status == "NXDOMAIN"
            wait_until(lambda: open_ends(near.far) <= before, "the server is let go")
            wait_until(lambda: open_ends(near.near) <= before, "the client has closed")

    asyncio.run(scene())


def test_a_share_of_the_queries_fails_and_a_local_servers_own_are_not_drawn_again(near: Pair) -> None:
    async def scene() -> None:
        for server in (FAR, STUB):
            async with held("dns.failure", names="*.shop.test", percent=50) as it:
                with client_of(server) as client:
                    failed = sum(ask(client, "db.shop.test") == 3 for _ in range(400))
                assert 150 < failed < 250, server  # five standard deviations of 400 draws; drawn twice it would be 300
                wait_until(lambda: "of 400 queries" in judged(it).explanation, "the last answer is counted")
                assert judged(it).achieved == pytest.approx(failed / 4)
                assert f"{failed} of 400 queries" in judged(it).explanation

    asyncio.run(scene())


def test_the_agents_user_is_exempt() -> None:
    def as_nobody() -> str:
        argv = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "dig", f"@{FAR}", "+short", "db.shop.test"]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    async def scene() -> None:
        async with held("dns.failure", Host(exempt_uids=(NOBODY,)), names="*"):
            assert dig(FAR, "db.shop.test").status == "NXDOMAIN"
            assert as_nobody() == SHOP
        async with held("dns.failure", names="*"):
            assert as_nobody() == ""

    asyncio.run(scene())


def test_where_nobody_asked_for_such_a_name_nothing_is_proved() -> None:
    async def scene() -> None:
        async with held("dns.failure", names="*.nowhere.test") as it:
            assert dig(FAR, "web.other.test").values == [OTHER]
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.proved, effect.achieved) == (False, None)
            assert "nobody asked a DNS server for *.nowhere.test" in effect.explanation
            assert "other queries seen: 1" in effect.explanation

    asyncio.run(scene())


# ---- what is not meant ----------------------------------------------------------------------------------------------


def test_answers_that_no_datagram_can_hold_come_by_tcp_as_before() -> None:
    async def scene() -> None:
        before = dig(FAR, "big.other.test", "TXT")
        async with held("dns.failure", names="*.shop.test"):
            during = dig(FAR, "big.other.test", "TXT")
            assert (during.values, during.by_tcp) == (before.values, True)

    asyncio.run(scene())


def test_other_names_are_answered_within_milliseconds_of_before() -> None:
    def median_ms() -> float:
        with client_of(FAR) as client:
            taken = []
            for _ in range(200):
                begun_s = time.monotonic()
                ask(client, "web.other.test")
                taken.append(time.monotonic() - begun_s)
        return 1_000 * statistics.median(taken)

    async def scene() -> None:
        before = median_ms()
        async with held("dns.failure", names="*.shop.test"):
            during = median_ms()
        print(f"median of 200 answers: {before:.3f} ms before, {during:.3f} ms during the fault")
        assert during < before + 5

    asyncio.run(scene())


def test_whatever_is_sent_to_port_53_arrives_as_it_was_sent_and_hurts_nobody(near: Pair) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    good = query("db.shop.test")
    sent = [rng.randbytes(rng.randrange(1, 1_200)) for _ in range(150)]
    sent += [good[:length] for length in range(1, len(good))]
    sent += [good[:12] + rng.randbytes(rng.randrange(1, 300)) for _ in range(150)]

    async def scene() -> None:
        with inside(near.far):
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with server, client_of(BYSTANDER) as client:
            server.bind((BYSTANDER, 53))
            server.settimeout(5)
            async with held("dns.failure", names="*.shop.test"):
                for message in sent:
                    client.send(message)
                    assert server.recv(4096) == message
                client.send(good)
                assert client.recv(4096)[3] & 15 == 3
                with socket.create_connection((FAR, 53), timeout=5) as stream, suppress(ConnectionError):
                    stream.sendall(rng.randbytes(3_000))
                assert dig(FAR, "db.shop.test").status == "NXDOMAIN"

    asyncio.run(scene())


# ---- how it ends ----------------------------------------------------------------------------------------------------


def test_names_are_back_and_nothing_is_left_when_the_holder_is_killed() -> None:
    async def scene() -> None:
        async with held("dns.failure", names="*") as it:
            assert table_names(FAMILY) == [table_name(it.record.fault_id)]
            assert it.record.facts["owned"]
            with client_of(FAR) as client:  # the same flow goes on: no address translation remembers anything
                assert ask(client, "db.shop.test") == 3
                send_signal(it.holder.key, signal.SIGKILL)
                await it.holder.died()
                assert table_names(FAMILY) == []
                assert ask(client, "db.shop.test") == 0
            it.meter.sample()
            assert not it.meter.effect().proved

    asyncio.run(scene())


def test_a_stopped_holder_is_killed_by_its_timer_and_names_are_back() -> None:
    async def scene() -> None:
        async with held("dns.failure", duration_s=2, names="*") as it:
            assert not answers_soon(FAR)
            os.kill(it.holder.key.pid, signal.SIGSTOP)
            wait_until(lambda: answers_soon(FAR), "the timer ends it", 6)
            assert await it.holder.died() == "the holder ended with signal SIGKILL"
            assert table_names(FAMILY) == []

    asyncio.run(scene())


def test_the_lease_alone_ends_it_with_a_listener_that_reads_nothing_and_undo_removes_what_is_left() -> None:
    fault = catalogue()["dns.failure"]
    parameters = fault.Parameters.model_validate({"names": "*"})
    record = Record("0123456789abcdef", parameters, fault.prepare(parameters, Host()), 1.0)
    table = table_name(record.fault_id)
    with PacketQueue(100, 100) as queue, Nftables(with_descriptor=True) as nft:
        began_s = time.monotonic()
        nft.run(ruleset(table, (), 3, lease_ms=1_000, owned=False))
        append_queue_rule(nft, table, QUEUED, queue.number)
        wait_until(lambda: answers_soon(FAR) and answers_soon(FAR6), "the lease runs out")
        assert 0.9 < time.monotonic() - began_s < 3
    assert fault.residue(record) == [
        f"nftables table `inet {table}` is still there; next: nft delete table inet {table}"
    ]
    fault.undo(record)
    assert fault.residue(record) == []
    fault.undo(record)


def answers_soon(address: str) -> bool:
    with client_of(address, 0.1) as client:
        try:
            return ask(client, "db.shop.test") == 0
        except TimeoutError:
            return False


# ---- dns.delay ------------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("server", [FAR, STUB])
def test_answers_come_later_by_the_delay_once_and_others_do_not(near: Pair, server: str) -> None:
    async def scene() -> None:
        async with held("dns.delay", names="*.shop.test", delay="700ms") as it:
            for more in ((), ("+tcp",)):
                late = dig(server, "db.shop.test", *more, timeout_s=5)
                assert late.values == [SHOP]
                assert 0.7 < late.seconds < 1.3, more
            assert dig(server, "web.other.test").seconds < 0.5
            wait_until(lambda: "2 of 2 queries" in judged(it).explanation, "the last one is counted")
            effect = judged(it)
            assert effect.proved, effect.explanation
            assert effect.achieved == pytest.approx(720, abs=20)

    asyncio.run(scene())


def test_queries_wait_side_by_side() -> None:
    async def scene() -> None:
        async with held("dns.delay", names="*.shop.test", delay="500ms", jitter="100ms") as it:
            with client_of(FAR) as client:
                sent_s, begun_s = {}, time.monotonic()
                for number in range(200):
                    sent_s[number] = time.monotonic()
                    client.send(query("db.shop.test", query_id=number))
                waited_s = [-sent_s[int.from_bytes(client.recv(4096)[:2])] + time.monotonic() for _ in range(200)]
            assert min(waited_s) >= 0.4
            assert time.monotonic() - begun_s < 10  # one after the other it would be 100
            wait_until(lambda: "200 of 200 queries" in judged(it).explanation, "the last one is counted")

    asyncio.run(scene())


def test_what_is_held_at_an_orderly_end_goes_on_at_once() -> None:
    async def scene() -> None:
        async with held("dns.delay", names="*.shop.test", delay="20s") as it:
            with client_of(FAR) as client:
                client.send(query("db.shop.test"))
                with pytest.raises(TimeoutError):
                    client.settimeout(0.2)
                    client.recv(4096)
                undoing = threading.Thread(target=undo_and_verify, args=(it.fault, it.record, it.record.holders))
                undoing.start()
                client.settimeout(5)
                assert client.recv(4096)[3] & 15 == 0
                undoing.join()

    asyncio.run(scene())


def test_two_faults_at_once_meet_each_their_own() -> None:
    async def scene() -> None:
        async with held("dns.delay", names="*.other.test", delay="300ms"):
            async with held("dns.failure", names="*.shop.test", answer="refused"):
                assert dig(FAR, "db.shop.test").status == "REFUSED"
                assert dig(FAR, "web.other.test").seconds > 0.3
            assert dig(FAR, "db.shop.test").values == [SHOP]
            assert dig(FAR, "web.other.test").seconds > 0.3

    asyncio.run(scene())
