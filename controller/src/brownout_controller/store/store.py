"""The store on SQLite, fully synced. In rollback-journal mode, which SQLite's WAL-reset bug (< 3.51.3) cannot touch."""

import hashlib
import json
import secrets
import time
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update

from brownout_controller.record import Event
from brownout_controller.store.database import Database
from brownout_controller.store.schema import identities, runs

TOKEN_PREFIX = "bo_"  # noqa: S105 - what every token begins with, so that scanners find a leaked one
TOKEN_TTL_S = 15 * 60


class RunUnknown(Exception):
    """There is no such run, or no record of it; the text says which."""


class TokenRefused(Exception):
    """The token is unknown, used or too old; which of them is not said to the one who shows it."""


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run as lists show it."""

    number: int
    name: str
    operator: str
    started_ns: int
    ended_ns: int | None
    verdict: str | None
    exit_code: int | None
    headline: str | None


class Store:
    """Everything that is kept, in `folder`/brownout.db."""

    def __init__(self, folder: Path) -> None:
        """Open or make the store.

        Raises:
            StoreError: the folder cannot be written.
        """
        self.database = Database.in_folder(folder)

    def close(self) -> None:
        """Close every connection."""
        self.database.close()

    # ---- identity ------------------------------------------------------------------------------------------------

    def create_token(self, ttl_s: float = TOKEN_TTL_S) -> str:
        """A new join token, good once. Only its digest is kept."""
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        row = {"digest": _digest(token), "expires_ns": time.time_ns() + int(ttl_s * 1e9)}
        with self.database.writing() as connection:
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
        with self.database.writing() as connection:
            taken = connection.execute(update(table).where(fits).values(used_ns=now, agent_id=agent_id))
            if taken.rowcount != 1:
                raise TokenRefused("the token is not good (unknown, used or expired); next: brownout token create")
            connection.execute(insert(identities.agents), {"agent_id": agent_id, "enrolled_ns": now})
        return agent_id

    def is_enrolled(self, agent_id: str) -> bool:
        """Whether this agent was enrolled here."""
        with self.database.reading() as connection:
            found = connection.execute(
                select(identities.agents.c.agent_id).where(identities.agents.c.agent_id == agent_id)
            )
            return found.first() is not None

    def saw(self, agent_id: str, host: str) -> None:
        """Note which host an agent said it was."""
        table = identities.agents
        seen = update(table).where(table.c.agent_id == agent_id).values(host=host, seen_ns=time.time_ns())
        with self.database.writing() as connection:
            connection.execute(seen)

    def take_epoch(self) -> int:
        """A number larger than every controller before this one had; hosts refuse orders with a smaller one."""
        with self.database.writing() as connection:
            row = connection.execute(insert(identities.epochs), {"taken_ns": time.time_ns()}).inserted_primary_key
        assert row is not None
        return int(row[0])

    # ---- runs ----------------------------------------------------------------------------------------------------

    def begin_run(self, name: str, operator: str, plan_digest: str, started_ns: int) -> int:
        """A new run's number."""
        row = {"name": name, "operator": operator, "plan_digest": plan_digest, "started_ns": started_ns}
        with self.database.writing() as connection:
            key = connection.execute(insert(runs.runs), row).inserted_primary_key
        assert key is not None
        return int(key[0])

    def append_events(self, number: int, first_position: int, events: Sequence[Event]) -> None:
        """Keep events of a run as they happen, so that a killed controller leaves them behind."""
        rows = [
            {
                "run_number": number,
                "position": position,
                "at_ns": item.at_ns,
                "kind": item.kind,
                "subject": item.subject,
                "host": item.host,
                "message": item.message,
            }
            for position, item in enumerate(events, first_position)
        ]
        if rows:
            with self.database.writing() as connection:
                connection.execute(insert(runs.events), rows)

    def finish_run(self, number: int, document: dict[str, Any], verdict: str, exit_code: int, headline: str) -> None:
        """Close a run with everything that will ever be judged or drawn of it."""
        packed = zlib.compress(json.dumps(document, separators=(",", ":")).encode())
        values = {
            "ended_ns": time.time_ns(),
            "verdict": verdict,
            "exit_code": exit_code,
            "headline": headline,
            "document": packed,
        }
        with self.database.writing() as connection:
            connection.execute(update(runs.runs).where(runs.runs.c.number == number).values(values))

    def list_runs(self, limit: int = 50) -> list[RunLine]:
        """The latest runs, newest first. One without a verdict is running, or its controller died."""
        table = runs.runs
        columns = [table.c[name] for name in RunLine.__slots__]
        with self.database.reading() as connection:
            rows = connection.execute(select(*columns).order_by(table.c.number.desc()).limit(limit))
            return [RunLine(*row) for row in rows]

    def load_document(self, number: int) -> dict[str, Any]:
        """A finished run's document.

        Raises:
            RunUnknown: no such run, or it never finished.
        """
        with self.database.reading() as connection:
            row = connection.execute(select(runs.runs.c.document).where(runs.runs.c.number == number)).first()
        if row is None:
            raise RunUnknown(f"there is no run {number}; next: brownout runs list")
        if row[0] is None:
            raise RunUnknown(f"run {number} has no record: it is running, or its controller died before the end")
        document: dict[str, Any] = json.loads(zlib.decompress(row[0]))
        return document


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
