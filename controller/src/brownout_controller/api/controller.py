"""A controller that stays: its fleet, its runs and its API in one process, begun and ended in order."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from brownout_controller.api.app import create_app
from brownout_controller.api.first_admin import FIRST_TOKEN_TTL_S, FIRST_USER, first_admin
from brownout_controller.api.names import own_names
from brownout_controller.api.oidc import Provider
from brownout_controller.api.server import serve_api
from brownout_controller.api.services import Services
from brownout_controller.audit.entry import Auditor
from brownout_controller.fleet.authority import Authority, KeyPair
from brownout_controller.fleet.own_pair import OwnPair
from brownout_controller.running.manager import RunManager
from brownout_controller.serving import serve_fleet
from brownout_controller.store.store import Store

Address = tuple[str, int]
Pairs = Callable[[], KeyPair]
"""Gives the key and certificate that are to be shown now."""


async def serve(
    store: Store,
    authority: Authority,
    listen: Address,
    api: Address,
    pair: Pairs | None,
    audit: Auditor,
    provider: Provider | None = None,
    advertise: str = "",
) -> None:
    """Serve until SIGINT or SIGTERM. Without `pair` the authority makes the API's certificates.

    `advertise` (HOST:PORT) is where agents of other controllers can reach this one.

    Raises:
        OSError: an address cannot be bound.
        StoreError: another controller serves from this database, or it does not answer.
    """
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ending.set)
    async with _serving(store, authority, listen, api, pair, audit, provider, advertise):
        await ending.wait()
        _say("ending: every run is halted and undone first")


@asynccontextmanager
async def _serving(
    store: Store,
    authority: Authority,
    listen: Address,
    api: Address,
    pair: Pairs | None,
    audit: Auditor,
    provider: Provider | None,
    advertise: str,
) -> AsyncIterator[None]:
    """Fleet, runs and API, ended in the other order: runs are undone while agents can still be spoken to."""
    async with serve_fleet(store, authority, *listen, auditor=audit, advertise=advertise) as controller:
        runs = RunManager(controller.fleet, store, controller.controller_id, controller.lever)
        services = Services(controller, runs, audit, provider)
        token = first_admin(services.access)
        app, shown = create_app(services), pair or OwnPair(authority, lambda: own_names(api[0], _host_of(advertise)))
        async with controller.lever.obeying(runs), serve_api(app, *api, shown) as port:
            _say(f"agents on {controller.host}:{controller.port}, enrolment on port {controller.enrol_port}")
            _say(f"API on https://{api[0]}:{port}/api/v1, authority {authority.pin}")
            if token is not None:
                hours = FIRST_TOKEN_TTL_S // 3600
                _say(f"the first user is `{FIRST_USER}`; this token is shown once and good for {hours} h:")
                print(token.text, flush=True)  # noqa: T201 - the one place where it is shown
            try:
                yield
            finally:
                await runs.close("this controller ends")


def _host_of(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _say(line: str) -> None:
    """What is going on, for who started it."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201
