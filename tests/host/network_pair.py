"""Two hosts of network namespaces of their own, joined by a cable: `near`, where the test itself is, and `far`.

`far` has a bystander's address beside its own, and echoes on every port that a test needs.
"""

import ctypes
import errno
import os
import select
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NEAR, FAR, BYSTANDER = "10.99.0.1", "10.99.0.2", "10.99.0.3"
NEAR6, FAR6, BYSTANDER6 = "fd99::1", "fd99::2", "fd99::3"
PORTS = (22, 5432, 7001, 7002)
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

ECHO = """
import asyncio, sys

class Udp(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
    def datagram_received(self, data, address):
        self.transport.sendto(data, address)

async def tcp(reader, writer):
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()
    writer.close()

async def main():
    for port in map(int, sys.argv[1:]):
        await asyncio.start_server(tcp, None, port)
        await asyncio.get_running_loop().create_datagram_endpoint(Udp, ("::", port))  # IPv4 too
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclass(frozen=True)
class Pair:
    """The names of the two namespaces."""

    near: str
    far: str


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """The calling thread, what it opens and what it starts, is in this namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(Path("/run/netns") / namespace)
        yield
    finally:
        assert _libc.setns(home, _CLONE_NEWNET) == 0
        os.close(home)


def _enter(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {path}")
    finally:
        os.close(descriptor)


@contextmanager
def network_namespace() -> Iterator[str]:
    """A host with nothing but a loopback interface; its name."""
    name = f"bo-{uuid.uuid4().hex[:8]}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        run("ip", "netns", "delete", name)


@contextmanager
def network_pair() -> Iterator[Pair]:
    """Both hosts up and `far` echoing; nothing of them stays."""
    token = uuid.uuid4().hex[:8]
    pair = Pair(f"bo-{token}-near", f"bo-{token}-far")
    addresses = {pair.near: (NEAR, NEAR6), pair.far: (FAR, BYSTANDER, FAR6, BYSTANDER6)}
    made = []
    try:
        for name in addresses:
            run("ip", "netns", "add", name)
            made.append(name)
        run("ip", "-n", pair.near, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", pair.far)
        for name, own in addresses.items():
            for device in ("lo", "eth0"):
                run("ip", "-n", name, "link", "set", device, "up")
            for address in own:
                # The bystander's is never the source of an answer (deprecated, RFC 4862): a UDP client looks at that.
                source = ["preferred_lft", "0"] if address == BYSTANDER6 else []
                size, dad = ("64", ["nodad"]) if ":" in address else ("24", [])
                run("ip", "-n", name, "addr", "add", f"{address}/{size}", "dev", "eth0", *dad, *source)
        with echoing(pair.far, *PORTS):
            yield pair
    finally:
        for name in made:
            run("ip", "netns", "delete", name)


@contextmanager
def echoing(namespace: str, *ports: int) -> Iterator[None]:
    """A process in this namespace that echoes TCP and UDP on these ports."""
    argv = [sys.executable, "-I", "-c", ECHO, *map(str, ports)]
    with inside(namespace):
        server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    with server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield
        finally:
            server.kill()


def tcp_answers(address: str, port: int, timeout_s: float = 0.4) -> bool:
    """Whether a new connection is made and echoes; False when it only times out."""
    try:
        with socket.create_connection((address, port), timeout=timeout_s) as connection:
            connection.sendall(b"hello")
            return connection.recv(16) == b"hello"
    except TimeoutError:
        return False


def tcp_error(address: str, port: int, timeout_s: float = 3.0) -> str:
    """How a new connection and an echo over it fails: `ECONNREFUSED`, `timed out`; "" when it works."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect((address, port))
        except OSError as error:
            return _name_of(error)
        return echo_error(connection)


def echo_error(connection: socket.socket) -> str:
    """How a question over an open connection fails, `ECONNRESET`; "" when it comes back."""
    try:
        connection.sendall(b"hello")
        return "" if connection.recv(16) == b"hello" else "closed"
    except OSError as error:
        return _name_of(error)


def udp_errors(address: str, port: int, timeout_s: float = 0.4) -> tuple[str, str]:
    """How sending a datagram fails, and how waiting for its echo then does; "" where it does not."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        client.connect((address, port))
        return _error_of(lambda: client.send(b"hello")), _error_of(lambda: client.recv(16))


def _error_of(work: Callable[[], object]) -> str:
    try:
        work()
    except OSError as error:
        return _name_of(error)
    return ""


def _name_of(error: OSError) -> str:
    return errno.errorcode[error.errno] if error.errno else str(error)


def udp_answers(address: str, port: int, timeout_s: float = 0.4) -> bool:
    """Whether a datagram comes back; False when it does not, PermissionError when it could not even be sent."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        client.connect((address, port))
        client.send(b"hello")
        try:
            return client.recv(16) == b"hello"
        except TimeoutError:
            return False


def count_echoes(address: str, port: int, datagrams: int) -> int:
    """Send so many datagrams one after the other; returns how many came back."""
    came = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect((address, port))
        for number in range(datagrams):
            client.send(b"%d" % number)
            # In small groups, so that no queue overflows and what is lost is lost by the fault alone.
            if number % 16 == 15:
                came += _drain(client, 0.005)
        return came + _drain(client, 0.2)


def _drain(client: socket.socket, patience_s: float) -> int:
    came = 0
    while select.select([client], [], [], patience_s)[0]:
        client.recv(16)
        came += 1
    return came
