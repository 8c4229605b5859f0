"""The store on SQLite, fully synced. In rollback-journal mode, which SQLite's WAL-reset bug (< 3.51.3) cannot touch."""

import hashlib
import json
import secrets
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event, insert, select, update
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DatabaseError

from brownout_controller.record import Event
from brownout_controller.store import schema

TOKEN_PREFIX = "bo_"  # noqa: S105 - what every token begins with, so that scanners find a leaked one
TOKEN_TTL_S = 15 * 60
_BUSY_TIMEOUT_S = 10


class StoreError(Exception):
    """The store cannot be used; the text says why and what to do."""


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
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._engine = _engine(folder / "brownout.db")
            schema.metadata.create_all(self._engine)
        except (OSError, DatabaseError) as error:
            raise self._trouble(error) from error

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """One transaction.

        Raises:
            StoreError: it could not be kept: no space, not writable, locked for too long, or damaged.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            raise self._trouble(error) from error

    def _trouble(self, error: OSError | DatabaseError) -> StoreError:
        why = error.orig if isinstance(error, DatabaseError) else error.strerror
        return StoreError(f"cannot keep runs in {self._folder}: {why}")

    # ---- identity ------------------------------------------------------------------------------------------------

    def create_token(self, ttl_s: float = TOKEN_TTL_S) -> str:
        """A new join token, good once. Only its digest is kept."""
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        row = {"digest": _digest(token), "expires_ns": time.time_ns() + int(ttl_s * 1e9)}
        with self._writing() as connection:
            connection.execute(insert(schema.tokens), row)
        return token

    def redeem(self, token: str) -> str:
        """Swap a token for a new agent's id; of two that show the same token one gets it.

        Raises:
            TokenRefused: unknown, used or expired.
        """
        now = time.time_ns()
        agent_id = str(uuid.uuid4())
        table = schema.tokens
        fits = (table.c.digest == _digest(token)) & table.c.used_ns.is_(None) & (table.c.expires_ns > now)
        with self._writing() as connection:
            taken = connection.execute(update(table).where(fits).values(used_ns=now, agent_id=agent_id))
            if taken.rowcount != 1:
                raise TokenRefused("the token is not good (unknown, used or expired); next: brownout token create")
            connection.execute(insert(schema.agents), {"agent_id": agent_id, "enrolled_ns": now})
        return agent_id

    def is_enrolled(self, agent_id: str) -> bool:
        """Whether this agent was enrolled here."""
        with self._engine.connect() as connection:
            found = connection.execute(select(schema.agents.c.agent_id).where(schema.agents.c.agent_id == agent_id))
            return found.first() is not None

    def saw(self, agent_id: str, host: str) -> None:
        """Note which host an agent said it was."""
        table = schema.agents
        seen = update(table).where(table.c.agent_id == agent_id).values(host=host, seen_ns=time.time_ns())
        with self._writing() as connection:
            connection.execute(seen)

    def take_epoch(self) -> int:
        """A number larger than every controller before this one had; hosts refuse orders with a smaller one."""
        with self._writing() as connection:
            row = connection.execute(insert(schema.epochs), {"taken_ns": time.time_ns()}).inserted_primary_key
        assert row is not None
        return int(row[0])

    # ---- runs ----------------------------------------------------------------------------------------------------

    def begin_run(self, name: str, operator: str, plan_digest: str, started_ns: int) -> int:
        """A new run's number."""
        row = {"name": name, "operator": operator, "plan_digest": plan_digest, "started_ns": started_ns}
        with self._writing() as connection:
            key = connection.execute(insert(schema.runs), row).inserted_primary_key
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
            with self._writing() as connection:
                connection.execute(insert(schema.events), rows)

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
        with self._writing() as connection:
            connection.execute(update(schema.runs).where(schema.runs.c.number == number).values(values))

    def list_runs(self, limit: int = 50) -> list[RunLine]:
        """The latest runs, newest first. One without a verdict is running, or its controller died."""
        table = schema.runs
        columns = [table.c[name] for name in RunLine.__slots__]
        with self._engine.connect() as connection:
            rows = connection.execute(select(*columns).order_by(table.c.number.desc()).limit(limit))
            return [RunLine(*row) for row in rows]

    def load_document(self, number: int) -> dict[str, Any]:
        """A finished run's document.

        Raises:
            RunUnknown: no such run, or it never finished.
        """
        with self._engine.connect() as connection:
            row = connection.execute(select(schema.runs.c.document).where(schema.runs.c.number == number)).first()
        if row is None:
            raise RunUnknown(f"there is no run {number}; next: brownout runs list")
        if row[0] is None:
            raise RunUnknown(f"run {number} has no record: it is running, or its controller died before the end")
        document: dict[str, Any] = json.loads(zlib.decompress(row[0]))
        return document


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    path.touch(mode=0o600, exist_ok=True)
    return engine
