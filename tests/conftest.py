"""What many tests share: a database of either kind, the server behind one of them, and who may run beside whom."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from brownout_controller.store.database import Database

from tests.support.postgres import Postgres, postgres

_THIS_MACHINE = {"contract", "host"}
"""Folders whose tests have faults on this machine."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests `make test` may run beside each other.

    Those in tests/host measure, and run `alone`. Of the others whoever starts injectors on this machine judges what is
    on all of it (the residue audit does), so there is one of them at a time: xdist runs a group in one process.
    """
    for item in items:
        folder, module = item.path.parent.name, item.path.stem
        if folder == "host":
            item.add_marker(pytest.mark.alone)
        on_this_machine = folder in _THIS_MACHINE or item.get_closest_marker("injects")
        item.add_marker(pytest.mark.xdist_group("this machine" if on_this_machine else module))


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
