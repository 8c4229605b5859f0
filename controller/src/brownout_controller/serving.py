"""A controller that serves a fleet: authority, store and listening ports, opened and closed together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from brownout_controller.audit.entry import Auditor
from brownout_controller.audit.logged import LogAuditor
from brownout_controller.fleet.authority import Authority
from brownout_controller.fleet.knocks import Knocks
from brownout_controller.fleet.listening import FleetServer
from brownout_controller.fleet.server import FleetService
from brownout_controller.fleet.sessions import Fleet
from brownout_controller.fleet.sweeping import Sweeper
from brownout_controller.running.adopting import Adopter
from brownout_controller.running.halting import HaltLever
from brownout_controller.store.identities import Identities
from brownout_controller.store.owners import Owners
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
    lever: HaltLever
    controller_id: str
    audit: Auditor


def authority_folder(data_dir: Path) -> Path:
    """Where the cluster's keys are."""
    return data_dir / "authority"


def open_authority(data_dir: Path) -> Authority:
    """The authority of a data directory, made at first use."""
    return Authority(authority_folder(data_dir))


@asynccontextmanager
async def serve_fleet(
    store: Store,
    authority: Authority,
    host: str,
    port: int,
    identities: Identities | None = None,
    auditor: Auditor | None = None,
) -> AsyncIterator[Controller]:
    """Listen for agents; `identities` keeps tokens and agents where that is not `store` (one-machine mode).

    Without an `auditor`, who was let in or refused stands in the program's log.

    Raises:
        OSError: the address cannot be bound.
        StoreError: another controller serves from this SQLite database.
    """
    one_machine = identities is not None
    with ExitStack() as held:
        if identities is None:
            held.enter_context(store.database.serving())
            identities = Identities(store.database)
        owners, enrolled_here = Owners(store.database), Identities(store.database).can_connect
        leave = enrolled_here if one_machine else lambda _: False  # their own controller can ask them, and this cannot
        controller_id = held.enter_context(owners.life())
        async with _listening(
            store, authority, host, port, identities, auditor or LogAuditor(), controller_id
        ) as controller:
            adopter = Adopter(store, owners, controller.fleet, controller_id, identities.can_connect, leave)
            adopting = asyncio.create_task(adopter.run())
            try:
                yield controller
            finally:
                adopting.cancel()
                await asyncio.gather(adopting, return_exceptions=True)


@asynccontextmanager
async def _listening(
    store: Store,
    authority: Authority,
    host: str,
    port: int,
    identities: Identities,
    auditor: Auditor,
    controller_id: str,
) -> AsyncIterator[Controller]:
    fleet, epoch, knocks = Fleet(), identities.take_epoch(), Knocks()
    service = FleetService(fleet, authority, identities, epoch, auditor, knocks)
    server = FleetServer(service, authority, knocks)
    fleet_port, enrol_port = await server.start(host, port)
    sweeper = Sweeper(fleet, authority, identities, auditor, knocks, service.welcome_again)
    sweeping = asyncio.create_task(sweeper.run())
    try:
        lever = HaltLever(store.database, fleet, auditor)
        yield Controller(
            fleet, store, identities, authority, epoch, host, fleet_port, enrol_port, lever, controller_id, auditor
        )
    finally:
        sweeping.cancel()
        fleet.say_bye("this controller ends")
        await server.stop()
