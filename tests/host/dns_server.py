"""A real DNS server, dnsmasq, in a network namespace of a test, and what asks it: dig, and getaddrinfo of a program."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.host.network_pair import FAR, FAR6, Pair, inside, network_pair

SHOP, SHOP6, OTHER = "10.0.0.9", "fd00::9", "10.0.0.8"
"""What db.shop.test and web.other.test resolve to."""
RECORDS = (
    f"--host-record=db.shop.test,{SHOP},{SHOP6}",
    f"--host-record=web.other.test,{OTHER}",
    "--cname=www.shop.test,db.shop.test",
    *(f"--txt-record=big.other.test,{str(number) * 200}" for number in range(8)),  # more than a datagram holds
    "--local=/test/",
)
STUB, STUB6 = "127.0.0.53", "::1"
SERVERS = (FAR, FAR6, STUB, STUB6)
_UP_WITHIN_S = 20.0
_LOOK_UP = """
import json, socket, sys, time
begun = time.monotonic()
try:
    found = sorted({entry[4][0] for entry in socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM)})
except socket.gaierror as error:
    found = next(name for name in vars(socket) if name.startswith("EAI_") and getattr(socket, name) == error.errno)
print(json.dumps([found, time.monotonic() - begun]))
"""


@contextmanager
def dns_hosts() -> Iterator[Pair]:
    """`far` has a server that knows names; `near` has one that asks it, as systemd-resolved would, and programs."""
    with (
        network_pair() as pair,
        dns_server(pair.far, FAR, FAR6),
        dns_server(pair.near, STUB, STUB6, forward_to=FAR),
        resolving(pair.near, [STUB]),
    ):
        yield pair


@contextmanager
def dns_server(namespace: str, *addresses: str, forward_to: str = "") -> Iterator[None]:
    """A server on port 53 of these addresses that knows RECORDS, or asks another one and remembers nothing."""
    program = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin")
    assert program, "needs dnsmasq (apt-get install dnsmasq-base)"
    knows = [f"--server={forward_to}", "--cache-size=0"] if forward_to else [*RECORDS]
    argv = [program, "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--no-resolv"]
    argv += ["--no-hosts", "--bind-interfaces", *(f"--listen-address={address}" for address in addresses)]
    with inside(namespace):
        server = subprocess.Popen([*argv, *knows])
        with server:
            try:
                deadline_s = time.monotonic() + _UP_WITHIN_S
                while dig(addresses[0], "web.other.test").status != "NOERROR":
                    assert server.poll() is None, "dnsmasq ended"
                    assert time.monotonic() < deadline_s, "dnsmasq does not answer"
                yield
            finally:
                server.kill()


@dataclass(frozen=True)
class Answered:
    """What dig saw. `status` is the rcode, "" where nothing came."""

    status: str
    values: list[str]
    ttls: set[int]
    seconds: float
    by_tcp: bool
    text: str


def dig(server: str, name: str, *more: str, timeout_s: int = 1) -> Answered:
    """Ask once."""
    argv = ["dig", f"@{server}", f"+time={timeout_s}", "+tries=1", "+nocookie", *more, name]
    begun_s = time.monotonic()
    text = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    seconds = time.monotonic() - begun_s
    status = text.partition("status: ")[2].partition(",")[0]
    section = text.partition("ANSWER SECTION:\n")[2].partition("\n\n")[0].splitlines()
    records = [line.split(None, 4) for line in section]
    ttls = {int(record[1]) for record in records}
    return Answered(status, sorted(record[4] for record in records), ttls, seconds, "(TCP)" in text, text)


@contextmanager
def resolving(namespace: str, servers: list[str], *options: str) -> Iterator[None]:
    """Programs that `look_up` starts in this namespace find these servers in their resolv.conf."""
    folder = Path("/etc/netns") / namespace
    had_parent = folder.parent.exists()
    folder.mkdir(parents=True)
    try:
        lines = [*(f"nameserver {server}" for server in servers), f"options timeout:1 attempts:1 {' '.join(options)}"]
        (folder / "resolv.conf").write_text("\n".join([*lines, ""]))
        yield
    finally:
        shutil.rmtree(folder)
        if not had_parent and not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def look_up(namespace: str, name: str) -> tuple[list[str] | str, float]:
    """What getaddrinfo says in a program of its own: addresses or the name of its error, and after how many seconds."""
    argv = ["ip", "netns", "exec", namespace, sys.executable, "-S", "-c", _LOOK_UP, name]
    found, seconds = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    return found, seconds
