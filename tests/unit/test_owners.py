"""Whom a host obeys: an epoch that rises with every take-over, on both databases."""

import threading
import time

import pytest
from brownout_controller.store import owners
from brownout_controller.store.database import Database
from brownout_controller.store.identities import Identities
from brownout_controller.store.owners import ControllerForgotten, Owners


def test_an_epoch_rises_with_every_take_over_and_stays_for_the_owner(database: Database) -> None:
    one = Owners(database)
    a, b = one.arrive(), one.arrive()
    assert [one.take("host", who) for who in (a, a, b, a, b, b)] == [1, 1, 2, 3, 4, 4]
    assert one.take("other", b) == 1
    owner = one.owner_of("host")
    assert owner is not None
    assert (owner.controller_id, owner.epoch) == (b, 4)
    assert one.owner_of("nobody") is None


def test_it_begins_above_every_epoch_that_counted_for_all_hosts(database: Database) -> None:
    identities = Identities(database)
    last = [identities.take_epoch() for _ in range(3)][-1]
    one = Owners(database)
    assert one.take("host", one.arrive()) == last + 1


def test_controllers_that_fight_for_a_host_get_an_epoch_each(database: Database) -> None:
    got: list[int] = []

    def fight() -> None:
        for _ in range(25):
            one = Owners(database)
            got.append(one.take("host", one.arrive()))

    threads = [threading.Thread(target=fight) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(1, 101))


def test_a_controller_that_is_silent_is_dead_and_is_told_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "DEAD_AFTER_NS", 200_000_000)
    one = Owners(database)
    silent, alive = one.arrive(), one.arrive()
    deadline = time.monotonic() + 10
    while silent in one.living():
        one.beat(alive)
        assert time.monotonic() < deadline
    assert one.bury() == (silent,)
    with pytest.raises(ControllerForgotten, match=silent):
        one.beat(silent)
    one.beat(alive)
    one.leave(alive)
    assert one.living() == frozenset()
