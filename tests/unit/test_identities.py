"""Tokens, renewals and turning out, as the database keeps them: forks are noticed, and a lost answer is no fork."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from brownout_controller.store.database import Database
from brownout_controller.store.identities import (
    Certified,
    Forked,
    Identities,
    IdentityRefused,
    TokenRefused,
)

FAR_NS = 2**62


class Press:
    """Makes certificates with serials 1, 2, 3 ..."""

    def __init__(self) -> None:
        self._serials = itertools.count(1)

    def __call__(self, agent_id: str) -> Certified:
        serial = next(self._serials)
        return Certified(f"{agent_id} {serial}".encode(), format(serial, "x"), FAR_NS)


@pytest.fixture
def identities(tmp_path: Path) -> Iterator[Identities]:
    database = Database.in_folder(tmp_path / "db")
    yield Identities(database)
    database.close()


@pytest.fixture
def press() -> Press:
    return Press()


def enrolled(identities: Identities, press: Press) -> str:
    agent_id, given = identities.redeem(identities.create_token(), "key-1", press)
    assert given.serial == "1"
    return agent_id


def test_a_renewal_asked_for_again_with_the_same_key_gets_the_same_certificate(
    identities: Identities, press: Press
) -> None:
    agent_id = enrolled(identities, press)
    first = identities.renew(agent_id, "1", "key-2", press)
    assert identities.renew(agent_id, "1", "key-2", press) == first
    identities.admit(agent_id, "1")  # the answer was lost: the old certificate is still all that it has
    assert identities.renew(agent_id, "1", "key-2", press) == first
    identities.admit(agent_id, first.serial)


def test_a_second_renewal_of_one_certificate_for_another_key_locks_the_agent(
    identities: Identities, press: Press
) -> None:
    agent_id = enrolled(identities, press)
    renewed = identities.renew(agent_id, "1", "key-2", press)
    with pytest.raises(Forked, match="locked"):
        identities.renew(agent_id, "1", "key-3", press)
    with pytest.raises(IdentityRefused, match="locked"):
        identities.admit(agent_id, renewed.serial)
    assert agent_id in identities.withdrawn_since(0)


def test_a_certificate_that_comes_back_after_its_successor_was_in_use_locks_the_agent(
    identities: Identities, press: Press
) -> None:
    agent_id = enrolled(identities, press)
    renewed = identities.renew(agent_id, "1", "key-2", press)
    identities.admit(agent_id, renewed.serial)
    with pytest.raises(Forked):
        identities.admit(agent_id, "1")
    with pytest.raises(IdentityRefused, match="locked"):
        identities.renew(agent_id, renewed.serial, "key-3", press)


def test_of_two_renewals_at_once_for_two_keys_one_at_most_gets_a_certificate(
    identities: Identities, press: Press
) -> None:
    agent_id = enrolled(identities, press)
    with ThreadPoolExecutor(8) as pool:
        tries = [pool.submit(identities.renew, agent_id, "1", f"key-{n}", press) for n in range(2, 10)]
        outcomes = [one.exception() for one in tries]
    assert sum(outcome is None for outcome in outcomes) == 1
    assert all(isinstance(outcome, IdentityRefused) for outcome in outcomes if outcome is not None)
    with pytest.raises(IdentityRefused, match="locked"):
        identities.admit(agent_id, "1")


def test_a_revoked_host_neither_comes_in_nor_renews_nor_becomes_merely_locked(
    identities: Identities, press: Press
) -> None:
    agent_id = enrolled(identities, press)
    identities.saw(agent_id, "app-1", "", 1)
    assert identities.revoke("app-1", "sold") == [agent_id]
    for attempt in (
        lambda: identities.admit(agent_id, "1"),
        lambda: identities.renew(agent_id, "1", "key-2", press),
    ):
        with pytest.raises(IdentityRefused, match="revoked: sold"):
            attempt()
    identities.lock(agent_id, "something else")
    assert "revoked: sold" in identities.withdrawn_since(0)[agent_id]
    assert identities.revoke("app-1", "again") == []


def test_a_locked_host_can_still_be_revoked(identities: Identities, press: Press) -> None:
    agent_id = enrolled(identities, press)
    identities.lock(agent_id, "twins")
    assert identities.revoke(agent_id, "sold") == [agent_id]


def test_a_host_that_joins_again_is_another_agent_and_inherits_nothing(identities: Identities, press: Press) -> None:
    first = enrolled(identities, press)
    identities.saw(first, "app-1", "", 1)
    identities.revoke("app-1", "sold")
    second, given = identities.redeem(identities.create_token(), "key-9", press)
    assert second != first
    identities.admit(second, given.serial)


def test_a_certificate_that_could_not_be_made_does_not_cost_the_token(identities: Identities, press: Press) -> None:
    token = identities.create_token()

    def fails(_: str) -> Certified:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        identities.redeem(token, "key-1", fails)
    identities.redeem(token, "key-1", press)
    with pytest.raises(TokenRefused):
        identities.redeem(token, "key-1", press)


def test_an_id_that_was_never_enrolled_is_a_stranger(identities: Identities, press: Press) -> None:
    with pytest.raises(IdentityRefused, match="join again"):
        identities.admit("11111111-1111-1111-1111-111111111111", "1")
