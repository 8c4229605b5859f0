"""Fixtures that many tests share: a database of either kind, and the PostgreSQL server behind one of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from brownout_controller.store.database import Database

from tests.support.postgres import Postgres, postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One real server for the whole session; each test makes a database of its own on it."""
    with postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        made = Database.in_folder(tmp_path / "data")
    else:
        server: Postgres = request.getfixturevalue("postgres_server")
        made = Database.at(server.make_database())
    yield made
    made.close()
