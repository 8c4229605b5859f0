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
from brownout_controller.fleet.ownership import Ownership
from brownout_controller.fleet.server import FleetService
from brownout_controller.fleet.sessions import Fleet
from brownout_controller.fleet.shared_authority import shared
from brownout_controller.fleet.sweeping import Sweeper
from brownout_controller.running.adopting import Adopter
from brownout_controller.running.halting import HaltLever
from brownout_controller.running.hosts import described
from brownout_controller.store.authorities import Authorities
from brownout_controller.store.database import Database
from brownout_controller.store.identities import Identities
from brownout_controller.store.owners import Owners, new_controller_id
from brownout_controller.store.store import Store

WILDCARDS = frozenset({"", "*", "0.0.0.0", "::"})  # noqa: S104 - to know them by
"""Addresses that mean every one of this machine, and that lead nowhere from another."""


@dataclass(frozen=True, slots=True)
class Controller:
    """What a run needs of a controller."""

    fleet: Fleet
    store: Store
    identities: Identities
    authority: Authority
    host: str
    port: int
    enrol_port: int
    lever: HaltLever
    controller_id: str
    audit: Auditor
    owners: Owners
    address: str
    """Where agents reach it, HOST:PORT; empty where that cannot be told."""


def authority_folder(data_dir: Path) -> Path:
    """Where the cluster's keys are."""
    return data_dir / "authority"


def open_authority(data_dir: Path, database: Database | None = None, key_file: Path | None = None) -> Authority:
    """The authority of a data directory, made at first use; on PostgreSQL, that of the database's cluster.

    Raises:
        AuthorityError: it cannot be used; the text says what to do.
        StoreError: the database does not answer.
    """
    folder = authority_folder(data_dir)
    if database is None or database.folder is not None:
        return Authority(folder)
    return shared(folder, Authorities(database), key_file)


@asynccontextmanager
async def serve_fleet(
    store: Store,
    authority: Authority,
    host: str,
    port: int,
    identities: Identities | None = None,
    auditor: Auditor | None = None,
    advertise: str = "",
) -> AsyncIterator[Controller]:
    """Listen for agents; `identities` keeps tokens and agents where that is not `store` (one-machine mode).

    Without an `auditor`, who was let in or refused stands in the program's log. `advertise` (HOST:PORT) is where agents
    reach this controller, for them to know when another one dies; where it listens, if left out.

    Raises:
        OSError: the address cannot be bound.
        StoreError: another controller serves from this SQLite database.
    """
    one_machine = identities is not None
    with ExitStack() as held:
        if identities is None:
            held.enter_context(store.database.serving())
            identities = Identities(store.database)
        enrolled_here = Identities(store.database).can_connect
        leave = enrolled_here if one_machine else lambda _: False  # their own controller can ask them, and this cannot
        listen = _Listen(host, port, "" if one_machine else advertise, not one_machine)
        async with _listening(store, authority, listen, identities, auditor or LogAuditor()) as controller:
            fleet, controller_id, owners = controller.fleet, controller.controller_id, controller.owners
            held.enter_context(owners.life(controller_id))
            adopter = Adopter(store, owners, fleet, controller_id, identities.can_connect, leave)
            adopting = asyncio.create_task(adopter.run())
            try:
                yield controller
            finally:
                adopting.cancel()
                await asyncio.gather(adopting, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Listen:
    host: str
    port: int
    advertise: str
    is_told: bool

    def address(self, port: int) -> str:
        """Where agents reach what listens here; a wildcard is nowhere."""
        if not self.is_told or self.advertise:
            return self.advertise
        host = self.host.strip("[]")
        if host in WILDCARDS:
            return ""
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@asynccontextmanager
async def _listening(
    store: Store, authority: Authority, listen: _Listen, identities: Identities, auditor: Auditor
) -> AsyncIterator[Controller]:
    fleet, knocks, controller_id = Fleet(), Knocks(), new_controller_id()
    ownership = Ownership(fleet, Owners(identities.database), identities, auditor, controller_id, described)
    service = FleetService(fleet, authority, identities, ownership, auditor, knocks)
    server = FleetServer(service, authority, knocks)
    fleet_port, enrol_port = await server.start(listen.host, listen.port)
    ownership.address = address = listen.address(fleet_port)
    sweeper = Sweeper(fleet, authority, identities, auditor, knocks, service.welcome_again)
    beside = [asyncio.create_task(sweeper.run()), asyncio.create_task(ownership.run(service.welcome_again))]
    try:
        yield Controller(
            fleet, store, identities, authority, listen.host, fleet_port, enrol_port,
            HaltLever(store.database, fleet, auditor), controller_id, auditor, Owners(store.database, address), address,
        )  # fmt: skip
    finally:
        for task in beside:
            task.cancel()
        fleet.say_bye("this controller ends")
        await server.stop()
