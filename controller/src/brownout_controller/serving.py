"""A controller that serves a fleet: authority, store and listening ports, opened and closed together."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from brownout_controller.fleet.authority import Authority
from brownout_controller.fleet.server import FleetServer, FleetService
from brownout_controller.fleet.sessions import Fleet
from brownout_controller.store.identities import Identities
from brownout_controller.store.store import Store


@dataclass(frozen=True, slots=True)
class Controller:
    """What a run needs of a controller."""

    fleet: Fleet
    store: Store
    identities: Identities
    authority: Authority
    epoch: int
    host: str
    port: int
    enrol_port: int


def open_authority(data_dir: Path) -> Authority:
    """The authority of a data directory, made at first use."""
    return Authority(data_dir / "authority")


@asynccontextmanager
async def serve_fleet(
    store: Store, authority: Authority, host: str, port: int, identities: Identities | None = None
) -> AsyncIterator[Controller]:
    """Listen for agents; `identities` keeps tokens and agents where that is not `store` (one-machine mode).

    Raises:
        OSError: the address cannot be bound.
        StoreError: another controller serves from this SQLite database.
    """
    with ExitStack() as held:
        if identities is None:
            held.enter_context(store.database.serving())
            identities = Identities(store.database)
        async with _listening(store, authority, host, port, identities) as controller:
            yield controller


@asynccontextmanager
async def _listening(
    store: Store, authority: Authority, host: str, port: int, identities: Identities
) -> AsyncIterator[Controller]:
    fleet, epoch = Fleet(), identities.take_epoch()
    server = FleetServer(FleetService(fleet, authority, identities, epoch), authority)
    fleet_port, enrol_port = await server.start(host, port)
    try:
        yield Controller(fleet, store, identities, authority, epoch, host, fleet_port, enrol_port)
    finally:
        fleet.say_bye("this controller ends")
        await server.stop()
