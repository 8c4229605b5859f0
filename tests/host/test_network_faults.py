"""network.blackhole and network.loss against the kernel: real traffic between two namespaces, judged by its users."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Peer, Record, Refusal
from brownout_agent.faults.network_flap import flap
from brownout_agent.faults.network_reject import refuse
from brownout_agent.faults.network_rules import FAMILY, Treatment, drop, ruleset, table_name
from brownout_agent.faults.network_scope import NetworkParameters, Scope, resolve
from brownout_agent.kernel.nftables import Nftables, NftablesError, table_names
from brownout_agent.kernel.processes import send_signal

from tests.host.network_pair import (
    BYSTANDER,
    BYSTANDER6,
    FAR,
    FAR6,
    NEAR,
    Pair,
    count_echoes,
    echoing,
    inside,
    network_pair,
    run,
    tcp_answers,
    udp_answers,
)
from tests.support.faultbench import held

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]


@pytest.fixture(scope="module")
def cable() -> Iterator[Pair]:
    with network_pair() as pair:
        yield pair


@pytest.fixture(autouse=True)
def pair(cable: Pair) -> Iterator[Pair]:
    """Every test runs inside `near`, finds it without rules and leaves it so."""
    with inside(cable.near):
        assert table_names(FAMILY) == []
        yield cable
        assert table_names(FAMILY) == []


def test_both_faults_can_be_done_here_and_finding_that_out_leaves_nothing() -> None:
    for kind in ("network.blackhole", "network.loss"):
        assert catalogue()[kind].detect(Host()).able
        assert table_names(FAMILY) == []


def test_a_blackholed_peer_is_silent_its_neighbour_is_not_and_the_end_brings_it_back() -> None:
    async def scene() -> None:
        with socket.create_connection((FAR, 7001), timeout=0.3) as open_before:
            async with held("network.blackhole", to=[FAR, FAR6]) as it:
                assert not tcp_answers(FAR, 7001)
                assert not tcp_answers(FAR6, 7001)
                open_before.sendall(b"late")
                with pytest.raises(TimeoutError):
                    open_before.recv(16)
                assert tcp_answers(BYSTANDER, 7001)
                assert tcp_answers(BYSTANDER6, 7001)
                it.meter.sample()
                effect = it.meter.effect()
                assert effect.proved
                assert effect.achieved == 100
                assert FAR in effect.explanation
            assert tcp_answers(FAR, 7001)
            assert tcp_answers(FAR6, 7001)
            open_before.settimeout(5)
            assert open_before.recv(16) == b"late"

    asyncio.run(scene())


def test_a_port_is_cut_whichever_side_is_the_server_and_other_ports_are_not(pair: Pair) -> None:
    async def scene() -> None:
        with echoing(pair.near, 5432, 6000):
            async with held("network.blackhole", port=5432):
                assert not tcp_answers(FAR, 5432)
                assert tcp_answers(FAR, 7001)
                with inside(pair.far):
                    assert not tcp_answers(NEAR, 5432)
                    assert tcp_answers(NEAR, 6000)

    asyncio.run(scene())


def test_ingress_is_silent_and_egress_is_told_to_a_udp_sender() -> None:
    async def scene() -> None:
        async with held("network.blackhole", to=FAR, direction="ingress", protocol="udp") as it:
            assert not udp_answers(FAR, 7001)
            assert tcp_answers(FAR, 7001)
            it.meter.sample()
            assert "1 of 1 ingress" in it.meter.effect().explanation
        async with held("network.blackhole", to=FAR, direction="egress", protocol="udp"):
            with pytest.raises(PermissionError):
                udp_answers(FAR, 7001)

    asyncio.run(scene())


def test_an_interface_limits_it() -> None:
    async def scene() -> None:
        async with held("network.blackhole", to=FAR, interface="lo"):
            assert tcp_answers(FAR, 7001)
        async with held("network.blackhole", to=FAR, interface="eth0"):
            assert not tcp_answers(FAR, 7001)

    asyncio.run(scene())


def test_ssh_the_controller_and_loopback_stay_up_when_everything_else_is_cut(pair: Pair) -> None:
    host = Host(exempt_peers=(Peer(FAR, 7002), Peer(BYSTANDER6)))

    async def scene() -> None:
        with echoing(pair.near, 6000):
            async with held("network.blackhole", host):
                assert not tcp_answers(FAR, 7001)
                # Nobody's neighbour entry survives, so that the exempt ones need ARP and neighbour discovery anew.
                run("ip", "-n", pair.near, "neigh", "flush", "dev", "eth0")
                assert tcp_answers(FAR, 7002)
                assert tcp_answers(BYSTANDER6, 7001)
                assert tcp_answers(FAR, 22)
                assert tcp_answers("127.0.0.1", 6000)
                assert tcp_answers(NEAR, 6000)
                assert not tcp_answers(BYSTANDER, 7002)

    asyncio.run(scene())


def test_loopback_is_cut_when_it_is_asked_for(pair: Pair) -> None:
    async def scene() -> None:
        with echoing(pair.near, 6000):
            async with held("network.blackhole", to="127.0.0.1"):
                assert not tcp_answers("127.0.0.1", 6000)
                assert tcp_answers("::1", 6000)
            async with held("network.blackhole", to=NEAR, port=6000):
                assert not tcp_answers(NEAR, 6000)
                assert tcp_answers("127.0.0.1", 6000)

    asyncio.run(scene())


def test_traffic_is_back_and_no_table_left_when_the_holder_is_killed() -> None:
    async def scene() -> None:
        async with held("network.blackhole", to=FAR) as it:
            table = table_name(it.record.fault_id)
            assert table_names(FAMILY) == [table]
            assert it.record.facts["owned"]
            with pytest.raises(NftablesError, match="not permitted"), Nftables() as somebody_else:
                somebody_else.run(f"delete table {FAMILY} {table}")
            assert not tcp_answers(FAR, 7001)
            send_signal(it.holder.key, signal.SIGKILL)
            await it.holder.died()
            killed_s = time.monotonic()
            assert table_names(FAMILY) == []
            assert tcp_answers(FAR, 7001)
            assert time.monotonic() - killed_s < 1

    asyncio.run(scene())


@pytest.mark.parametrize("treatment", [drop(100), refuse("refused"), flap(60_000)], ids=["drop", "refuse", "flap"])
def test_the_lease_alone_ends_it_with_no_process_alive_and_undo_removes_what_is_left(treatment: Treatment) -> None:
    fault = catalogue()["network.blackhole"]
    parameters = fault.Parameters.model_validate({"to": [FAR, FAR6]})
    record = Record("0123456789abcdef", parameters, fault.prepare(parameters, Host()), 1.0)
    table = table_name(record.fault_id)
    rules = ruleset(table, Scope.of(parameters, record.facts), treatment, lease_ms=1_000, owned=False)
    began_s = time.monotonic()
    with Nftables() as nft:
        nft.run(rules)
    assert not udp_answers_or_refused(FAR)
    assert not udp_answers_or_refused(FAR6)
    while not (udp_answers_or_refused(FAR) and udp_answers_or_refused(FAR6)):
        assert time.monotonic() - began_s < 5, "the lease did not run out"
    assert 0.9 < time.monotonic() - began_s < 2
    assert fault.residue(record) == [
        f"nftables table `inet {table}` is still there; next: nft delete table inet {table}"
    ]
    fault.undo(record)
    assert fault.residue(record) == []
    fault.undo(record)


def udp_answers_or_refused(address: str) -> bool:
    try:
        return udp_answers(address, 7001, timeout_s=0.05)
    except (PermissionError, ConnectionRefusedError):
        return False


def test_loss_is_what_was_asked_for_by_its_own_count_and_by_ours() -> None:
    async def scene() -> None:
        assert count_echoes(FAR, 7001, 3_000) == 3_000
        async with held("network.loss", to=FAR, percent=30, direction="ingress", protocol="udp") as it:
            echoes = count_echoes(FAR, 7001, 3_000)
            it.meter.sample()
            effect = it.meter.effect()
            assert effect.achieved == pytest.approx(100 * (3_000 - echoes) / 3_000)
            assert effect.achieved == pytest.approx(30, abs=4.2)  # five standard deviations of 3000 draws
            assert "of 3000 packets" in effect.explanation
        assert count_echoes(FAR, 7001, 500) == 500

    asyncio.run(scene())


def test_loss_of_both_directions_strikes_a_loopback_packet_once(pair: Pair) -> None:
    async def scene() -> None:
        with echoing(pair.near, 6000):
            async with held("network.loss", to="127.0.0.1", port=6000, percent=50, protocol="udp") as it:
                lost = 0
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    for _ in range(1_000):
                        try:
                            client.sendto(b"x", ("127.0.0.1", 6000))
                        except PermissionError:
                            lost += 1
                it.meter.sample()
                effect = it.meter.effect()
                assert 420 < lost < 580
                assert effect.achieved == pytest.approx(50, abs=7)

    asyncio.run(scene())


def test_a_fault_that_met_no_packet_or_too_few_is_not_proved() -> None:
    async def scene() -> None:
        async with held("network.blackhole", to="10.99.0.77") as it:
            it.meter.sample()
            effect = it.meter.effect()
            assert not effect.proved
            assert effect.achieved is None
            assert effect.explanation == "no packet matched: nobody talked to 10.99.0.77 during the fault"
        async with held("network.loss", to=FAR, percent=1, direction="ingress", protocol="udp") as it:
            count_echoes(FAR, 7001, 3)
            it.meter.sample()
            assert not it.meter.effect().proved
            assert "of 3 packets (10.99.0.2 udp); too few to prove 1 %" in it.meter.effect().explanation

    asyncio.run(scene())


def test_a_meter_whose_table_has_gone_says_so_and_proves_nothing() -> None:
    async def scene() -> None:
        async with held("network.blackhole", to=FAR) as it:
            assert not tcp_answers(FAR, 7001)
            it.meter.sample()
            assert it.meter.effect().proved
            send_signal(it.holder.key, signal.SIGKILL)
            await it.holder.died()
            it.meter.sample()
            assert not it.meter.effect().proved
            assert "could not be read" in it.meter.effect().explanation

    asyncio.run(scene())


def test_two_faults_at_once_end_each_by_itself() -> None:
    async def scene() -> None:
        async with held("network.blackhole", to=FAR):
            async with held("network.blackhole", to=BYSTANDER):
                assert not tcp_answers(FAR, 7001)
                assert not tcp_answers(BYSTANDER, 7001)
            assert tcp_answers(BYSTANDER, 7001)
            assert not tcp_answers(FAR, 7001)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("given", "host", "reason"),
    [
        ({"interface": "eth9"}, Host(), "no network interface eth9"),
        ({"to": ["no-such-host.invalid"]}, Host(), "cannot resolve no-such-host.invalid"),
        ({"to": [FAR]}, Host(exempt_peers=(Peer(FAR),)), "is the controller of this host"),
        ({"to": [FAR], "port": [7002]}, Host(exempt_peers=(Peer(f"::ffff:{FAR}", 7002),)), "is the controller"),
        ({"port": ["22"]}, Host(), "port 22 is SSH's"),
    ],
)
def test_what_cannot_or_must_not_be_cut_is_refused(given: dict[str, object], host: Host, reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        resolve(NetworkParameters.model_validate(given), host)
    assert table_names(FAMILY) == []


def test_a_port_on_which_a_process_named_sshd_listens_is_exempt_too() -> None:
    """A real listener under that name; the daemon itself would need keys and a user of its own."""
    listen = (
        "import pathlib, socket\npathlib.Path('/proc/self/comm').write_text('sshd')\n"
        "server = socket.create_server(('127.0.0.1', 0))\nprint(server.getsockname()[1], flush=True)\nserver.accept()"
    )
    with subprocess.Popen([sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            port = int(daemon.stdout.readline())
            assert port in resolve(NetworkParameters(), Host())["exempt_ports"]
        finally:
            daemon.kill()
