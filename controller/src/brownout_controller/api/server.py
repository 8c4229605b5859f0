"""The API's listening side: TLS, and clients that are slow on purpose."""

import asyncio
import contextlib
import logging
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from brownout_controller.api.bounded import HEADERS_MAX_BYTES
from brownout_controller.fleet.authority import KeyPair

HANDSHAKE_WITHIN_S = 5.0
HEADERS_WITHIN_S = 10.0
KEEP_ALIVE_S = 15
STALLED_S = 20.0
"""Whoever takes nothing of an answer for so long has gone, or wants to hold us up."""
CONNECTIONS_MAX = 500
CONNECTIONS_AN_ADDRESS = 100
"""So one address, which needs no token to connect, cannot keep out who wants to halt something."""
SEND_BUFFER_BYTES = 256 * 1024
"""Of the kernel, for each connection: what is in there counts as sent."""
LOOK_EVERY_S = 5.0
"""Whether another certificate is to be shown: a renewed file, or another phase of the cluster's authority."""
_BACKLOG = 128
_GRACE_S = 3

log = logging.getLogger(__name__)


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with patience that ends: for a request's headers, and for a reader that reads nothing."""

    _headers_due: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection; a request must come soon."""
        super().connection_made(transport)
        alike = [one for one in self.connections if isinstance(one, PatientProtocol) and one.address == self.address]
        if len(alike) > CONNECTIONS_AN_ADDRESS:
            transport.abort()
            return
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        if self._headers_due is None and self._idle:
            self._expect_headers()
        super().data_received(data)
        if not self._idle:
            self._forget_headers()

    def pause_writing(self) -> None:
        """The client does not take what we have for it."""
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._forget_stall()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._forget_headers()
        self._forget_stall()
        super().connection_lost(exc)

    @property
    def address(self) -> str:
        """Whence it comes, without the port."""
        return self.client[0] if self.client else ""

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_headers(self) -> None:
        self._headers_due = self.loop.call_later(HEADERS_WITHIN_S, self._too_slow)

    def _forget_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _forget_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _too_slow(self) -> None:
        if self._idle:
            self.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn inside a program that has signals and sockets of its own."""

    def __init__(self, config: uvicorn.Config, listening: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._listening = listening
        self._context = context

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; uvicorn's own way has no bound for the TLS handshake."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            return PatientProtocol(self.config, self.server_state, self.lifespan.state, loop)

        server = await loop.create_server(
            protocol, sock=self._listening, ssl=self._context, backlog=_BACKLOG,
            ssl_handshake_timeout=HANDSHAKE_WITHIN_S,
        )  # fmt: skip
        self.servers = [server]
        self.started = True
        self.ready.set()


@contextlib.asynccontextmanager
async def serve_api(app: FastAPI, host: str, port: int, own_pair: Callable[[], KeyPair]) -> AsyncIterator[int]:
    """Serve an app over TLS; the port that was bound, where 0 was asked for.

    `own_pair` gives the key and certificate to show, and is asked again every few seconds, so that none runs out.

    Raises:
        OSError: the address cannot be bound, or key and certificate are none, or not one pair.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    pair = own_pair()
    _load(context, pair)
    with _bound(host, port) as listening:
        config = uvicorn.Config(
            app, lifespan="off", log_config=None, access_log=False, server_header=False, proxy_headers=False,
            limit_concurrency=CONNECTIONS_MAX, timeout_keep_alive=KEEP_ALIVE_S, ws="none",
            timeout_graceful_shutdown=_GRACE_S, h11_max_incomplete_event_size=HEADERS_MAX_BYTES,
        )  # fmt: skip
        server = _Server(config, listening, context)
        serving = asyncio.create_task(server.serve())
        renewing = asyncio.create_task(_renew(context, own_pair, pair))
        starting = asyncio.create_task(server.ready.wait())
        try:
            await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            yield listening.getsockname()[1]
        finally:
            renewing.cancel()
            starting.cancel()
            server.should_exit = True
            await asyncio.gather(serving, renewing, starting, return_exceptions=True)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listening.bind((host, port))
    except OSError:
        listening.close()
        raise
    return listening


async def _renew(context: ssl.SSLContext, own_pair: Callable[[], KeyPair], shown: KeyPair) -> None:
    """Connections that begin from now on see what is to be shown now; one that cannot be shown is looked at again."""
    trouble = ""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            pair = await asyncio.to_thread(own_pair)
            if pair != shown:
                _load(context, pair)
                shown = pair
                log.info("the API shows another certificate from now on")
            trouble = ""
        except (OSError, ValueError) as error:
            if str(error) != trouble:
                trouble = str(error)
                log.error("the API keeps its certificate, since there is no other that is good: %s", error)


def _load(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Tried on another context first: a key that does not belong to its certificate would leave this one with half of
    each. Python reads both from files only.

    Raises:
        OSError: they are none, or not one pair (ssl.SSLError).
    """
    with tempfile.TemporaryDirectory(prefix="brownout-") as folder:
        certificate, key = Path(folder) / "certificate.pem", Path(folder) / "key.pem"
        certificate.write_bytes(pair.certificate_pem)
        key.touch(mode=0o600)
        key.write_bytes(pair.key_pem)
        for one in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            one.load_cert_chain(certificate, key, password="")  # else OpenSSL asks for one at the terminal
