"""A controller with its API in this process, on a loop of its own, and real agents and injectors that joined it."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import httpx
from brownout_controller.access.decisions import Grant
from brownout_controller.access.token_form import new_token
from brownout_controller.api.app import create_app
from brownout_controller.api.oidc import Provider
from brownout_controller.api.server import serve_api
from brownout_controller.api.services import Services
from brownout_controller.fleet.own_pair import OwnPair
from brownout_controller.running.manager import RunManager
from brownout_controller.store.access import TokenRow, UserExists, token_row

from tests.support import fleets
from tests.support.fleets import Entries, agent, controller, membership, until
from tests.support.injectors import injector

DAY_S = 24 * 3600
POLICY = 'version: 1\nenvironment: %s\nfaults: {"*": {allow: true, max_seconds: 300}}\nlimits: {concurrent: 30}\n'
T = TypeVar("T")


class ApiServer:
    """The server, and what tests need to come in."""

    def __init__(self, folder: Path, provider: Provider | None = None, port: int = 0) -> None:
        self.folder = folder
        self.provider = provider
        self._port = port
        self.audit = Entries()
        self.services: Services
        self.url = ""
        self.tls: ssl.SSLContext
        self._ready: Future[None] = Future()
        self._ending: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def run(self, work: Coroutine[Any, Any, T], within_s: float = 60) -> T:
        """Do something on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(within_s)

    def user(self, name: str, *grants: Grant) -> str:
        """A user with these grants; the name."""
        with contextlib.suppress(UserExists):
            self.services.access.add_user(name, grants)
        return name

    def token(self, user: str, ttl_s: int = DAY_S, **narrow: Any) -> str:
        """A fresh token's text."""
        token = new_token()
        self.services.access.add_token(token_row(token, user, "test", ttl_s, **narrow))
        return token.text

    def row(self, text: str) -> TokenRow:
        """What is kept of a token."""
        found = self.services.access.token(text.split("_")[1])
        assert found is not None
        return found[0]

    def client(self, token: str = "", address: str = "127.0.0.1", **more: Any) -> httpx.Client:
        """Somebody at an address of the loopback network."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx.HTTPTransport(verify=self.tls, local_address=address)
        return httpx.Client(base_url=self.url, headers=headers, transport=transport, timeout=30, **more)

    def add_host(self, name: str, environment: str) -> contextlib.AbstractContextManager[None]:
        """A real injector and a real agent, joined and connected, as long as the block lasts."""
        return self._host(name, environment)

    @contextlib.contextmanager
    def _host(self, name: str, environment: str) -> Iterator[None]:
        ending = self.run(_event())
        up: Future[None] = Future()
        running = asyncio.run_coroutine_threadsafe(self._live(name, environment, ending, up), self._loop)
        try:
            while not up.done() and not running.done():
                with contextlib.suppress(TimeoutError):
                    up.result(0.1)
            if running.done():
                running.result()
            yield
        finally:
            self._loop.call_soon_threadsafe(ending.set)
            running.result(30)

    async def _live(self, name: str, environment: str, ending: asyncio.Event, up: "Future[None]") -> None:
        serving = self.services.controller
        folder = self.folder / name
        folder.mkdir()
        policy = folder / "policy.yaml"
        policy.write_text(POLICY % environment)
        await fleets.join(
            folder / "agent", membership(serving, name), serving.identities.create_token(), serving.authority.pin, 20
        )
        async with (
            injector(folder, "--policy", str(policy), embedded=False),
            agent(folder / "agent", folder / "s.sock"),
        ):
            await until(lambda: self._can_inject(name, environment), 30)
            up.set_result(None)
            await ending.wait()

    def _can_inject(self, name: str, environment: str) -> bool:
        host = self.services.fleet.hosts.get(name)
        ready = host is not None and host.connected and host.hello.injector_attached and bool(host.able)
        return ready and host is not None and host.hello.environment == environment

    async def _serve(self) -> None:
        try:
            async with controller(self.folder / "data", auditor=self.audit) as serving:
                self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
                runs = RunManager(serving.fleet, serving.store, serving.controller_id, serving.lever)
                self.services = Services(serving, runs, self.audit, self.provider)
                self.tls = ssl.create_default_context(cadata=serving.authority.bundle_pem.decode())
                app = create_app(self.services)
                async with (
                    serving.lever.obeying(runs),
                    serve_api(app, "127.0.0.1", self._port, OwnPair(serving.authority)) as port,
                ):
                    self.url = f"https://127.0.0.1:{port}/api/v1"
                    self._ready.set_result(None)
                    await self._ending.wait()
                    await runs.close("the test ends")
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            raise

    def __enter__(self) -> "ApiServer":
        self._thread.start()
        self._ready.result(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(90)
        assert not self._thread.is_alive(), "the server did not end"


async def _event() -> asyncio.Event:
    return asyncio.Event()


def raw(api: ApiServer, receive_buffer: int = 0) -> ssl.SSLSocket:
    """A connection with nothing said on it yet."""
    host, port = api.url.removeprefix("https://").removesuffix("/api/v1").split(":")
    plain = socket.socket()
    if receive_buffer:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    plain.settimeout(60)
    plain.connect((host, int(port)))
    return api.tls.wrap_socket(plain, server_hostname=host)
