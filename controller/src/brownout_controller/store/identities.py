"""Who may connect: join tokens, the agents that came of them, and the owner epoch."""

import hashlib
import secrets
import time
import uuid

from sqlalchemy import insert, select, update

from brownout_controller.store.database import Database
from brownout_controller.store.schema import identities

TOKEN_PREFIX = "bo_"  # noqa: S105 - what every token begins with, so that scanners find a leaked one
TOKEN_TTL_S = 15 * 60


class TokenRefused(Exception):
    """The token is unknown, used or too old; which of them is not said to the one who shows it."""


class Identities:
    """Tokens and agents of one cluster, on a database that other controllers may share."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create_token(self, ttl_s: float = TOKEN_TTL_S) -> str:
        """A new join token, good once. Only its digest is kept."""
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        row = {"digest": _digest(token), "expires_ns": time.time_ns() + int(ttl_s * 1e9)}
        with self._database.writing() as connection:
            connection.execute(insert(identities.tokens), row)
        return token

    def redeem(self, token: str) -> str:
        """Swap a token for a new agent's id; of two that show the same token one gets it.

        Raises:
            TokenRefused: unknown, used or expired.
        """
        now = time.time_ns()
        agent_id = str(uuid.uuid4())
        table = identities.tokens
        fits = (table.c.digest == _digest(token)) & table.c.used_ns.is_(None) & (table.c.expires_ns > now)
        with self._database.writing() as connection:
            taken = connection.execute(update(table).where(fits).values(used_ns=now, agent_id=agent_id))
            if taken.rowcount != 1:
                raise TokenRefused("the token is not good (unknown, used or expired); next: brownout token create")
            connection.execute(insert(identities.agents), {"agent_id": agent_id, "enrolled_ns": now})
        return agent_id

    def is_enrolled(self, agent_id: str) -> bool:
        """Whether this agent was enrolled here."""
        with self._database.reading() as connection:
            found = connection.execute(
                select(identities.agents.c.agent_id).where(identities.agents.c.agent_id == agent_id)
            )
            return found.first() is not None

    def saw(self, agent_id: str, host: str) -> None:
        """Note which host an agent said it was."""
        table = identities.agents
        seen = update(table).where(table.c.agent_id == agent_id).values(host=host, seen_ns=time.time_ns())
        with self._database.writing() as connection:
            connection.execute(seen)

    def take_epoch(self) -> int:
        """A number larger than every controller before this one had; hosts refuse orders with a smaller one."""
        with self._database.writing() as connection:
            row = connection.execute(insert(identities.epochs), {"taken_ns": time.time_ns()}).inserted_primary_key
        assert row is not None
        return int(row[0])


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
