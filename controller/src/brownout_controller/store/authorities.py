"""Whose cluster a shared database is, and its authority's keys as they lie there: sealed, opened by a key elsewhere."""

from dataclasses import dataclass

from sqlalchemy import select, update

from brownout_controller.store.database import Database
from brownout_controller.store.schema import authority
from brownout_controller.store.upsert import insert_into

_AUTHORITY = authority.authority
_ONLY = 1


@dataclass(frozen=True, slots=True)
class KeptAuthority:
    """What the database knows of its cluster's authority."""

    cluster: str
    sealed: bytes | None
    """None while nobody has shared it."""


class Authorities:
    """Every method raises StoreError when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def kept(self) -> KeptAuthority | None:
        """What is kept; None before the first controller."""
        with self._database.reading() as connection:
            row = connection.execute(select(_AUTHORITY.c.cluster, _AUTHORITY.c.sealed)).first()
        return None if row is None else KeptAuthority(row.cluster, row.sealed)

    def claim(self, cluster: str) -> KeptAuthority:
        """Make this the database's cluster if it has none; what is kept then."""
        with self._database.writing() as connection:
            claiming = insert_into(connection, _AUTHORITY).values(number=_ONLY, cluster=cluster)
            connection.execute(claiming.on_conflict_do_nothing())
            row = connection.execute(select(_AUTHORITY.c.cluster, _AUTHORITY.c.sealed)).one()
        return KeptAuthority(row.cluster, row.sealed)

    def keep(self, sealed: bytes) -> None:
        """Keep what every controller signs with from now on."""
        with self._database.writing() as connection:
            connection.execute(update(_AUTHORITY).values(sealed=sealed))
