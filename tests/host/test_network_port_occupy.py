"""network.port_occupy against real servers: nginx that cannot start, clients without an answer, `ss` that says who."""

import asyncio
import errno
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Facts, Host, Refusal
from brownout_agent.kernel.ports import Place, can_bind
from brownout_agent.kernel.processes import send_signal, wait_dead

from tests.host.network_pair import run
from tests.support.faultbench import held
from tests.support.services import app_server, free_port

BOTH = ("0.0.0.0", "::")


@pytest.fixture
def port() -> int:
    return free_port()


def prepare(**parameters: object) -> Facts:
    fault = catalogue()["network.port_occupy"]
    return fault.prepare(fault.Parameters.model_validate(parameters), Host())


def is_free(port: int, protocol: str = "tcp") -> bool:
    return all(can_bind(Place(protocol, address, port)) for address in BOTH)


def test_a_service_cannot_start_on_the_port_until_the_fault_is_over(port: int) -> None:
    async def scene() -> None:
        async with held("network.port_occupy", port=port) as it:
            with (
                pytest.raises(
                    AssertionError, match=rf"bind\(\) to 127.0.0.1:{port} failed \(98: Address already in use\)"
                ),
                app_server("late", port),
            ):
                pass
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.asked, effect.achieved, effect.proved) == (1, 1, True), effect

    asyncio.run(scene())
    with app_server("late", port):
        pass


def test_clients_have_no_answer_and_ss_says_whose_the_port_is(port: int) -> None:
    async def scene() -> None:
        async with held("network.port_occupy", port=port, protocol="any") as it:
            for address in ("127.0.0.1", "::1"):
                with pytest.raises(TimeoutError):
                    socket.create_connection((address, port), timeout=0.2)
                with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.settimeout(0.1)
                    client.connect((address, port))
                    for _ in range(2):  # where nobody has the port, ICMP says so, and the second call is told of it
                        client.send(b"?")
                        with pytest.raises(TimeoutError):
                            client.recv(1)
            lines = run("ss", "-Hlntup", f"sport = :{port}").splitlines()
            assert len(lines) == 4, lines
            assert all(f"pid={it.holder.key.pid}," in line for line in lines), lines
            queued = {line.split()[2] for line in lines}
            assert queued == {"0"}, "nothing of what arrived is kept"

    asyncio.run(scene())


@pytest.mark.parametrize("option", [None, socket.SO_REUSEADDR, socket.SO_REUSEPORT])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", *BOTH])
def test_nobody_binds_it_whatever_options_they_take(
    occupied: int, address: str, kind: socket.SocketKind, option: int | None
) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as server:
        if option is not None:
            server.setsockopt(socket.SOL_SOCKET, option, 1)
        with pytest.raises(OSError, match="in use") as refused:
            server.bind((address, occupied))
        assert refused.value.errno == errno.EADDRINUSE


@pytest.fixture(scope="module")
def occupied() -> Iterator[int]:
    """A port that is taken for the time of a module's tests."""
    taken = free_port()
    runner = asyncio.Runner()
    holding = held("network.port_occupy", port=taken, protocol="any")
    runner.run(holding.__aenter__())
    try:
        yield taken
    finally:
        runner.run(holding.__aexit__(None, None, None))
        runner.close()


def test_the_kernel_gives_the_ports_back_when_the_holder_is_killed(port: int) -> None:
    async def scene() -> None:
        async with held("network.port_occupy", port=f"{port}-{port + 1}", protocol="any") as it:
            assert not is_free(port)
            it.meter.sample()
            send_signal(it.holder.key, signal.SIGKILL)
            assert wait_dead([it.holder.key], 5) == []
            assert is_free(port)
            assert is_free(port + 1, "udp")
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.asked, effect.achieved, effect.proved) == (2, 0, False)

    asyncio.run(scene())


def test_closed_connections_of_the_service_that_was_there_are_no_obstacle(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        client = socket.create_connection(("127.0.0.1", port))
        server.accept()[0].close()  # the side that closes first keeps TIME_WAIT
        assert client.recv(1) == b""
        client.close()

    async def scene() -> None:
        with socket.socket() as naive, pytest.raises(OSError, match="in use"):
            naive.bind(("127.0.0.1", port))  # TIME_WAIT is there
        async with held("network.port_occupy", port=port):
            assert not can_bind(Place("tcp", "127.0.0.1", port))

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("family", "address", "kind"),
    [
        (socket.AF_INET, "127.0.0.1", socket.SOCK_STREAM),
        (socket.AF_INET6, "::", socket.SOCK_STREAM),
        (socket.AF_INET, "127.0.0.1", socket.SOCK_DGRAM),
    ],
)
def test_who_has_the_port_keeps_it_and_is_named(
    port: int, family: socket.AddressFamily, address: str, kind: socket.SocketKind
) -> None:
    with socket.socket(family, kind) as server:
        server.bind((address, port))
        if kind is socket.SOCK_STREAM:
            server.listen()
        protocol = "tcp" if kind is socket.SOCK_STREAM else "udp"
        with pytest.raises(Refusal, match=rf"{protocol} .*:{port} is taken already, by \S+ \(pid {os.getpid()}\)"):
            prepare(port=port, protocol="any")


def test_one_address_is_taken_and_the_others_stay_free(port: int) -> None:
    async def scene() -> None:
        async with held("network.port_occupy", port=port, address="127.0.0.5"):
            assert not can_bind(Place("tcp", "127.0.0.5", port))
            assert can_bind(Place("tcp", "127.0.0.6", port))
            assert can_bind(Place("tcp", "::1", port))

    asyncio.run(scene())


def test_ssh_and_addresses_of_others_are_refused(port: int) -> None:
    with pytest.raises(Refusal, match="TCP port 22 is SSH's"):
        prepare(port=[22, port])
    with pytest.raises(Refusal, match="cannot be bound here: Cannot assign requested address"):
        prepare(port=port, address="192.0.2.1")


CONFINED = """
import ctypes, json, struct
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host

# What RestrictAddressFamilies= without AF_INET and AF_INET6 compiles to: EAFNOSUPPORT from socket(2).
rules = [(0x20, 0, 0, 0), (0x15, 0, 3, 41), (0x20, 0, 0, 16), (0x15, 2, 0, 2), (0x15, 1, 0, 10),
         (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 97)]
filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
head = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(filters)))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
for option, value, more in ((38, 1, None), (22, 2, ctypes.addressof(head))):
    assert libc.prctl(option, value, more, 0, 0) == 0
found = catalogue()["network.port_occupy"].detect(Host())
print(json.dumps([found.able, found.reason, found.remedy]))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the number of socket(2) on x86-64 only")
def test_an_injector_without_ip_sockets_says_what_would_make_it_able() -> None:
    ran = subprocess.run([sys.executable, "-c", CONFINED], check=True, capture_output=True, timeout=60)
    able, reason, remedy = json.loads(ran.stdout)
    assert (able, reason) == (False, "this injector may open no IP socket")
    assert "RestrictAddressFamilies=AF_INET AF_INET6" in remedy


LOW = """
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Refusal
fault = catalogue()["network.port_occupy"]
try:
    fault.prepare(fault.Parameters.model_validate({"port": 81}), Host())
except Refusal as refusal:
    print(refusal.reason, "/", refusal.remedy)
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to give up")
def test_a_low_port_needs_a_capability_and_the_refusal_says_which() -> None:
    argv = ["setpriv", "--bounding-set=-net_bind_service", sys.executable, "-c", LOW]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
    assert said.startswith("port 81 is below 1024 and needs CAP_NET_BIND_SERVICE / systemctl edit")
