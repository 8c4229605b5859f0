"""Users and API tokens, as they are kept."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, literal, select, update
from sqlalchemy.exc import IntegrityError

from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role
from brownout_controller.access.token_form import Token
from brownout_controller.language.selectors import Selector
from brownout_controller.store.database import Database
from brownout_controller.store.schema import access

NS_PER_S = 10**9
USED_EVERY_NS = 60 * NS_PER_S
"""When a token was used last is kept to the minute: a read must not cost a write each time."""


class UserExists(Exception):
    """There is, or was, a user of this name. Names are never used again."""


class MakerRevoked(Exception):
    """The token by which another one was to be made is revoked."""


class Stale(Exception):
    """Somebody else has changed it since it was read."""


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may come in. `version` rises with every change."""

    name: str
    grants: tuple[Grant, ...]
    disabled: bool
    version: int
    created_ns: int


@dataclass(frozen=True, slots=True)
class TokenRow:
    """An API token as it is kept. `roles` and `environments` narrow what its owner has; None narrows nothing.

    `made_by` is the token (`session ...` for a browser's) by means of which `created_by` made it.
    """

    token_id: str
    digest: str
    user: str
    purpose: str
    roles: frozenset[Role] | None
    environments: frozenset[str] | None
    created_by: str
    made_by: str | None
    created_ns: int
    expires_ns: int
    used_ns: int | None = None
    revoked_ns: int | None = None

    def good(self, now_ns: int) -> bool:
        """Neither expired nor revoked."""
        return self.revoked_ns is None and now_ns < self.expires_ns


class AccessStore:
    """Users and tokens of one cluster."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---- users -------------------------------------------------------------------------------------------------------

    def add_user(self, name: str, grants: Iterable[Grant]) -> User:
        """A new user.

        Raises:
            UserExists: the name is taken.
        """
        with self._database.writing() as connection:
            return insert_user(connection, name, grants)

    def change_user(self, name: str, grants: Iterable[Grant], disabled: bool, version: int) -> User:
        """Put new grants in place of the old ones, if nobody else did since `version`.

        Raises:
            Stale: somebody did, or there is no such user.
        """
        table = access.users
        values = {"grants": _grants_json(grants), "disabled": disabled, "version": version + 1}
        change = update(table).where(table.c.name == name, table.c.version == version).values(**values)
        with self._database.writing() as connection:
            if connection.execute(change).rowcount != 1:
                raise Stale(f"user `{name}` was changed by somebody else since; read it again")
        user = self.user(name)
        assert user is not None, "rows of users are never deleted"
        return user

    def user(self, name: str) -> User | None:
        """One user."""
        with self._database.reading() as connection:
            row = connection.execute(select(access.users).where(access.users.c.name == name)).mappings().first()
        return None if row is None else _user(row)

    def users(self) -> list[User]:
        """Every user, by name, disabled ones as well."""
        with self._database.reading() as connection:
            return [_user(row) for row in connection.execute(select(access.users).order_by("name")).mappings()]

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def add_token(self, row: TokenRow) -> None:
        """Keep a token.

        Raises:
            MakerRevoked: the token by which it is made was revoked meanwhile.
        """
        table = access.tokens
        values = {name: getattr(row, name) for name in TokenRow.__slots__}
        values["roles"] = None if row.roles is None else json.dumps(sorted(row.roles))
        values["environments"] = None if row.environments is None else json.dumps(sorted(row.environments))
        maker = select(table.c.revoked_ns).where(table.c.token_id == row.made_by).with_for_update()
        with self._database.writing() as connection:
            # Locked, so that whoever revokes the maker comes before this, or after it and finds what it has made.
            if connection.execute(maker).scalar_one_or_none() is not None:
                raise MakerRevoked(f"token {row.made_by} was revoked")
            connection.execute(insert(table), values)

    def token(self, token_id: str) -> tuple[TokenRow, User] | None:
        """A token with its owner."""
        table, users = access.tokens, access.users
        with self._database.reading() as connection:
            row = connection.execute(select(table).where(table.c.token_id == token_id)).mappings().first()
            if row is None:
                return None
            owner = connection.execute(select(users).where(users.c.name == row["user"])).mappings().one()
            return _token(row), _user(owner)

    def tokens(self, user: str | None = None) -> list[TokenRow]:
        """Every token, or one user's, newest first."""
        table = access.tokens
        query = select(table).order_by(table.c.created_ns.desc())
        with self._database.reading() as connection:
            rows = connection.execute(query if user is None else query.where(table.c.user == user)).mappings()
            return [_token(row) for row in rows]

    def revoke_token(self, token_id: str, *, with_made: bool = True) -> list[TokenRow]:
        """Revoke for good, and `with_made` everything that was made by means of it, however far down.

        Returns what this has revoked, the token itself first; nothing that was revoked or had expired before. One that
        was revoked before still takes along what it has made.
        """
        table, now_ns = access.tokens, time.time_ns()
        line = select(literal(token_id).label("token_id")).cte("line", recursive=with_made)
        if with_made:
            line = line.union(select(table.c.token_id).where(table.c.made_by == line.c.token_id))
        of_it = table.c.token_id.in_(select(line.c.token_id)) & table.c.revoked_ns.is_(None)
        change = update(table).where(of_it).values(revoked_ns=now_ns).returning(table)
        revoked: list[TokenRow] = []
        with self._database.writing() as connection:
            # Until there is nothing more: another connection may have added one while this one waited for its maker.
            while rows := connection.execute(change).mappings().all():
                revoked += map(_token, rows)
        told = [row for row in revoked if row.token_id == token_id or row.expires_ns > now_ns]
        return sorted(told, key=lambda row: (row.token_id != token_id, row.created_ns))

    def note_used(self, row: TokenRow, now_ns: int) -> None:
        """Keep when a token was used last, once a minute."""
        if row.used_ns is not None and now_ns - row.used_ns < USED_EVERY_NS:
            return
        table = access.tokens
        with self._database.writing() as connection:
            connection.execute(update(table).where(table.c.token_id == row.token_id).values(used_ns=now_ns))


