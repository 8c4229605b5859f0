"""Who may connect: join tokens, the agents that came of them, and who was turned out again."""

import hashlib
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, insert, or_, select, update
from sqlalchemy.engine import Connection, Row

from brownout_controller.store.database import Database
from brownout_controller.store.schema import identities

TOKEN_PREFIX = "bo_"  # noqa: S105 - what every token begins with, so that scanners find a leaked one
TOKEN_TTL_S = 15 * 60
_SKEW_NS = 5 * 60 * 10**9
"""Two controllers' clocks may differ by so much; a token of a later time than that is not good yet."""
_FORKED = "its certificate was used by two: an older one came back after a newer one was in use"
_AGENTS, _TOKENS = identities.agents, identities.tokens


class IdentityRefused(Exception):
    """This agent, or whoever shows its certificate, may not come in; the text says why and what to do."""


class Forked(IdentityRefused):
    """Two use one identity. It was locked with this refusal."""


class TokenRefused(IdentityRefused):
    """The token is unknown, used, expired or not good yet; which of them is not said to the one who shows it."""


class Withdrawn(StrEnum):
    """How an agent was turned out."""

    REVOKED = "revoked"
    LOCKED = "locked"


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate that is given to an agent, as it is kept."""

    certificate_pem: bytes
    serial: str
    expires_ns: int


@dataclass(frozen=True, slots=True)
class AgentLine:
    """One enrolled agent as lists show it; the later fields are None while it was never here."""

    agent_id: str
    host: str | None
    enrolled_ns: int
    seen_ns: int | None
    expires_ns: int | None
    generation: int | None
    trusts: str | None
    withdrawn_as: str | None
    withdrawn_reason: str | None


Issue = Callable[[str], Certified]
"""Makes the certificate for an agent's id."""


