"""A PostgreSQL server that goes away, comes back, or cannot be trusted."""

import signal
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from brownout_controller.store import schema
from brownout_controller.store.database import Database, StoreError
from brownout_controller.store.store import Store

from tests.support.first_release import lay_first_release_tables
from tests.support.postgres import Postgres, postgres


def test_a_server_without_fsync_is_refused() -> None:
    with postgres(fsync="off") as server, pytest.raises(StoreError, match="runs with fsync=off and may forget"):
        Database.at(server.make_database())


def test_a_crash_of_the_server_is_an_error_that_passes_and_loses_nothing(tmp_path: Path) -> None:
    with postgres() as server:
        store = Store(tmp_path, server.make_database())
        first = store.begin_run("first", "mary", "d" * 64, 1)
        server.stop(signal.SIGQUIT)
        with pytest.raises(StoreError, match="cannot keep runs in postgresql://"):
            store.begin_run("second", "mary", "d" * 64, 1)
        server.start()
        assert store.begin_run("third", "mary", "d" * 64, 1) > first
        assert [line.name for line in store.list_runs()] == ["third", "first"]
        store.close()


def test_a_server_that_does_not_answer_is_given_up_in_bounded_time(tmp_path: Path) -> None:
    with postgres() as server:
        address = server.make_database()
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        begun_s = time.monotonic()
        with pytest.raises(StoreError, match="cannot keep runs"):
            Store(tmp_path, address)
        assert time.monotonic() - begun_s < 20
        server.process.send_signal(signal.SIGCONT)


def test_every_step_leads_to_the_tables_that_a_new_database_has(postgres_server: Postgres) -> None:
    """Fails when somebody changed store/schema without a migration: .venv/bin/python tools/revision.py"""
    address = postgres_server.make_database()
    lay_first_release_tables(address)
    database = Database.at(address)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == [], "next: .venv/bin/python tools/revision.py"
    database.close()
