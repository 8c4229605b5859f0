"""Logins as they are kept, on both kinds of database."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import pytest
from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role
from brownout_controller.store import logins
from brownout_controller.store.access import AccessStore, User
from brownout_controller.store.database import Database
from brownout_controller.store.logins import Attempt, Handover, LoginRefused, LoginStore
from brownout_controller.store.schema.logins import attempts, handovers
from sqlalchemy import func, select

ISSUER = "https://id.example"
ROUNDS, AT_ONCE = 20, 4


def at_once(store: LoginStore, subjects: list[str], names: list[str]) -> list[User | LoginRefused]:
    """First logins that begin together; what became of each."""
    together = Barrier(len(names))

    def log_in(subject: str, name: str) -> User | LoginRefused:
        together.wait(30)
        try:
            return store.user_of(ISSUER, subject, name, [Grant(Role.OPERATOR)])
        except LoginRefused as refusal:
            return refusal

    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(log_in, subjects, names))


def test_first_logins_of_one_person_at_once_are_one_user(database: Database) -> None:
    store = LoginStore(database)
    for _ in range(ROUNDS):
        subject, name = secrets.token_hex(8), f"mary-{secrets.token_hex(4)}"
        found = at_once(store, [subject] * AT_ONCE, [name] * AT_ONCE)
        assert [one.name if isinstance(one, User) else one for one in found] == [name] * AT_ONCE


def test_first_logins_of_one_person_under_several_names_are_one_user(database: Database) -> None:
    store = LoginStore(database)
    subject = secrets.token_hex(8)
    found = at_once(store, [subject] * AT_ONCE, [f"mary-{n}" for n in range(AT_ONCE)])
    names = {one.name if isinstance(one, User) else "" for one in found}
    assert len(names) == 1
    assert {user.name for user in AccessStore(database).users()} == names - {""}, "no name was used up by the others"


def test_of_several_persons_who_want_a_name_at_once_one_has_it_and_the_others_are_told(database: Database) -> None:
    store = LoginStore(database)
    subjects = [secrets.token_hex(8) for _ in range(AT_ONCE)]
    found = at_once(store, subjects, ["mary"] * AT_ONCE)
    assert sum(isinstance(one, User) for one in found) == 1
    assert all("belongs to somebody" in str(one) for one in found if isinstance(one, LoginRefused))
    (owner,) = [subject for subject, one in zip(subjects, found, strict=True) if isinstance(one, User)]
    assert store.user_of(ISSUER, owner, "mary", []).name == "mary"
    with pytest.raises(LoginRefused):
        store.user_of(ISSUER, "somebody else", "mary", [])


def kept(database: Database) -> int:
    with database.reading() as connection:
        return connection.execute(select(func.count()).select_from(attempts)).scalar_one()


def test_no_more_logins_are_kept_than_so_many_and_the_oldest_go_first(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "ATTEMPTS_MAX", 5)
    store, begun = LoginStore(database), {f"state {n}": Attempt(f"nonce {n}", "v") for n in range(8)}
    for state, attempt in begun.items():
        store.begin(state, attempt)
    assert kept(database) == 5
    assert [store.take(state) for state in begun] == [None] * 3 + list(begun.values())[3:]
    assert [store.take(state) for state in begun] == [None] * 8, "each is good once"


def test_a_login_that_nobody_finished_in_time_is_over_and_goes_with_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = SimpleNamespace(ns=10**18)
    monkeypatch.setattr(logins, "time", SimpleNamespace(time_ns=lambda: now.ns))
    store = LoginStore(database)
    for state in ("in time", "too late", "forgotten"):
        store.begin(state, Attempt("n", "v"))
    now.ns += logins.ATTEMPT_TTL_S * 10**9
    assert store.take("in time") == Attempt("n", "v")
    now.ns += 1
    assert store.take("too late") is None
    store.begin("next", Attempt("n", "v"))
    assert kept(database) == 1


def test_a_code_for_a_command_line_is_good_once_and_for_a_minute(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = SimpleNamespace(ns=10**18)
    monkeypatch.setattr(logins, "time", SimpleNamespace(time_ns=lambda: now.ns))
    store, user = LoginStore(database), AccessStore(database).add_user("mary", [])
    handover = Handover("challenge", user.name, "session 0123456789ab", now.ns + 10**12)
    for code in ("in time", "too late", "forgotten"):
        store.hand_over(code, handover)
    assert store.take_handover("never given") is None
    now.ns += logins.HANDOVER_TTL_S * 10**9
    assert store.take_handover("in time") == handover
    assert store.take_handover("in time") is None
    now.ns += 1
    assert store.take_handover("too late") is None
    store.hand_over("next", handover)
    with database.reading() as connection:
        assert connection.execute(select(func.count()).select_from(handovers)).scalar_one() == 1
