"""Whom a host obeys, and who lives: an epoch that rises with every take-over, on both databases."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from brownout_agent.epochs import EPOCH_MAX
from brownout_controller.store import owners
from brownout_controller.store.database import Database
from brownout_controller.store.owners import Owners
from brownout_controller.store.schema import identities
from sqlalchemy import insert


def test_an_epoch_rises_with_every_take_over_and_stays_for_the_owner(database: Database) -> None:
    one = Owners(database)
    assert [one.take("host", who) for who in ("a", "a", "b", "a", "b", "b")] == [1, 1, 2, 3, 4, 4]
    assert one.take("other", "b") == 1
    owner = one.owner_of("host")
    assert owner is not None
    assert (owner.controller_id, owner.epoch) == ("b", 4)
    assert one.owner_of("nobody") is None


def test_it_begins_above_every_epoch_that_counted_for_all_hosts(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(insert(identities.epochs), [{"taken_ns": at_ns} for at_ns in range(3)])
    assert Owners(database).take("host", "a") == 4
    assert Owners(database).take("other", "a", seen_epoch=2) == 4
    assert Owners(database).take("third", "a", seen_epoch=7) == 8


def test_a_host_that_obeyed_more_than_stands_here_gets_an_epoch_beyond_that(database: Database) -> None:
    """As after a backup was restored."""
    one = Owners(database)
    assert [one.take("host", "a", seen) for seen in (0, 1, 57, 58, 57)] == [1, 1, 58, 58, 58]
    assert [one.take("host", "b", seen) for seen in (58, 59, 70)] == [59, 59, 71]
    assert one.take("new", "b", EPOCH_MAX) == EPOCH_MAX + 1


def test_controllers_that_fight_for_a_host_get_an_epoch_each(database: Database) -> None:
    got: list[int] = []

    def fight(name: str) -> None:
        got.extend(Owners(database).take("host", f"{name}-{turn}") for turn in range(25))

    threads = [threading.Thread(target=fight, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(1, 101))


def test_a_life_ends_with_its_block_and_its_hosts_are_free(database: Database) -> None:
    one = Owners(database)
    with one.life() as first, one.life() as second:
        assert one.living() == {first, second}
        one.take("host", first)
        assert one.beat(first)
    assert one.living() == frozenset()
    owner = one.owner_of("host")
    assert owner is not None
    assert owner.expires_ns == 0


def test_on_postgresql_a_controller_that_is_silent_is_dead_and_is_told_so(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "DEAD_AFTER_NS", 500_000_000)
    database = Database.at(request.getfixturevalue("postgres_server").make_database())
    one = Owners(database)
    with one.life() as silent, one.life() as alive:
        deadline = time.monotonic() + 10
        while silent in one.living():
            one.beat(alive)
            assert time.monotonic() < deadline
        assert one.living() == {alive}
        assert not one.beat(silent)
        assert one.living() == {silent, alive}
    database.close()


def test_beside_sqlite_a_kill_is_known_at_once_and_a_long_sleep_is_no_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "DEAD_AFTER_NS", 0)
    database = Database.in_folder(tmp_path / "data")
    one = Owners(database)
    script = (
        "import sys; from pathlib import Path; from brownout_controller.store.database import Database\n"
        "from brownout_controller.store.owners import Owners\n"
        "with Owners(Database.in_folder(Path(sys.argv[1]))).life() as me: print(me, flush=True); sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "data")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        assert one.living() == {name}
        other.kill()
        other.wait()
        assert one.living() == frozenset()
    assert not list((tmp_path / "data").glob("controller-*.lock"))
    database.close()
