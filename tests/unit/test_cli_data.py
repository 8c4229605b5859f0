"""data backup, restore, migrate, check, as they are typed."""

import json
import shlex
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from brownout_controller.store.database import Database, StoreError
from brownout_controller.store.store import Store

from tests.support.first_release import lay_first_release
from tests.support.postgres import Postgres

BROWNOUT = Path(sys.executable).with_name("brownout")


def brownout(*argv: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BROWNOUT, *map(str, argv)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin", **environment},
    )


def done(*argv: object) -> dict[str, Any]:
    ended = brownout(*argv, "-o", "json")
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path / "data")
    for name in ("first", "second"):
        store.begin_run(name, "mary", "d" * 64, 1)
    store.close()
    return tmp_path / "data"


def names(folder: Path) -> list[str]:
    store = Store(folder)
    found = [line.name for line in store.list_runs()]
    store.close()
    return found


def test_a_backup_made_while_a_controller_writes_is_whole_and_of_one_moment(folder: Path, tmp_path: Path) -> None:
    store = Store(folder)
    ended = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not ended.is_set():
            number = store.begin_run("busy", "mary", "d" * 64, 1)
            store.append_events(number, 0, [])
            written.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = [done("data", "backup", tmp_path / f"copy-{n}.db", "--data-dir", folder)["runs"] for n in range(5)]
    finally:
        ended.set()
        writer.join()
        store.close()
    assert found == sorted(found)
    assert 2 < found[-1] <= len(written) + 2
    for n, runs in enumerate(found):
        with closing(sqlite3.connect(tmp_path / f"copy-{n}.db")) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert copy.execute("SELECT max(number) FROM run").fetchone() == (runs,), "no row is missing in between"


def test_a_backup_comes_back_and_what_was_there_is_kept(folder: Path, tmp_path: Path) -> None:
    done("data", "backup", tmp_path / "copy.db", "--data-dir", folder)
    store = Store(folder)
    store.begin_run("third", "mary", "d" * 64, 1)
    store.close()
    replaced = Path(done("data", "restore", tmp_path / "copy.db", "--data-dir", folder)["replaced"])
    assert names(folder) == ["second", "first"]
    with closing(sqlite3.connect(replaced)) as old:
        assert old.execute("SELECT count(*) FROM run").fetchone() == (3,)
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600


def test_a_backup_replaces_a_database_that_is_damaged(folder: Path, tmp_path: Path) -> None:
    done("data", "backup", tmp_path / "copy.db", "--data-dir", folder)
    (folder / "brownout.db").write_bytes(b"rubbish" * 1_000)
    told = brownout("data", "check", "--data-dir", folder)
    assert (told.returncode, "damaged" in told.stderr, "brownout data restore" in told.stderr) == (4, True, True)
    done("data", "restore", tmp_path / "copy.db", "--data-dir", folder)
    assert names(folder) == ["second", "first"]
    assert done("data", "check", "--data-dir", folder)["runs"] == 2


def test_nothing_is_restored_beneath_a_controller_or_a_command(folder: Path, tmp_path: Path) -> None:
    done("data", "backup", tmp_path / "copy.db", "--data-dir", folder)
    before = (folder / "brownout.db").read_bytes()
    database = Database.in_folder(folder)
    refused = brownout("data", "restore", tmp_path / "copy.db", "--data-dir", folder)
    assert (refused.returncode, "a brownout command works on the database" in refused.stderr) == (4, True)
    with database.serving():
        refused = brownout("data", "restore", tmp_path / "copy.db", "--data-dir", folder)
    assert (refused.returncode, "another controller (pid " in refused.stderr) == (4, True)
    assert (folder / "brownout.db").read_bytes() == before
    database.close()


@pytest.mark.parametrize(
    ("content", "why"), [(b"rubbish" * 1_000, "damaged"), (b"", "no database of Brownout"), (None, "there is no file")]
)
def test_what_is_no_backup_is_refused_and_nothing_changes(
    folder: Path, tmp_path: Path, content: bytes | None, why: str
) -> None:
    if content is not None:
        (tmp_path / "copy.db").write_bytes(content)
    refused = brownout("data", "restore", tmp_path / "copy.db", "--data-dir", folder)
    assert (refused.returncode, why in refused.stderr) == (4, True), refused.stderr
    assert names(folder) == ["second", "first"]


