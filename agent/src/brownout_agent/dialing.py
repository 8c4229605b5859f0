"""Reaching a target: from a name to an open socket in bounded time, and one short word for every way that it fails.

Probes share this. Every question is bounded by one timeout that covers name resolution, connecting and the answer.
"""

import asyncio
import contextlib
import errno
import ipaddress
import socket
import ssl
import threading
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.observe import Sample

LONGEST_TIMEOUT_MS = 60_000
STARVED_MS = 250
"""A timeout that fires this much late says that the prober got no CPU, and nothing about the target."""

_CLOUD_METADATA = frozenset(
    ipaddress.ip_address(text)
    # AWS, GCP, Azure and OpenStack; Amazon ECS; Alibaba; AWS over IPv6. They hand credentials to whoever asks.
    for text in ("169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254")
)
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_UNREACHABLE = frozenset(
    {
        errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL,
        errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT,
    }
)  # fmt: skip
_RESET = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED})

Endpoint = tuple[socket.AddressFamily, Any]
"""A family and the address that connect(2) takes in it."""


class NotAskedError(Exception):
    """The prober itself could not ask (no sockets, no memory, no CPU): says nothing about the target."""


class ForbiddenError(OSError):
    """The name leads to an address that no probe may ask."""


class ClosedEarlyError(OSError):
    """The peer closed the connection in an orderly way before its answer was complete."""


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address: a name or an IP literal without brackets, and a port."""

    host: str
    port: int

    def __post_init__(self) -> None:
        """Raises ValueError for what can never be reached, or must not be."""
        if not self.host or any(character.isspace() for character in self.host):
            raise ValueError(f"`{self.host}` is not a host name or IP address")
        if not 1 <= self.port <= 65_535:
            raise ValueError(f"port {self.port} is outside of 1-65535")
        try:
            self.host.encode("idna")
        except UnicodeError as error:
            raise ValueError(f"`{self.host}` is not a host name: {error}") from error
        if _is_forbidden(self.host):
            raise ValueError(f"{self.host} is a cloud metadata address, which hands out credentials; probes refuse it")


def parse_address(text: str, setting: str = "address") -> Address:
    """The address of `db-1:5432`, `10.0.0.7:22` or `[::1]:80`. Refusals begin with the name of the `setting`.

    Raises:
        ValueError: no port, a bad port, or an address that no probe may ask.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit():
        raise ValueError(f"{setting} `{text}` has no port; write it like {text.rstrip(':') or 'db-1'}:5432")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{setting} `{text}`: an IPv6 address goes in brackets, like [{host}]:{port}")
    try:
        return Address(host, int(port))
    except ValueError as error:
        raise ValueError(f"{setting} `{text}`: {error}") from error


