"""Requests that must happen once, by the key that their client chose (`Idempotency-Key`)."""

import time
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import IntegrityError

from brownout_controller.store.access import NS_PER_S
from brownout_controller.store.database import Database
from brownout_controller.store.schema import access

KEPT_NS = 24 * 3600 * NS_PER_S
_UNANSWERED = (
    "the first request with this Idempotency-Key has no answer yet, or lost its controller; see the list of runs"
)


class KeyReused(Exception):
    """The key stands for another request, or for one that is not answered; the text says which."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the first request of a key was answered."""

    status: int
    text: str


class RequestStore:
    """Keys of the last 24 hours."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, user: str, key: str, digest: str) -> Answer | None:
        """Take a key for a request; the answer when this very request was answered before.

        Raises:
            KeyReused: the key was used for another request, or its first request has no answer.
        """
        table, now_ns = access.requests, time.time_ns()
        mine = (table.c.user == user) & (table.c.key == key)
        with self._database.writing() as connection:
            connection.execute(delete(table).where(table.c.begun_ns < now_ns - KEPT_NS))
            kept = connection.execute(select(table).where(mine)).mappings().first()
            if kept is not None:
                return _answer(kept, digest)
            row = {"user": user, "key": key, "digest": digest, "begun_ns": now_ns}
            try:
                connection.execute(insert(table), row)
            except IntegrityError as error:  # another controller has taken it at the same moment
                raise KeyReused(_UNANSWERED) from error
        return None

    def finish(self, user: str, key: str, answer: Answer) -> None:
        """Keep what a request was answered."""
        table = access.requests
        change = update(table).where((table.c.user == user) & (table.c.key == key))
        with self._database.writing() as connection:
            connection.execute(change.values(status=answer.status, answer=answer.text))

    def forget(self, user: str, key: str) -> None:
        """Give a key back: its request was refused, and nothing has happened."""
        table = access.requests
        with self._database.writing() as connection:
            connection.execute(delete(table).where((table.c.user == user) & (table.c.key == key)))


def _answer(kept: RowMapping, digest: str) -> Answer:
    if kept["digest"] != digest:
        raise KeyReused("this Idempotency-Key was sent before with another request; choose a new one for each")
    if kept["status"] is None:
        raise KeyReused(_UNANSWERED)
    return Answer(kept["status"], kept["answer"])
