"""The version of a database's tables, and the way from an older one to the newest.

A new database is made from the metadata as it stands; an older one takes the steps in `migrations/versions`. A test
holds both ways to the same result. A new step is written by `tools/revision.py`.
"""

from functools import cache
from pathlib import Path

from sqlalchemy import inspect
from sqlalchemy.engine import Connection

from brownout_controller import __version__
from brownout_controller.store import schema
from brownout_controller.store.errors import StoreError

MIGRATIONS = Path(__file__).parent / "migrations"
_FIRST = "0001"
"""The tables of the first release, which kept no version yet."""
_VERSION_TABLE = "alembic_version"


@cache
def known() -> tuple[str, ...]:
    """Every version that this Brownout can read, oldest first. They are numbers of four digits, one after the other."""
    return tuple(sorted(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9][0-9][0-9][0-9]_*.py")))


def newest() -> str:
    """The version that this Brownout works with."""
    return known()[-1]


def version_of(connection: Connection) -> str | None:
    """The version of a database's tables; None where there are none."""
    tables = inspect(connection)
    if tables.has_table(_VERSION_TABLE):
        return str(connection.exec_driver_sql(f"SELECT version_num FROM {_VERSION_TABLE}").scalar_one())  # noqa: S608
    return _FIRST if tables.has_table(schema.runs.runs.name) else None


def refuse_newer(version: str | None, place: str) -> None:
    """Leave tables alone that a newer Brownout has made.

    Raises:
        StoreError: they are such.
    """
    if version is not None and version not in known():
        raise StoreError(
            f"the database in {place} is at version {version}, and Brownout {__version__} knows up to {newest()}; "
            "upgrade Brownout, or restore a backup made before: brownout data restore FILE"
        )


def bring_up_to_date(connection: Connection, place: str) -> None:
    """Make the tables, or change them to the newest version, in the transaction that the caller has begun.

    Raises:
        StoreError: they are of a newer version.
    """
    version = version_of(connection)
    if version == newest():
        return
    refuse_newer(version, place)
    from alembic import command  # noqa: PLC0415 - takes long to import, and almost no start needs it
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS))
    if version is None:
        schema.metadata.create_all(connection)
        command.stamp(config, newest())
        return
    if not inspect(connection).has_table(_VERSION_TABLE):
        command.stamp(config, _FIRST)
    command.upgrade(config, newest())
