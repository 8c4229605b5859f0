"""A data folder as the first release left it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from brownout_controller.store import migrating
from sqlalchemy import create_engine, make_url


def lay_first_release(folder: Path) -> Path:
    """A folder with that release's database, rows and all."""
    folder.mkdir(mode=0o700)
    (folder / "brownout.db").touch(mode=0o600)
    with closing(sqlite3.connect(folder / "brownout.db")) as connection:
        connection.executescript(Path(__file__).with_suffix(".sql").read_text())
    return folder


def lay_first_release_tables(address: str) -> None:
    """The same tables on PostgreSQL, by the first migration: that release knew SQLite only."""
    engine = create_engine(make_url(address).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(migrating.MIGRATIONS))
        command.upgrade(config, "0001")
    engine.dispose()
