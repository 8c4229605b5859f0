"""Which controllers live, and whom each host obeys.

Safety lies in the epoch: it rises whenever a host goes to another controller, hosts keep the largest that they have
seen, and refuse orders with a smaller one. Times only say how soon somebody may take over what a dead one left.
"""

import os
import platform
import uuid
from dataclasses import dataclass

from sqlalchemy import case, delete, func, insert, select, update

from brownout_controller.store.database import Database
from brownout_controller.store.schema import identities, owners
from brownout_controller.store.upsert import insert_into

BEAT_EVERY_S = 2.0
DEAD_AFTER_NS = 15 * 10**9
"""A controller that was not seen for so long is taken for dead; it may still live, and then its epochs are old."""

_CONTROLLERS, _HOSTS = owners.controllers, owners.host_owners


class ControllerForgotten(Exception):
    """This controller was taken for dead and what it owned was taken over; its process must begin anew."""


@dataclass(frozen=True, slots=True)
class HostOwner:
    """Whom a host obeys."""

    controller_id: str
    epoch: int
    expires_ns: int


class Owners:
    """Controllers and hosts of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def arrive(self) -> str:
        """Register this process as a controller; its id is good for this one life."""
        controller_id = str(uuid.uuid4())
        with self._database.writing() as connection:
            now_ns = self._database.now_ns(connection)
            row = {"controller_id": controller_id, "machine": platform.node(), "pid": os.getpid()}
            connection.execute(insert(_CONTROLLERS), {**row, "started_ns": now_ns, "seen_ns": now_ns})
        return controller_id

    def beat(self, controller_id: str) -> None:
        """Say that this controller lives, for itself and for every host that it owns.

        Raises:
            ControllerForgotten: somebody took it for dead.
        """
        with self._database.writing() as connection:
            now_ns = self._database.now_ns(connection)
            seen = update(_CONTROLLERS).where(_CONTROLLERS.c.controller_id == controller_id).values(seen_ns=now_ns)
            if connection.execute(seen).rowcount != 1:
                raise ControllerForgotten(f"controller {controller_id} was silent for too long and was taken for dead")
            owned = update(_HOSTS).where(_HOSTS.c.controller_id == controller_id)
            connection.execute(owned.values(expires_ns=now_ns + DEAD_AFTER_NS))

    def leave(self, controller_id: str) -> None:
        """End in good order: nobody needs to wait before taking over."""
        with self._database.writing() as connection:
            connection.execute(update(_HOSTS).where(_HOSTS.c.controller_id == controller_id).values(expires_ns=0))
            connection.execute(delete(_CONTROLLERS).where(_CONTROLLERS.c.controller_id == controller_id))

    def bury(self) -> tuple[str, ...]:
        """Forget every controller that is taken for dead; returns their ids."""
        with self._database.writing() as connection:
            dead = _CONTROLLERS.c.seen_ns < self._database.now_ns(connection) - DEAD_AFTER_NS
            gone = connection.execute(delete(_CONTROLLERS).where(dead).returning(_CONTROLLERS.c.controller_id))
            return tuple(gone.scalars())

    def living(self) -> frozenset[str]:
        """The ids of every controller that is not taken for dead."""
        with self._database.reading() as connection:
            since_ns = self._database.now_ns(connection) - DEAD_AFTER_NS
            ids = connection.execute(select(_CONTROLLERS.c.controller_id).where(_CONTROLLERS.c.seen_ns >= since_ns))
            return frozenset(ids.scalars())

    def take(self, agent_id: str, controller_id: str) -> int:
        """Own a host from now on, whoever owned it before; returns the epoch that its orders must carry.

        It rises when another controller had the host, and stays for one whose agent merely came back.
        """
        # Before there were owners of single hosts, one epoch counted for all; hosts remember it.
        first = select(func.coalesce(func.max(identities.epochs.c.epoch), 0) + 1).scalar_subquery()
        with self._database.writing() as connection:
            expires_ns = self._database.now_ns(connection) + DEAD_AFTER_NS
            taking = insert_into(connection, _HOSTS).values(
                agent_id=agent_id, controller_id=controller_id, epoch=first, expires_ns=expires_ns
            )
            same = _HOSTS.c.controller_id == taking.excluded.controller_id
            taken = taking.on_conflict_do_update(
                index_elements=[_HOSTS.c.agent_id],
                set_={
                    "epoch": case((same, _HOSTS.c.epoch), else_=_HOSTS.c.epoch + 1),
                    "controller_id": taking.excluded.controller_id,
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
