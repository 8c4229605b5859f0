"""Which controllers live, and whom each host obeys.

Safety lies in the epoch: it rises whenever a host goes to another controller, hosts keep the largest that they have
seen, and refuse orders with a smaller one. Times only say how soon somebody may take over what a dead one left.
"""

import os
import platform
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, case, cast, delete, func, insert, literal, select, update

from brownout_controller.store.database import Database, StoreError
from brownout_controller.store.locks import lock_file, try_lock
from brownout_controller.store.schema import identities, owners
from brownout_controller.store.upsert import insert_into

BEAT_EVERY_S = 2.0
DEAD_AFTER_NS = 15 * 10**9
"""A controller that was not seen for so long is taken for dead; it may still live, and then its epochs are old."""

_CONTROLLERS, _HOSTS = owners.controllers, owners.host_owners


@dataclass(frozen=True, slots=True)
class HostOwner:
    """Whom a host obeys."""

    controller_id: str
    epoch: int
    expires_ns: int


@dataclass(frozen=True, slots=True)
class OwnedElsewhere:
    """A host that is connected to another controller."""

    agent_id: str
    controller: str
    """Where agents reach that one, HOST:PORT; its id where it told no address."""
    description: str
    """JSON, as its owner wrote it."""


def new_controller_id() -> str:
    """An id for one life of one controller."""
    return str(uuid.uuid4())


