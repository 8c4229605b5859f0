"""Revoking a token in the database: what it made goes with it, also what is being made at that very moment."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from brownout_controller.access.token_form import new_token
from brownout_controller.store.access import AccessStore, MakerRevoked, token_row
from brownout_controller.store.database import Database

from tests.support.polling import wait_until

DAY_S = 24 * 3600


@pytest.fixture(params=["sqlite", "postgresql"])
def access(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AccessStore]:
    if request.param == "postgresql":
        database = Database.at(request.getfixturevalue("postgres_server").make_database())
    else:
        database = Database.in_folder(tmp_path)
    store = AccessStore(database)
    store.add_user("ada", [])
    yield store
    database.close()


def make(access: AccessStore, made_by: str | None = None, ttl_s: int = DAY_S) -> str:
    token = new_token()
    access.add_token(token_row(token, "ada", "ada", ttl_s, made_by=made_by))
    return token.token_id


def good(access: AccessStore) -> set[str]:
    return {row.token_id for row in access.tokens() if row.good(time.time_ns())}


def test_a_line_of_tokens_ends_with_its_first_and_no_other_does(access: AccessStore) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    makers: dict[str, str | None] = {}
    for _ in range(60):
        maker = chosen.choice([None, *makers])
        makers[make(access, maker)] = maker
    first = chosen.choice(list(makers))

    def of_its_line(one: str | None) -> bool:
        return one is not None and (one == first or of_its_line(makers[one]))

    line = {one for one in makers if of_its_line(one)}
    revoked = access.revoke_token(first)
    assert revoked[0].token_id == first
    assert {row.token_id for row in revoked} == line
    assert all(row.revoked_ns is not None for row in revoked)
    assert good(access) == set(makers) - line
    assert access.revoke_token(first) == []


def test_what_an_expired_or_revoked_token_made_is_found_through_it(access: AccessStore) -> None:
    first = make(access)
    expired, revoked = make(access, first, ttl_s=-1), make(access, first)
    access.revoke_token(revoked, with_made=False)
    with pytest.raises(MakerRevoked):
        make(access, revoked)
    below = make(access, expired)
    assert [row.token_id for row in access.revoke_token(first)] == [first, below]


def test_nothing_is_revoked_for_a_token_that_is_not_there(access: AccessStore) -> None:
    make(access)
    assert access.revoke_token("0" * 12) == []
    assert access.revoke_token("") == [], "what nobody's token made is not the line of a token"


def test_a_token_that_makes_others_while_it_is_revoked_leaves_none(access: AccessStore) -> None:
    """Whoever makes in a loop, from what was made last as well, is not faster than the one who revokes."""
    first = make(access)
    enough = threading.Event()

    def go_on_making() -> bool:
        last = first
        try:
            while not enough.is_set():
                last = make(access, random.choice([first, last]))
        except MakerRevoked:
            return True
        return False

    with ThreadPoolExecutor(3) as pool:
        making = [pool.submit(go_on_making) for _ in range(3)]
        try:
            wait_until(lambda: len(good(access)) > 10, "they make tokens", 30)
            access.revoke_token(first)
            assert [one.result(30) for one in making] == [True] * 3
        finally:
            enough.set()
    assert good(access) == set()