def test_a_backup_of_a_newer_version_is_refused_with_both_versions(folder: Path, tmp_path: Path) -> None:
    done("data", "backup", tmp_path / "copy.db", "--data-dir", folder)
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy, copy:
        copy.execute("UPDATE alembic_version SET version_num = '9001'")
    refused = brownout("data", "restore", tmp_path / "copy.db", "--data-dir", folder)
    assert (refused.returncode, "version 9001" in refused.stderr) == (4, True)


def test_a_backup_of_an_older_version_is_brought_up_to_date(folder: Path, tmp_path: Path) -> None:
    old = lay_first_release(tmp_path / "old") / "brownout.db"
    assert done("data", "restore", old, "--data-dir", folder)["version"] == "0001"
    assert names(folder) == ["busy-cpu", "lose-an-app-server"]


def test_a_backup_overwrites_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.db").write_text("precious")
    refused = brownout("data", "backup", tmp_path / "copy.db", "--data-dir", folder)
    assert (refused.returncode, "is there already" in refused.stderr) == (4, True)
    assert (tmp_path / "copy.db").read_text() == "precious"


def test_migrate_brings_the_first_release_up_to_date(tmp_path: Path) -> None:
    old = lay_first_release(tmp_path / "old")
    version = done("data", "migrate", "--data-dir", old)["version"]
    size_bytes = (old / "brownout.db").stat().st_size
    assert done("data", "check", "--data-dir", old) == {"version": version, "runs": 2, "size_bytes": size_bytes}


# ---- PostgreSQL ------------------------------------------------------------------------------------------------------


def test_on_postgresql_its_own_tools_are_named_and_no_password_is_shown(tmp_path: Path) -> None:
    address = "postgresql://mary:secret@db.example:5433/chaos?sslpassword=secret"
    told = brownout("data", "backup", tmp_path / "x", BROWNOUT_DATABASE_URL=address)
    assert told.returncode == 4
    assert (
        f"pg_dump --format=custom --file={tmp_path}/x --dbname=postgresql://mary@db.example:5433/chaos" in told.stderr
    )
    assert "secret" not in told.stdout + told.stderr


def test_a_dump_by_the_named_command_comes_back_by_the_named_command(postgres_server: Postgres, tmp_path: Path) -> None:
    address = postgres_server.make_database()

    def by_the_named_command(action: str) -> None:
        told = brownout("--database", address, "data", action, tmp_path / "dump")
        subprocess.run(shlex.split(told.stderr.partition("next: ")[2]), check=True)

    def begin(name: str) -> list[str]:
        store = Store(tmp_path, address)
        store.begin_run(name, "mary", "d" * 64, 1)
        found = [line.name for line in store.list_runs()]
        store.close()
        return found

    begin("first")
    by_the_named_command("backup")
    assert begin("second") == ["second", "first"]
    by_the_named_command("restore")
    assert begin("third") == ["third", "first"]


def test_runs_are_listed_from_the_database_that_the_option_names(postgres_server: Postgres, tmp_path: Path) -> None:
    address = postgres_server.make_database()
    store = Store(tmp_path, address)
    store.begin_run("over-there", "mary", "d" * 64, 1)
    store.close()
    for ended in (
        brownout("--database", address, "runs", "list", "-o", "json"),
        brownout("runs", "list", "-o", "json", BROWNOUT_DATABASE_URL=address),
    ):
        assert [run["name"] for run in json.loads(ended.stdout)] == ["over-there"], ended.stderr


def test_a_server_that_may_forget_what_it_acknowledged_is_refused_or_told_not_to(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    address = postgres_server.make_database()
    lax = f"{address}&options=-csynchronous_commit%3Doff"
    with pytest.raises(StoreError, match="cannot keep runs"):
        Store(tmp_path, "postgresql://nobody@127.0.0.1:1/x")
    database = Database.at(lax)
    with database.writing() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
    database.close()