class Owners:
    """Controllers and hosts of one database."""

    def __init__(self, database: Database, address: str = "") -> None:
        """`address` (HOST:PORT) is where agents reach the controller that lives by this object."""
        self._database = database
        self._address = address

    @contextmanager
    def life(self, controller_id: str = "") -> Iterator[str]:
        """Be a controller while inside; its id is good for this one life.

        Beside a SQLite file each life holds a lock, so that its death is known at once and its sleep is none.
        """
        controller_id = controller_id or new_controller_id()
        with ExitStack() as held:
            if (path := self._lock_of(controller_id)) is not None:
                try_lock(held.enter_context(lock_file(path)), exclusive=True)
            self._arrive(controller_id)
            try:
                yield controller_id
            finally:
                with suppress(StoreError):  # then it is found dead, a little later
                    self._leave(controller_id)

    def _arrive(self, controller_id: str) -> None:
        with self._database.writing() as connection:
            now_ns = self._database.now_ns(connection)
            connection.execute(insert(_CONTROLLERS), self._row(controller_id, now_ns))

    def beat(self, controller_id: str) -> bool:
        """Say that this controller lives, for itself and for every host that it owns.

        False when it had been taken for dead meanwhile. It is a controller again, and keeps what nobody took from it.
        """
        with self._database.writing() as connection:
            now_ns = self._database.now_ns(connection)
            seen = update(_CONTROLLERS).where(_CONTROLLERS.c.controller_id == controller_id).values(seen_ns=now_ns)
            known = connection.execute(seen).rowcount == 1
            if not known:
                connection.execute(insert(_CONTROLLERS), self._row(controller_id, now_ns))
            owned = update(_HOSTS).where(_HOSTS.c.controller_id == controller_id)
            connection.execute(owned.values(expires_ns=now_ns + DEAD_AFTER_NS))
        return known

    def _leave(self, controller_id: str) -> None:
        """Nobody needs to wait before taking over."""
        with self._database.writing() as connection:
            connection.execute(update(_HOSTS).where(_HOSTS.c.controller_id == controller_id).values(expires_ns=0))
        self._forget([controller_id])

    def living(self) -> frozenset[str]:
        """The ids of every controller that is not dead; the dead are forgotten."""
        with self._database.reading() as connection:
            since_ns = self._database.now_ns(connection) - DEAD_AFTER_NS
            rows = connection.execute(select(_CONTROLLERS.c.controller_id, _CONTROLLERS.c.seen_ns)).all()
        dead = {controller_id for controller_id, seen_ns in rows if self._is_dead(controller_id, seen_ns, since_ns)}
        if dead:
            self._forget(sorted(dead))
        return frozenset(controller_id for controller_id, _ in rows) - dead

    def _is_dead(self, controller_id: str, seen_ns: int, since_ns: int) -> bool:
        path = self._lock_of(controller_id)
        if path is None:
            return seen_ns < since_ns
        with lock_file(path) as descriptor:
            return try_lock(descriptor, exclusive=True)

    def _forget(self, controller_ids: list[str]) -> None:
        with self._database.writing() as connection:
            connection.execute(delete(_CONTROLLERS).where(_CONTROLLERS.c.controller_id.in_(controller_ids)))
        for controller_id in controller_ids:
            if (path := self._lock_of(controller_id)) is not None:
                path.unlink(missing_ok=True)

    def _lock_of(self, controller_id: str) -> Path | None:
        """None on PostgreSQL, where the beat alone tells: its controllers are on several machines."""
        folder = self._database.folder
        return None if folder is None else folder / f"controller-{controller_id}.lock"

    def take(self, agent_id: str, controller_id: str, seen_epoch: int = 0) -> int:
        """Own a host from now on, whoever owned it before; returns the epoch that its orders must carry.

        It rises when another controller had the host, and stays for one whose agent merely came back. A host that has
        seen a larger one (`seen_epoch`) than stands here, since a backup was restored, gets one beyond that.
        """
        # Before there were owners of single hosts, one epoch counted for all; hosts remember it.
        highest = select(cast(func.coalesce(func.max(identities.epochs.c.epoch), 0), BigInteger)).scalar_subquery()
        seen = literal(seen_epoch, BigInteger)
        first = case((highest > seen, highest), else_=seen) + 1
        is_behind = _HOSTS.c.epoch < seen
        with self._database.writing() as connection:
            expires_ns = self._database.now_ns(connection) + DEAD_AFTER_NS
            taking = insert_into(connection, _HOSTS).values(
                agent_id=agent_id, controller_id=controller_id, epoch=first, expires_ns=expires_ns
            )
            same = _HOSTS.c.controller_id == taking.excluded.controller_id
            taken = taking.on_conflict_do_update(
                index_elements=[_HOSTS.c.agent_id],
                set_={
                    "epoch": case((is_behind, seen + 1), (same, _HOSTS.c.epoch), else_=_HOSTS.c.epoch + 1),
                    "controller_id": taking.excluded.controller_id,
                    "description": case((same, _HOSTS.c.description), else_=None),
                    "expires_ns": taking.excluded.expires_ns,
                },
            ).returning(_HOSTS.c.epoch)
            return int(connection.execute(taken).scalar_one())

    def owner_of(self, agent_id: str) -> HostOwner | None:
        """Whom a host obeys; None for one that nobody ever owned."""
        columns = (_HOSTS.c.controller_id, _HOSTS.c.epoch, _HOSTS.c.expires_ns)
        with self._database.reading() as connection:
            row = connection.execute(select(*columns).where(_HOSTS.c.agent_id == agent_id)).first()
        return None if row is None else HostOwner(*row)

    def owned_by(self, controller_id: str) -> dict[str, int]:
        """The agents of the hosts that a controller owns, and the epoch of each."""
        with self._database.reading() as connection:
            rows = connection.execute(
                select(_HOSTS.c.agent_id, _HOSTS.c.epoch).where(_HOSTS.c.controller_id == controller_id)
            )
            return {row.agent_id: row.epoch for row in rows}

    def describe(self, controller_id: str, descriptions: Mapping[str, str | None]) -> None:
        """Keep how a controller shows hosts of its own to the others, by agent's id; None for one that went away."""
        with self._database.writing() as connection:
            for agent_id, description in sorted(descriptions.items()):
                mine = (_HOSTS.c.agent_id == agent_id) & (_HOSTS.c.controller_id == controller_id)
                connection.execute(update(_HOSTS).where(mine).values(description=description))

    def elsewhere(self, controller_id: str) -> list[OwnedElsewhere]:
        """Every host that is connected to another controller that lives."""
        address = func.coalesce(_CONTROLLERS.c.address, _CONTROLLERS.c.controller_id).label("controller")
        both = _HOSTS.join(_CONTROLLERS, _HOSTS.c.controller_id == _CONTROLLERS.c.controller_id)
        wanted = select(_HOSTS.c.agent_id, address, _HOSTS.c.description).select_from(both)
        with self._database.reading() as connection:
            alive = _CONTROLLERS.c.seen_ns >= self._database.now_ns(connection) - DEAD_AFTER_NS
            theirs = (_HOSTS.c.controller_id != controller_id) & _HOSTS.c.description.is_not(None) & alive
            return [OwnedElsewhere(*row) for row in connection.execute(wanted.where(theirs))]

    def addresses(self) -> tuple[str, ...]:
        """Where agents reach the controllers that live, the longest living first."""
        columns = (_CONTROLLERS.c.address, _CONTROLLERS.c.seen_ns)
        told = select(*columns).where(_CONTROLLERS.c.address.is_not(None)).order_by(_CONTROLLERS.c.started_ns)
        with self._database.reading() as connection:
            since_ns = self._database.now_ns(connection) - DEAD_AFTER_NS
            return tuple(row.address for row in connection.execute(told) if row.seen_ns >= since_ns)

    def _row(self, controller_id: str, now_ns: int) -> dict[str, Any]:
        process = {"machine": platform.node(), "pid": os.getpid(), "address": self._address or None}
        return {"controller_id": controller_id, **process, "started_ns": now_ns, "seen_ns": now_ns}