def insert_user(connection: Connection, name: str, grants: Iterable[Grant]) -> User:
    """A new user, in a transaction that may hold more.

    Raises:
        UserExists: the name is taken. The transaction is of no more use.
    """
    user = User(name, tuple(grants), False, 1, time.time_ns())
    row = {"name": name, "grants": _grants_json(user.grants), "disabled": False, "version": 1}
    try:
        connection.execute(insert(access.users), {**row, "created_ns": user.created_ns})
    except IntegrityError as error:
        raise UserExists(f"there is a user `{name}` already, and names are never used again") from error
    return user


def token_row(
    token: Token,
    user: str,
    created_by: str,
    ttl_s: int,
    purpose: str = "",
    roles: frozenset[Role] | None = None,
    environments: frozenset[str] | None = None,
    made_by: str | None = None,
) -> TokenRow:
    """What is kept of a fresh token."""
    now_ns = time.time_ns()
    expires_ns = now_ns + ttl_s * NS_PER_S
    return TokenRow(
        token.token_id, token.digest, user, purpose, roles, environments, created_by, made_by, now_ns, expires_ns
    )


def grant_document(grant: Grant) -> dict[str, Any]:
    """A grant as JSON values."""
    return {
        "role": grant.role.value,
        "environments": None if grant.environments is None else sorted(grant.environments),
        "hosts": None if grant.hosts is None else str(grant.hosts),
    }


def _grants_json(grants: Iterable[Grant]) -> str:
    return json.dumps([grant_document(grant) for grant in grants])


def _grant(document: dict[str, Any]) -> Grant:
    hosts = document["hosts"]
    return Grant(
        Role(document["role"]),
        _names(document["environments"]),
        None if hosts is None else Selector.parse(hosts),
    )


def _names(values: Sequence[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)


def _user(row: Any) -> User:
    grants = tuple(_grant(document) for document in json.loads(row["grants"]))
    return User(row["name"], grants, row["disabled"], row["version"], row["created_ns"])


def _token(row: Any) -> TokenRow:
    values = {name: row[name] for name in TokenRow.__slots__}
    roles = None if row["roles"] is None else json.loads(row["roles"])
    values["roles"] = None if roles is None else frozenset(map(Role, roles))
    values["environments"] = None if row["environments"] is None else _names(json.loads(row["environments"]))
    return TokenRow(**values)
