"""The HTTP probe: one request on a fresh connection, as the checks of load balancers do, so connecting is measured too.

HTTP/1.1 only. Redirects are answers, not followed. Proxies named in the environment are not used.
"""

import asyncio
import re
import ssl
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import ClassVar
from urllib.parse import urlsplit

import h11

from brownout_agent import __version__
from brownout_agent.dialing import Address, Answer, ClosedEarlyError, ask_within, check_timeout, dial
from brownout_agent.observe import Sample

LARGEST_BODY = 64 * 1024
"""Bytes of body that are read; what comes after is neither waited for nor searched."""
LARGEST_HEAD = 64 * 1024
LONGEST_IDENTITY = 100
_METHODS = ("GET", "HEAD", "OPTIONS")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_USER_INFO = re.compile(r"[^/?#]*//[^/?#]*@")


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """Sends one request and reads the answer. Outcome: the status code, `body`, `protocol`, or a word of `outcome_of`.

    `body` is a right status with a body that lacks `body_contains`; `protocol` is an answer that is not HTTP.
    """

    kind: ClassVar[str] = "http"
    summary: ClassVar[str] = "Sends an HTTP request on a fresh connection and checks the status."

    url: str
    status: int | str = 200
    """Statuses that count as good: `200`, `200-399`, or a list like `200,204,300-308`."""
    timeout_ms: float = 2_000
    """From name resolution to the end of the answer, in milliseconds."""
    method: str = "GET"
    headers: tuple[str, ...] = ()
    """Lines like `Host: shop.test`. Flat text, as everything that crosses the wire to an agent."""
    body_contains: str = ""
    """Text that the first 64 KiB of the body must hold."""
    identity_header: str = ""
    """The response header that says who answered, such as `X-Served-By`."""
    tls_verify: bool = True
    ca_file: str = ""
    """PEM file of authorities to trust instead of the system's, on the host that asks."""

    def __post_init__(self) -> None:
        """Raises ValueError for settings that can never work."""
        object.__setattr__(self, "headers", tuple(self.headers))  # a list, where it came from the wire
        _target(self.url)
        parse_statuses(self.status)
        check_timeout(self.timeout_ms)
        if self.method not in _METHODS:
            raise ValueError(f"method `{self.method}` is not one of {', '.join(_METHODS)}; probes only look")
        if self.identity_header and not _TOKEN.fullmatch(self.identity_header):
            raise ValueError(f"identity_header `{self.identity_header}` is not a header's name; try X-Served-By")
        if self.body_contains and self.method == "HEAD":
            raise ValueError("body_contains needs a body, and the answer to HEAD has none; use GET")
        for line in self.headers:
            _parse_header(line)

    async def ask(self) -> Sample:
        """Ask once.

        Raises:
            NotAskedError: the prober itself could not ask.
            ValueError: `ca_file` cannot be used on this host.
        """
        # Before the clock starts: to load the authorities takes tens of milliseconds, once.
        context = _tls_context(self.tls_verify, self.ca_file) if _target(self.url).tls else None
        return await ask_within(self.timeout_ms, self._exchange(context))

    async def _exchange(self, context: ssl.SSLContext | None) -> Answer:
        target = _target(self.url)
        connection = await dial(target.address)
        reader, writer = await asyncio.open_connection(
            sock=connection, ssl=context, server_hostname=target.address.host if context else None
        )
        try:
            client = h11.Connection(h11.CLIENT, max_incomplete_event_size=LARGEST_HEAD)
            writer.write(_request_bytes(client, self, target))
            response, body = await _read_response(client, reader)
        except h11.RemoteProtocolError:
            return Answer(ok=False, outcome="protocol")
        finally:
            # close() would wait for the peer's close_notify for up to 30 s; the answer is complete or given up.
            writer.transport.abort()
        return self._judge(response, body)

    def _judge(self, response: h11.Response, body: bytes) -> Answer:
        right_status = any(response.status_code in statuses for statuses in parse_statuses(self.status))
        right_body = self.body_contains.encode() in body
        outcome = "body" if right_status and not right_body else str(response.status_code)
        return Answer(right_status and right_body, outcome, _identity(response, self.identity_header))


@lru_cache(maxsize=256)
def parse_statuses(status: int | str) -> tuple[range, ...]:
    """The statuses of `200`, `"200-399"` or `"200,204"`, as ranges within 100-599.

    Raises:
        ValueError: not that, or an empty or impossible range.
    """
    ranges = []
    for part in str(status).split(","):
        match = re.fullmatch(r"\s*([1-5]\d\d)(?:\s*-\s*([1-5]\d\d))?\s*", part, re.ASCII)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"status `{status}` is not a status from 100 to 599; write 200, 200-399 or 200,204")
        ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(ranges)


@dataclass(frozen=True, slots=True)
class _Target:
    address: Address
    tls: bool
    authority: str
    """What the Host header says: the host, and the port where the URL has one."""
    path: str


@lru_cache(maxsize=256)
def _target(url: str) -> _Target:
    if _USER_INFO.match(url):  # first of all, so that no other refusal repeats a password
        raise ValueError("url holds a user name; put an `Authorization: Basic ...` line in headers instead")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"url `{url}` has blanks, control or non-ASCII characters; percent-encode them")
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError(f"url `{url}` does not begin with http:// or https://")
    try:
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        port = parts.port
        address = Address(parts.hostname or "", (443 if tls else 80) if port is None else port)
    except ValueError as error:
        raise ValueError(f"url `{url}`: {error}") from error
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(address, tls, parts.netloc, path)


def _parse_header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not _TOKEN.fullmatch(name) or not value.isprintable() or not value.isascii():
        raise ValueError(f"header `{line}` is not a line like `Host: shop.test`")
    if name.lower() in ("connection", "content-length", "transfer-encoding"):
        raise ValueError(f"header `{name}` belongs to the connection, which the probe manages itself")
    return name, value.strip()


def _request_bytes(client: h11.Connection, probe: HttpProbe, target: _Target) -> bytes:
    own = [_parse_header(line) for line in probe.headers]
    names = {name.lower() for name, _ in own}
    defaults = [("Host", target.authority), ("User-Agent", f"brownout-probe/{__version__}"), ("Accept", "*/*")]
    headers = [*(pair for pair in defaults if pair[0].lower() not in names), *own, ("Connection", "close")]
    request = h11.Request(method=probe.method, target=target.path, headers=headers)
    return (client.send(request) or b"") + (client.send(h11.EndOfMessage()) or b"")


async def _read_response(client: h11.Connection, reader: asyncio.StreamReader) -> tuple[h11.Response, bytes]:
    response: h11.Response | None = None
    body = bytearray()
    ended = False
    while True:
        try:
            event = client.next_event()
        except h11.RemoteProtocolError as error:
            if ended:
                raise ClosedEarlyError("closed before the answer was complete") from error
            raise
        if event is h11.NEED_DATA:
            data = await reader.read(LARGEST_BODY)
            client.receive_data(data)
            ended = not data
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
        if response and (isinstance(event, h11.EndOfMessage) or len(body) >= LARGEST_BODY):
            return response, bytes(body[:LARGEST_BODY])


def _identity(response: h11.Response, header: str) -> str:
    wanted = header.lower().encode()
    for name, value in response.headers:
        if name == wanted:
            text = value.decode("latin-1").strip()
            return "".join(character for character in text if character.isprintable())[:LONGEST_IDENTITY]
    return ""


@cache
def _tls_context(verify: bool, ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise ValueError(f"ca_file {ca_file}: {error.strerror or error}; it is read on the host that asks") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