class Identities:
    """Tokens and agents of one cluster, on a database that other controllers may share.

    Every method raises StoreError when the database does not answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def database(self) -> Database:
        """Where they are kept; whom each of these hosts obeys is kept there as well."""
        return self._database

    def create_token(self, ttl_s: float = TOKEN_TTL_S) -> str:
        """A new join token, good once. Only its digest is kept."""
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        now_ns = time.time_ns()
        row = {"digest": _digest(token), "created_ns": now_ns, "expires_ns": now_ns + int(ttl_s * 1e9)}
        with self._database.writing() as connection:
            connection.execute(insert(_TOKENS), row)
        return token

    def redeem(self, token: str, key: str, issue: Issue) -> tuple[str, Certified]:
        """Swap a token for a new agent's id and certificate, in one transaction; of two with one token one gets it.

        Ids are random and never used again, so nothing that an earlier agent was allowed can be inherited.

        Raises:
            TokenRefused: it is not good.
        """
        now_ns = time.time_ns()
        agent_id = str(uuid.uuid4())
        created = _TOKENS.c.created_ns
        begun = created.is_(None) | (created <= now_ns + _SKEW_NS)
        unused = (_TOKENS.c.digest == _digest(token)) & _TOKENS.c.used_ns.is_(None)
        fits = unused & (_TOKENS.c.expires_ns > now_ns) & begun
        with self._database.writing() as connection:
            taken = connection.execute(update(_TOKENS).where(fits).values(used_ns=now_ns, agent_id=agent_id))
            if taken.rowcount != 1:
                raise TokenRefused("the token is not good (unknown, used or expired); next: brownout token create")
            given = issue(agent_id)
            connection.execute(
                insert(_AGENTS), {"agent_id": agent_id, "enrolled_ns": now_ns, **_given(given, None, key)}
            )
        return agent_id, given

    def admit(self, agent_id: str, serial: str) -> None:
        """Let the bearer of a certificate in; one that was just renewed is thereby in use, and the older one is over.

        Raises:
            Forked: the older one came back, so two use it; the agent is locked.
            IdentityRefused: unknown, revoked or locked.
        """
        with self._database.writing() as connection:
            row = self._standing(connection, agent_id)
            if serial == row.serial:
                if row.previous_serial is not None:
                    this = _AGENTS.c.agent_id == agent_id
                    connection.execute(update(_AGENTS).where(this).values(previous_serial=None))
                return
            if serial == row.previous_serial:
                return  # the answer to its last renewal was lost
        raise self._fork(agent_id)

    def renew(self, agent_id: str, serial: str, key: str, issue: Issue) -> Certified:
        """The next certificate for the bearer of the last one, for a fresh key (its digest).

        The same renewal, asked for again since its answer was lost, gets the same answer.

        Raises:
            Forked: that certificate was renewed already for another key, so two use it; the agent is locked.
            IdentityRefused: unknown, revoked or locked.
        """
        with self._database.writing() as connection:
            row = self._standing(connection, agent_id)
            if key == row.request_key and serial in {row.serial, row.previous_serial}:
                return Certified(row.certificate_pem, row.serial, row.expires_ns)
            if serial == row.serial:
                given = issue(agent_id)
                values = _given(given, serial, key)
                connection.execute(update(_AGENTS).where(_AGENTS.c.agent_id == agent_id).values(values))
                return given
        raise self._fork(agent_id)

    def lock(self, agent_id: str, reason: str) -> None:
        """Turn an agent out because of what it did."""
        self._withdraw([agent_id], Withdrawn.LOCKED, reason)

    def revoke(self, host_or_id: str, reason: str) -> list[str]:
        """Turn out every agent of a host, or the one with this id. Returns their ids, none if nobody is meant."""
        meant = (_AGENTS.c.agent_id == host_or_id) | (_AGENTS.c.host == host_or_id)
        with self._database.reading() as connection:
            found = list(connection.execute(select(_AGENTS.c.agent_id).where(meant)).scalars())
        return self._withdraw(found, Withdrawn.REVOKED, reason)

    def withdrawn_since(self, since_ns: int) -> dict[str, str]:
        """Who was turned out since then, whoever did it: agent's id -> what it is to be told."""
        columns = (_AGENTS.c.agent_id, _AGENTS.c.withdrawn_as, _AGENTS.c.withdrawn_reason)
        with self._database.reading() as connection:
            rows = connection.execute(select(*columns).where(_AGENTS.c.withdrawn_ns > since_ns))
            return {row.agent_id: _refusal(row.withdrawn_as, row.withdrawn_reason) for row in rows}

    def saw(self, agent_id: str, host: str, trusts: str, generation: int) -> None:
        """Note which host an agent said it was, what it trusts, and who had signed its certificate."""
        values = {"host": host, "trusts": trusts, "generation": generation, "seen_ns": time.time_ns()}
        with self._database.writing() as connection:
            connection.execute(update(_AGENTS).where(_AGENTS.c.agent_id == agent_id).values(values))

    def host_of(self, agent_id: str) -> str | None:
        """Which host an agent said it was; None while it was never here."""
        with self._database.reading() as connection:
            return connection.execute(select(_AGENTS.c.host).where(_AGENTS.c.agent_id == agent_id)).scalar()

    def agents(self) -> list[AgentLine]:
        """Every agent that was ever enrolled, the latest first."""
        columns = [_AGENTS.c[name] for name in AgentLine.__slots__]
        with self._database.reading() as connection:
            rows = connection.execute(select(*columns).order_by(_AGENTS.c.enrolled_ns.desc()))
            return [AgentLine(*row) for row in rows]

    def can_connect(self, agent_id: str) -> bool:
        """Whether an agent was enrolled here and is not withdrawn."""
        table = identities.agents
        wanted = select(table.c.agent_id).where(table.c.agent_id == agent_id, table.c.withdrawn_ns.is_(None))
        with self._database.reading() as connection:
            return connection.execute(wanted).first() is not None

    @staticmethod
    def _standing(connection: Connection, agent_id: str) -> Row[Any]:
        # Locked until the transaction ends: PostgreSQL lets two of them at one row, SQLite never does.
        chosen = select(_AGENTS).where(_AGENTS.c.agent_id == agent_id).with_for_update()
        row = connection.execute(chosen).first()
        if row is None:
            raise IdentityRefused("no certificate of an agent that was enrolled here; join again")
        if row.withdrawn_ns is not None:
            raise IdentityRefused(_refusal(row.withdrawn_as, row.withdrawn_reason))
        return row

    def _fork(self, agent_id: str) -> Forked:
        self.lock(agent_id, _FORKED)
        return Forked(_refusal(Withdrawn.LOCKED, _FORKED))

    def _withdraw(self, agent_ids: list[str], how: Withdrawn, reason: str) -> list[str]:
        # What is revoked stays so; what is locked may still be revoked.
        may: ColumnElement[bool] = _AGENTS.c.withdrawn_as.is_(None)
        if how is Withdrawn.REVOKED:
            may = or_(may, _AGENTS.c.withdrawn_as == Withdrawn.LOCKED)
        values = {"withdrawn_ns": time.time_ns(), "withdrawn_as": how, "withdrawn_reason": reason}
        change = update(_AGENTS).where(_AGENTS.c.agent_id.in_(agent_ids), may).values(values)
        with self._database.writing() as connection:
            return list(connection.execute(change.returning(_AGENTS.c.agent_id)).scalars())


def _given(given: Certified, previous: str | None, key: str) -> dict[str, Any]:
    return {
        "serial": given.serial,
        "previous_serial": previous,
        "request_key": key,
        "certificate_pem": given.certificate_pem,
        "expires_ns": given.expires_ns,
    }


def _refusal(how: str, reason: str) -> str:
    return f"this agent is {how}: {reason}; next: brownout token create, and let the host join again"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
