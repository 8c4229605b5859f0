"""network.accept_queue against real services: clients that wait, `ss` that tells of the queue, and what comes after."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Facts, Host, Peer, Refusal
from brownout_agent.kernel.processes import send_signal, wait_dead

from tests.host.network_pair import inside, network_namespace, run, tcp_error
from tests.support.faultbench import held
from tests.support.one_at_a_time import BACKLOG, PORT, SERVICE
from tests.support.polling import wait_until
from tests.support.services import app_server

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
KIND = "network.accept_queue"
HERE = "127.0.0.1"
HURRIED = f"""
import socket
server = socket.create_server(("{HERE}", {PORT}), backlog={BACKLOG})
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    connection.settimeout(0.05)
    try:
        connection.recv(4096)
        connection.sendall(b"hello")
    except OSError:
        pass
    connection.close()
"""
"""Hangs up on whoever says nothing for 50 ms."""


@pytest.fixture(autouse=True)
def namespace() -> Iterator[str]:
    with network_namespace() as name, inside(name):
        yield name


@contextmanager
def service(program: str = SERVICE) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def queue() -> tuple[int, int]:
    """How many wait to be accepted, and the service's limit, by `ss`."""
    waiting, limit = run("ss", "-Hltn", f"sport = :{PORT}").split()[1:3]
    return int(waiting), int(limit)


def answers() -> bool:
    return tcp_error(HERE, PORT, 0.5) == ""


def prepare(host: Host | None = None, **parameters: object) -> Facts:
    fault = catalogue()[KIND]
    return fault.prepare(fault.Parameters.model_validate({"port": PORT, **parameters}), host or Host())


def test_new_clients_wait_while_it_is_on_and_are_served_when_it_is_over() -> None:
    async def scene() -> None:
        async with held(KIND, port=PORT, connections=50) as it:
            assert queue() == (BACKLOG + 1, BACKLOG), "the kernel lets one more in than it is asked to"
            assert tcp_error(HERE, PORT, 0.5) == "timed out"
            it.meter.sample()
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.asked, effect.achieved, effect.proved, effect.samples) == (100, 100, True, 2), effect
            assert it.record.facts["held"] == 1 + BACKLOG + 1, "the one that is served, and those that wait"

    with service():
        assert answers()
        asyncio.run(scene())
        wait_until(answers, "it serves again")
        assert queue()[0] == 0


def test_the_kernel_closes_the_connections_when_the_holder_is_killed() -> None:
    async def scene() -> None:
        async with held(KIND, port=PORT) as it:
            assert not answers()
            send_signal(it.holder.key, signal.SIGKILL)
            assert wait_dead([it.holder.key], 5) == []
            wait_until(answers, "it serves again")
            it.meter.sample()
            assert not it.meter.effect().proved

    with service():
        asyncio.run(scene())


def test_a_service_that_hangs_up_is_kept_busy_with_others() -> None:
    async def scene() -> None:
        async with held(KIND, port=PORT) as it:
            for _ in range(20):
                it.meter.sample()
            effect = it.meter.effect()
            assert effect.achieved is not None
            # A reading that comes between two gets in. Without replacements all would after 0.2 s.
            assert effect.achieved >= 40, effect

    with service(HURRIED):
        asyncio.run(scene())
        wait_until(answers, "it serves again")


def test_a_service_that_takes_whatever_comes_is_not_hit_and_nothing_is_proved() -> None:
    async def scene() -> None:
        async with held(KIND, port=PORT, connections=50) as it:
            assert it.record.facts["held"] == 50
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.achieved, effect.proved) == (0, False), effect
            established = run("ss", "-Htn", "state", "established", f"dport = :{PORT}")
            assert len(established.splitlines()) == 50

    with app_server("eager", PORT):
        asyncio.run(scene())


def test_a_service_that_stands_still_has_what_was_queued_until_it_goes_on() -> None:
    async def scene(process: "subprocess.Popen[bytes]") -> None:
        process.send_signal(signal.SIGSTOP)
        async with held(KIND, port=PORT):
            assert queue() == (BACKLOG + 1, BACKLOG)
        assert queue() == (BACKLOG + 1, BACKLOG), "closed, and not accepted"
        process.send_signal(signal.SIGCONT)
        wait_until(answers, "it serves again")

    with service() as process:
        asyncio.run(scene(process))


def test_where_a_service_is_asked() -> None:
    with (
        socket.create_server(("", PORT + 1)),
        socket.create_server(("::1", PORT + 1), family=socket.AF_INET6),
        socket.create_server((HERE, PORT)),
    ):
        assert prepare()["targets"] == [HERE]
        assert prepare(port=PORT + 1)["targets"] == [HERE, "::1"]
        assert prepare(port=PORT + 1, address="127.0.0.9")["targets"] == ["127.0.0.9"]


def test_what_must_not_be_hit_and_what_cannot_be_is_refused() -> None:
    with socket.create_server((HERE, PORT)), socket.create_server((HERE, 22)):
        for parameters in ({"port": PORT + 1}, {"address": "127.0.0.9"}):
            with pytest.raises(Refusal, match="nobody listens on TCP port"):
                prepare(**parameters)
        with (
            socket.create_server(("", PORT + 2)),
            pytest.raises(Refusal, match=r"192\.0\.2\.1 is no address of this host"),
        ):
            prepare(port=PORT + 2, address="192.0.2.1")
        with pytest.raises(Refusal, match="port 22 is SSH's"):
            prepare(port=22)
        with pytest.raises(Refusal, match="is the controller of this host"):
            prepare(Host(exempt_peers=(Peer(HERE, PORT),)))


def test_more_than_one_process_may_have_open_is_refused() -> None:
    script = f"""
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host
fault = catalogue()["{KIND}"]
try:
    fault.prepare(fault.Parameters.model_validate({{"port": {PORT}}}), Host())
except Exception as error:
    print(error)
"""
    with socket.create_server((HERE, PORT)):
        said = run("prlimit", "--nofile=300:300", sys.executable, "-c", script)
    assert said == "5000 connections are more than the 300 descriptors of one process\n"