def check_timeout(timeout_ms: float) -> None:
    """Raises ValueError for a timeout outside of 1 ms to 60 s, and for NaN."""
    if not 1 <= timeout_ms <= LONGEST_TIMEOUT_MS:
        raise ValueError(f"timeout {timeout_ms:g} ms is outside of 1ms to {LONGEST_TIMEOUT_MS // 1_000}s")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a target answered, before it has times: the last three fields of a Sample."""

    ok: bool
    outcome: str
    identity: str = ""


async def ask_within(timeout_ms: float, question: Awaitable[Answer]) -> Sample:
    """Await the answer within `timeout_ms` and stamp it. What the target does never raises.

    Raises:
        NotAskedError: no sockets, no memory, or so little CPU that a timeout would be ours and not the target's.
    """
    sent_ns = boottime_ns()
    try:
        async with asyncio.timeout(timeout_ms / 1_000):
            answer = await question
    except OSError as error:
        answer = Answer(ok=False, outcome=outcome_of(error))
    took_ns = boottime_ns() - sent_ns
    if answer.outcome == "timeout" and took_ns > (timeout_ms + STARVED_MS) * 1_000_000:
        raise NotAskedError(f"a timeout of {timeout_ms:g} ms fired after {took_ns / 1e6:.0f} ms")
    return Sample(sent_ns, took_ns // 1_000, answer.ok, answer.outcome, answer.identity)


def outcome_of(error: OSError) -> str:
    """One word for how asking failed: dns, refused, reset, closed, timeout, unreachable, tls, forbidden.

    What the table does not know keeps its errno's name in lower case, such as `eproto`.

    Raises:
        NotAskedError: the failure is the prober's own.
    """
    number = error.errno or 0
    if number in _EXHAUSTED and not isinstance(error, socket.gaierror | ssl.SSLError):
        raise NotAskedError(str(error)) from error
    for kind, word in _WORDS:
        if isinstance(error, kind):
            return word
    if number in _RESET:
        return "reset"
    if number in _UNREACHABLE:
        return "unreachable"
    return errno.errorcode.get(number, "error").lower()


_WORDS: tuple[tuple[type[OSError], str], ...] = (
    (ForbiddenError, "forbidden"),
    (ClosedEarlyError, "closed"),
    (socket.gaierror, "dns"),
    (TimeoutError, "timeout"),
    (ssl.SSLEOFError, "closed"),
    (ssl.SSLError, "tls"),
    (ConnectionRefusedError, "refused"),
    (ConnectionResetError, "reset"),  # asyncio raises it without an errno
)


async def dial(address: Address) -> socket.socket:
    """A connected, non-blocking TCP socket, which the caller closes. Tries every address of the name in turn.

    Raises:
        OSError: how the *first* address failed, the one that RFC 6724 prefers.
    """
    first_trouble: OSError | None = None
    for family, endpoint in await _resolve(address):
        if _is_forbidden(endpoint[0]):
            raise ForbiddenError(f"{address.host} leads to {endpoint[0]}")
        try:
            return await _connect(family, endpoint)
        except OSError as error:
            first_trouble = first_trouble or error
    raise first_trouble or socket.gaierror(socket.EAI_NONAME, f"{address.host} has no address")


async def _connect(family: socket.AddressFamily, endpoint: Any) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, endpoint)
    except BaseException:
        connection.close()
        raise
    return connection


# One lookup at a time for each name: a resolver that hangs costs one thread, not one for every question.
_lookups: dict[tuple[asyncio.AbstractEventLoop, Address], asyncio.Future[list[Endpoint]]] = {}


async def _resolve(address: Address) -> list[Endpoint]:
    try:
        return _getaddrinfo(address, socket.AI_NUMERICHOST)  # an IP literal: never asks anybody
    except socket.gaierror:
        pass
    key = (asyncio.get_running_loop(), address)
    if key not in _lookups:
        _lookups[key] = _start_lookup(key)
    return await asyncio.shield(_lookups[key])


def _start_lookup(key: tuple[asyncio.AbstractEventLoop, Address]) -> asyncio.Future[list[Endpoint]]:
    loop, address = key
    found: asyncio.Future[list[Endpoint]] = loop.create_future()

    def settle(endpoints: list[Endpoint], trouble: OSError | None) -> None:
        _lookups.pop(key, None)
        if found.done():
            return
        if trouble is None:
            found.set_result(endpoints)
        else:
            found.set_exception(trouble)
            found.exception()  # everybody who asked may have timed out: not worth a warning

    def look_up() -> None:
        endpoints: list[Endpoint] = []
        trouble: OSError | None = None
        try:
            endpoints = _getaddrinfo(address, 0)
        except OSError as error:
            trouble = error
        try:
            loop.call_soon_threadsafe(settle, endpoints, trouble)
        except RuntimeError:  # the loop was closed meanwhile, and nobody waits
            _lookups.pop(key, None)

    # A daemon thread of our own: the loop's executor would make the program wait for a hanging resolver at its end.
    try:
        threading.Thread(target=look_up, name=f"resolve {address.host}", daemon=True).start()
    except RuntimeError as error:  # the limit of processes and threads is reached
        raise NotAskedError(f"cannot resolve {address.host}: {error}") from error
    return found


def _getaddrinfo(address: Address, flags: int) -> list[Endpoint]:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, endpoint) for family, _, _, _, endpoint in found]


def _is_forbidden(host: str) -> bool:
    with contextlib.suppress(ValueError):  # a name; it is looked at again when it is resolved
        literal = ipaddress.ip_address(host)
        mapped = getattr(literal, "ipv4_mapped", None)
        return (mapped or literal) in _CLOUD_METADATA
    return False
