"""The database: who may open it, what one transaction promises, and what is said when it cannot be used."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from brownout_controller.store import locks, migrating, schema, sqlite
from brownout_controller.store.database import Database, StoreError
from brownout_controller.store.schema import identities, runs
from brownout_controller.store.store import Store
from sqlalchemy import insert, select

from tests.support.disks import MIB, ext4
from tests.support.first_release import lay_first_release

EPOCHS = identities.epochs


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database.in_folder(tmp_path / "data")
    yield made
    made.close()


def take(database: Database) -> int:
    with database.writing() as connection:
        key = connection.execute(insert(EPOCHS), {"taken_ns": 1}).inserted_primary_key
    assert key is not None
    return int(key[0])


def taken(database: Database) -> list[int]:
    with database.reading() as connection:
        return list(connection.execute(select(EPOCHS.c.epoch).order_by(EPOCHS.c.epoch)).scalars())


# ---- transactions ----------------------------------------------------------------------------------------------------


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.writing() as connection:
        connection.execute(insert(EPOCHS), {"taken_ns": 1})
        raise ZeroDivisionError
    assert taken(database) == []


def test_every_commit_is_synced_with_its_folder_and_without_wal(database: Database) -> None:
    with database.writing() as connection:
        asked = ("journal_mode", "synchronous", "foreign_keys")
        found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in asked}
    assert found == {"journal_mode": "delete", "synchronous": 3, "foreign_keys": 1}  # 3 is EXTRA


def test_a_reading_connection_cannot_write(database: Database) -> None:
    with pytest.raises(StoreError, match="readonly database"), database.reading() as connection:
        connection.execute(insert(EPOCHS), {"taken_ns": 1})


def test_threads_and_processes_write_at_once_and_every_row_is_kept(tmp_path: Path, database: Database) -> None:
    script = (
        "import sys; from pathlib import Path; from brownout_controller.store.database import Database\n"
        "from brownout_controller.store.identities import Identities\n"
        "database = Database.in_folder(Path(sys.argv[1]))\n"
        "for _ in range(40): Identities(database).create_token()\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", script, tmp_path / "data"]) for _ in range(2)]
    threads = [threading.Thread(target=lambda: [take(database) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    assert len(taken(database)) == 80
    with database.reading() as connection:
        assert len(connection.execute(select(identities.tokens.c.digest)).all()) == 80


def test_a_row_that_was_acknowledged_survives_a_kill_and_one_that_was_not_is_whole_or_absent(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from brownout_controller.store.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "while True: print(store.begin_run('x', 'y', 'z', 1), flush=True)\n"
    )
    acknowledged: list[int] = []
    for _ in range(5):
        argv = [sys.executable, "-c", script, str(tmp_path / "data")]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            acknowledged += [int(writer.stdout.readline()) for _ in range(20)]
            writer.kill()
            acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    store = Store(tmp_path / "data")
    kept = {line.number for line in store.list_runs(100_000)}
    store.close()
    assert set(acknowledged) <= kept
    assert len(kept) - len(acknowledged) <= 5, "at most the one row a kill that was kept and not yet told"


# ---- who may open it -------------------------------------------------------------------------------------------------


def test_a_second_controller_is_refused_and_told_the_pid_of_the_first(tmp_path: Path, database: Database) -> None:
    script = (
        "import sys; from pathlib import Path; from brownout_controller.store.database import Database\n"
        "with Database.in_folder(Path(sys.argv[1])).serving(): print('serving', flush=True); sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "data")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "serving\n"
        with pytest.raises(StoreError, match=rf"another controller \(pid {first.pid}\) serves"), database.serving():
            pass
        assert take(database) == 1, "short commands may still write"
        first.kill()
    with database.serving():
        pass


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to give a folder away")
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", 12345, 12345)
    with pytest.raises(StoreError, match="belongs to uid 12345, and this is uid 0"):
        Database.in_folder(tmp_path / "data")


@pytest.mark.parametrize(("name", "mode", "remedy"), [("", 0o777, "chmod go-w"), ("brownout.db", 0o644, "chmod 600")])
def test_what_others_could_write_or_read_is_refused(tmp_path: Path, name: str, mode: int, remedy: str) -> None:
    Database.in_folder(tmp_path / "data").close()
    (tmp_path / "data" / name).chmod(mode)
    with pytest.raises(StoreError, match=remedy):
        Database.in_folder(tmp_path / "data")


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "filesystem_of", lambda _: "nfs4")  # no NFS server is here; the rule is what is tested
    with pytest.raises(StoreError, match="is on nfs4, whose locks protect no database"):
        Database.in_folder(tmp_path / "data")


def test_a_file_in_wal_mode_that_another_program_holds_is_refused(tmp_path: Path) -> None:
    Database.in_folder(tmp_path / "data").close()
    other = sqlite3.connect(tmp_path / "data/brownout.db", isolation_level=None)
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("BEGIN")
    other.execute("SELECT * FROM run").fetchall()
    with pytest.raises(StoreError, match=r"wal|locked"):
        Database.in_folder(tmp_path / "data")
    other.close()


# ---- damage and lack -------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_refused_and_restore_is_named(tmp_path: Path) -> None:
    Database.in_folder(tmp_path / "data").close()
    (tmp_path / "data/brownout.db").write_bytes(b"not a database at all" * 500)
    with pytest.raises(StoreError, match=r"damaged: file is not a database\n.*brownout data restore"):
        Database.in_folder(tmp_path / "data")


def test_a_damaged_page_is_found_before_a_controller_serves(tmp_path: Path, database: Database) -> None:
    store = Store(tmp_path / "data")
    for number in range(400):
        store.begin_run(f"name-{number}", "operator" * 20, "d" * 64, number)
    store.close()
    path = tmp_path / "data/brownout.db"
    with path.open("r+b") as file:
        for page in range(8, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(os.urandom(600))
    with pytest.raises(StoreError, match="damaged"), database.serving():
        pass


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a small file system")
def test_a_full_disk_is_an_error_that_passes_when_there_is_room(tmp_path: Path) -> None:
    with ext4(tmp_path, 4 * MIB) as disk:
        database = Database.in_folder(disk / "data")
        hog = disk / "hog"
        with hog.open("wb") as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"x" * 4096)
                file.flush()
        with pytest.raises(StoreError, match=r"disk is full|disk I/O error"):
            for _ in range(500):
                take(database)
        before = taken(database)
        hog.unlink()
        assert take(database) not in before
        assert taken(database)[:-1] == before
        database.close()


# ---- versions --------------------------------------------------------------------------------------------------------


def test_a_newer_database_is_refused_with_both_versions(tmp_path: Path, database: Database) -> None:
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9001'")
    with pytest.raises(StoreError, match=rf"at version 9001, and Brownout .* knows up to {migrating.newest()}"):
        Database.in_folder(tmp_path / "data")


def test_the_first_release_s_database_keeps_its_rows_and_a_copy_of_itself(tmp_path: Path) -> None:
    folder = lay_first_release(tmp_path / "data")
    original = (folder / "brownout.db").read_bytes()
    store = Store(folder)
    lines = {line.number: (line.name, line.operator, line.verdict) for line in store.list_runs()}
    assert lines == {1: ("lose-an-app-server", "mary", "held"), 2: ("busy-cpu", "joe", None)}
    assert store.load_document(1)["verdict"] == "held"
    with store.database.reading() as connection:
        kinds = connection.execute(select(runs.events.c.kind).order_by(runs.events.c.at_ns)).scalars().all()
        hosts = connection.execute(select(identities.agents.c.host)).scalars().all()
    assert kinds == ["run_started", "fault_ordered", "run_started"]
    assert hosts == ["app-1"]
    assert store.begin_run("next", "mary", "f" * 64, 1) == 3
    store.close()
    (kept,) = folder.glob("brownout.db.version-0001.*")
    assert sqlite3.connect(kept).execute("SELECT count(*) FROM run").fetchone() == (2,)
    assert len(kept.read_bytes()) == len(original)


def test_a_step_that_fails_leaves_the_old_tables_as_they_were(tmp_path: Path) -> None:
    folder = lay_first_release(tmp_path / "data")
    with sqlite3.connect(folder / "brownout.db") as connection:
        connection.execute("CREATE TABLE outbox (in_the_way INTEGER)")
    connection.close()
    with pytest.raises(StoreError, match="outbox"):
        Store(folder)
    connection = sqlite3.connect(folder / "brownout.db")
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    assert tables == {"join_token", "agent", "owner_epoch", "run", "run_event", "outbox"}


def test_an_older_database_that_is_in_use_is_not_changed_beneath_its_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.5)
    folder = lay_first_release(tmp_path / "data")
    with locks.lock_file(folder / "in-use.lock") as descriptor:
        assert locks.try_lock(descriptor, exclusive=False)
        with pytest.raises(StoreError, match="another Brownout uses it"):
            Store(folder)


def test_processes_that_open_a_new_folder_at_once_make_it_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from brownout_controller.store.store import Store\n"
        "Store(Path(sys.argv[1])).begin_run('x', 'y', 'z', 1)\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "data")]
    makers = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    assert [(maker.wait(60), maker.communicate()[1]) for maker in makers] == [(0, "")] * 6
    store = Store(tmp_path / "data")
    assert len(store.list_runs()) == 6
    store.close()


def test_every_step_taken_one_by_one_leads_to_the_tables_that_a_new_database_has(tmp_path: Path) -> None:
    """Fails when somebody changed store/schema without a migration: .venv/bin/python tools/revision.py"""
    folder = lay_first_release(tmp_path / "data")
    database = Database.in_folder(folder)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == [], "next: .venv/bin/python tools/revision.py"
    database.close()


def test_versions_follow_one_another_without_a_gap() -> None:
    assert migrating.known() == tuple(f"{number:04}" for number in range(1, len(migrating.known()) + 1))


def test_a_copy_of_the_folder_opens_elsewhere(tmp_path: Path, database: Database) -> None:
    take(database)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    copy = Database.in_folder(tmp_path / "copy")
    assert taken(copy) == [1]
    copy.close()
