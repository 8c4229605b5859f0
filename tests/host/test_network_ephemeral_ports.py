"""network.ephemeral_ports against the kernel: real clients without a port, `ss` that counts, a wire that is silent."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Facts, Host, Peer, Refusal
from brownout_agent.kernel.links import packets_through
from brownout_agent.kernel.processes import send_signal, wait_dead

from tests.host.network_pair import BYSTANDER, FAR, FAR6, Pair, echo_error, inside, network_pair, run, tcp_error
from tests.support.faultbench import held
from tests.support.polling import wait_until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
KIND = "network.ephemeral_ports"
PORTS = 2_000
SERVICE, OTHER = 7001, 7002


@pytest.fixture(scope="module")
def cable() -> Iterator[Pair]:
    with network_pair() as pair:
        with inside(pair.near):
            set_range(40_000, 40_000 + PORTS - 1)
        yield pair


@pytest.fixture(autouse=True)
def near(cable: Pair) -> Iterator[None]:
    with inside(cable.near):
        yield
        assert taken() == 0


def set_range(first: int, last: int) -> None:
    run("sysctl", "-qw", f"net.ipv4.ip_local_port_range={first} {last}")


def taken() -> int:
    """How many connections to the service `ss` counts, of those that stand."""
    return len(run("ss", "-Htn", "state", "established", f"dport = :{SERVICE}").splitlines())


def prepare(host: Host | None = None, **parameters: object) -> Facts:
    fault = catalogue()[KIND]
    return fault.prepare(fault.Parameters.model_validate({"to": FAR, "port": SERVICE, **parameters}), host or Host())


@pytest.mark.parametrize("to", [FAR, FAR6])
def test_nobody_connects_to_the_service_and_to_everybody_else_as_before(to: str) -> None:
    assert tcp_error(to, SERVICE) == ""

    async def scene() -> None:
        with socket.create_connection((to, SERVICE), timeout=3) as standing:
            async with held(KIND, to=to, port=SERVICE) as it:
                assert taken() + time_wait() >= PORTS
                for _ in range(3):
                    assert tcp_error(to, SERVICE) == "EADDRNOTAVAIL"
                assert tcp_error(to, OTHER) == ""
                assert tcp_error(BYSTANDER, SERVICE) == ""
                assert echo_error(standing) == ""
                it.meter.sample()
                it.meter.sample()
                effect = it.meter.effect()
                assert (effect.asked, effect.achieved, effect.proved, effect.samples) == (100, 100, True, 2), effect
        wait_until(lambda: taken() == 0, "all are given back")
        assert tcp_error(to, SERVICE) == ""

    asyncio.run(scene())


def time_wait() -> int:
    return len(run("ss", "-Htn", "state", "time-wait", f"dport = :{SERVICE}").splitlines())


def test_not_one_packet_goes_out_for_it_and_the_service_hears_of_nobody(cable: Pair) -> None:
    before = packets_through("eth0")

    async def scene() -> None:
        async with held(KIND, to="10.99.0.77", port=SERVICE) as it:  # nobody is there, which nobody finds out
            assert taken() == PORTS
            send_signal(it.holder.key, signal.SIGKILL)
            assert wait_dead([*it.holder.keys], 5) == []
            assert taken() == 0

    asyncio.run(scene())
    assert packets_through("eth0") - before <= 4, "what the kernel sends for itself"


def test_the_kernel_gives_all_back_when_the_holder_is_killed() -> None:
    async def scene() -> None:
        async with held(KIND, to=FAR, port=SERVICE) as it:
            assert tcp_error(FAR, SERVICE) == "EADDRNOTAVAIL"
            send_signal(it.holder.key, signal.SIGKILL)
            assert wait_dead([*it.holder.keys], 5) == []
            assert tcp_error(FAR, SERVICE) == ""
            it.meter.sample()
            assert not it.meter.effect().proved

    asyncio.run(scene())


def test_a_port_that_somebody_gives_back_is_taken_as_well() -> None:
    async def scene() -> None:
        client = socket.create_connection((FAR, SERVICE), timeout=3)
        async with held(KIND, to=FAR, port=SERVICE):
            # A reset leaves no TIME_WAIT behind: the port is free at once.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            port = client.getsockname()[1]
            client.close()
            line = f"sport = :{port}"
            wait_until(lambda: run("ss", "-Htn", "state", "established", line) != "", "it is taken", 3)
            assert tcp_error(FAR, SERVICE) == "EADDRNOTAVAIL"

    asyncio.run(scene())


def test_more_than_the_processes_may_have_open_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brownout_agent.faults.network_ephemeral_ports._descriptors_a_process", lambda: 30)
    with pytest.raises(Refusal, match=r"2000 sockets are more than 64 processes may have open"):
        prepare()


def test_all_of_the_default_range_is_taken_by_processes_with_few_descriptors_each(cable: Pair) -> None:
    default = (32_768, 60_999)
    set_range(*default)
    try:

        async def scene() -> None:
            async with held(KIND, to=FAR, port=SERVICE) as it:
                assert taken() + time_wait() >= default[1] - default[0] + 1
                assert tcp_error(FAR, SERVICE) == "EADDRNOTAVAIL"
                assert len(it.holder.keys) >= 2
            wait_until(lambda: taken() == 0, "all are given back", 10)

        asyncio.run(scene())
    finally:
        set_range(40_000, 40_000 + PORTS - 1)


def test_who_must_not_be_cut_off_and_what_cannot_be_reached_is_refused() -> None:
    for peer in (Peer(FAR), Peer(FAR, SERVICE)):
        with pytest.raises(Refusal, match="controller or protected peer"):
            prepare(Host(exempt_peers=(peer,)))
    prepare(Host(exempt_peers=(Peer(FAR, OTHER), Peer(BYSTANDER))))
    with pytest.raises(Refusal, match="port 22 is SSH's"):
        prepare(port=22)
    with pytest.raises(Refusal, match=r"no route leads to 203\.0\.113\.1"):
        prepare(to="203.0.113.1")


def test_a_host_without_rights_is_told_so(cable: Pair) -> None:
    script = "from brownout_agent.faults import catalogue\nfrom brownout_agent.faults.contract import Host\n"
    script += f"print(catalogue()['{KIND}'].detect(Host()))"
    said = run("setpriv", "--bounding-set=-net_admin", "--inh-caps=-all", sys.executable, "-c", script)
    assert "TCP_REPAIR needs CAP_NET_ADMIN" in said
    assert catalogue()[KIND].detect(Host()).able
