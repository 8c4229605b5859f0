"""Logins and sessions, as they are kept. Every method raises StoreError when the database does not answer."""

import dataclasses
import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role
from brownout_controller.store.access import NS_PER_S, AccessStore, Stale, User, UserExists, insert_user
from brownout_controller.store.database import Database
from brownout_controller.store.schema import logins

ATTEMPT_TTL_S = 600
SESSION_TTL_S = 12 * 3600
HANDOVER_TTL_S = 60
ATTEMPTS_MAX = 10_000
"""Logins that have begun and are kept. Anybody may begin one; a flood that would push out one which takes 15 s must
come from 1,300 addresses, at what the API lets each of them begin."""
_TRIES = 3


class LoginRefused(Exception):
    """Somebody who was proved by the provider, and has no place here; the text says why."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What must come back from the provider, or be shown to it."""

    nonce: str
    code_verifier: str


@dataclass(frozen=True, slots=True)
class Handover:
    """A login that goes on to a command line: who it is for, by which session, and until when that is good."""

    challenge: str
    user: str
    session: str
    expires_ns: int


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session that is good."""

    digest: str
    user: User
    begun_ns: int
    expires_ns: int


class LoginStore:
    """Logins of one cluster; any controller can go on with what another one began."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._access = AccessStore(database)

    def begin(self, state: str, attempt: Attempt) -> None:
        """Keep a login that has begun; those that nobody finished go, and the oldest where there are too many."""
        table, now_ns = logins.attempts, time.time_ns()
        row = {"state_digest": digest_of(state), "begun_ns": now_ns, "nonce": attempt.nonce}
        newest_too_many = select(table.c.begun_ns).order_by(table.c.begun_ns.desc()).limit(1).offset(ATTEMPTS_MAX - 1)
        with self._database.writing() as connection:
            too_old_ns = connection.execute(newest_too_many).scalar_one_or_none() or 0
            oldest_ns = max(too_old_ns, now_ns - ATTEMPT_TTL_S * NS_PER_S)
            connection.execute(delete(table).where(table.c.begun_ns <= oldest_ns))
            connection.execute(insert(table), {**row, "code_verifier": attempt.code_verifier})

    def take(self, state: str) -> Attempt | None:
        """The login of this state, once; None where there is none, or it took too long."""
        table = logins.attempts
        mine = table.c.state_digest == digest_of(state)
        with self._database.writing() as connection:
            row = connection.execute(select(table).where(mine).with_for_update()).first()
            if row is None:
                return None
            connection.execute(delete(table).where(mine))
        fresh = row.begun_ns >= time.time_ns() - ATTEMPT_TTL_S * NS_PER_S
        return Attempt(row.nonce, row.code_verifier) if fresh else None

    def user_of(self, issuer: str, subject: str, name: str, grants: Iterable[Grant]) -> User:
        """Whoever a provider calls `subject`, with `grants` from now on; made at the first login as `name`.

        The role admin is given by hand only, and stays. A name that somebody else has is never taken over.

        Raises:
            LoginRefused: the name is taken, or the user is disabled.
        """
        wanted = list(grants)
        known = self._known(issuer, subject)
        if known is None:
            try:
                return self._add(issuer, subject, name, wanted)
            except UserExists as error:
                known = self._known(issuer, subject)  # a first login beside this one may have been faster
                if known is None:
                    message = f"the name {name} belongs to somebody who does not come by this provider"
                    raise LoginRefused(message) from error
        return self._update(known, wanted)

    def _known(self, issuer: str, subject: str) -> str | None:
        table = logins.identities
        chosen = select(table.c.user).where(table.c.issuer == issuer, table.c.subject == subject)
        with self._database.reading() as connection:
            return connection.execute(chosen).scalar_one_or_none()

    def _add(self, issuer: str, subject: str, name: str, grants: list[Grant]) -> User:
        """User and identity at once: a name without its identity would let nobody in, for good.

        Raises:
            UserExists: the name is taken, or the subject has a user by now.
        """
        identity = {"issuer": issuer, "subject": subject, "user": name}
        with self._database.writing() as connection:
            user = insert_user(connection, name, grants)
            try:
                connection.execute(insert(logins.identities), identity)
            except IntegrityError as error:
                raise UserExists(f"{subject} of {issuer} has a user already") from error
        return user

    def _update(self, name: str, grants: list[Grant]) -> User:
        for _ in range(_TRIES):
            user = self._access.user(name)
            assert user is not None, "rows of users are never deleted"
            if user.disabled:
                raise LoginRefused(f"user {name} is disabled")
            wanted = [*(grant for grant in user.grants if grant.role is Role.ADMIN), *grants]
            if list(user.grants) == wanted:
                return user
            try:
                return self._access.change_user(name, wanted, user.disabled, user.version)
            except Stale:
                continue
        raise LoginRefused(f"user {name} is being changed by somebody else")

    def open(self, secret: str, user: str, instead_of: str = "") -> SessionRow:
        """A session for whoever shows `secret`; the one that the browser had before ends."""
        now_ns = time.time_ns()
        row = {"digest": digest_of(secret), "user": user, "begun_ns": now_ns}
        with self._database.writing() as connection:
            connection.execute(insert(logins.sessions), {**row, "expires_ns": now_ns + SESSION_TTL_S * NS_PER_S})
        if instead_of:
            self.end(instead_of)
        found = self.session(secret)
        assert found is not None, "it was just opened"
        return found

    def hand_over(self, code: str, handover: Handover) -> None:
        """Keep a code for a command line; those that nobody fetched go."""
        table, now_ns = logins.handovers, time.time_ns()
        row = {"code_digest": digest_of(code), **dataclasses.asdict(handover), "begun_ns": now_ns}
        with self._database.writing() as connection:
            connection.execute(delete(table).where(table.c.begun_ns < now_ns - HANDOVER_TTL_S * NS_PER_S))
            connection.execute(insert(table), row)

    def take_handover(self, code: str) -> Handover | None:
        """What a code stands for, once; None where there is none, or it took too long."""
        table = logins.handovers
        mine = delete(table).where(table.c.code_digest == digest_of(code)).returning(table)
        with self._database.writing() as connection:
            row = connection.execute(mine).first()
        if row is None or row.begun_ns < time.time_ns() - HANDOVER_TTL_S * NS_PER_S:
            return None
        return Handover(row.challenge, row.user, row.session, row.expires_ns)

    def session(self, secret: str) -> SessionRow | None:
        """The session of this secret, if it is good, and its user."""
        table = logins.sessions
        with self._database.reading() as connection:
            row = connection.execute(select(table).where(table.c.digest == digest_of(secret))).first()
        if row is None or row.ended_ns is not None or row.expires_ns <= time.time_ns():
            return None
        user = self._access.user(row.user)
        if user is None or user.disabled:
            return None
        return SessionRow(row.digest, user, row.begun_ns, row.expires_ns)

    def end(self, secret: str) -> None:
        """End a session for good."""
        table = logins.sessions
        mine = (table.c.digest == digest_of(secret)) & table.c.ended_ns.is_(None)
        with self._database.writing() as connection:
            connection.execute(update(table).where(mine).values(ended_ns=time.time_ns()))


def digest_of(secret: str) -> str:
    """SHA-256, hex: secrets of 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
