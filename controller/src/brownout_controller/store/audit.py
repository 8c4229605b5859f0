"""The audit log as it is kept. Rows are only ever added; several controllers add to one chain."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brownout_agent.chain import GENESIS, Link, link
from sqlalchemy import Select, insert, select, update
from sqlalchemy.engine import Connection, Row

from brownout_controller.audit.checkpoint import Checkpoint
from brownout_controller.audit.entry import AuditEntry
from brownout_controller.reporting.visible import visible
from brownout_controller.store.database import Database
from brownout_controller.store.schema import audit
from brownout_controller.store.upsert import insert_into

TEXT_MAX = 2_000
_HEAD = 1
_AT_ONCE = 1_000
_TEXTS = ("actor", "action", "subject", "outcome", "origin", "reason")


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain, and the newest checkpoint's place (0 for none)."""

    sequence: int = 0
    hash: str = GENESIS
    sealed_sequence: int = 0
    sealed_ns: int = 0


class AuditStore:
    """Every method raises StoreError when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, entries: Sequence[AuditEntry]) -> Head:
        """Keep entries in this order, all or none; returns the chain's new end."""
        with self._database.writing() as connection:
            head = _locked_head(connection)
            now_ns = self._database.now_ns(connection)
            previous, rows = head.hash, []
            for number, entry in enumerate(entries, head.sequence + 1):
                kept = link(previous, _document(number, now_ns, entry))
                rows.append(_row(kept))
                previous = kept.hash
            connection.execute(insert(audit.entries), rows)
            end = {"sequence": head.sequence + len(rows), "hash": previous}
            connection.execute(update(audit.head).values(end))
        return Head(head.sequence + len(rows), previous, head.sealed_sequence, head.sealed_ns)

    def seal(self, sign: Callable[[int, str, int], Checkpoint]) -> None:
        """Keep a checkpoint of the chain's end, unless it has one; `sign` gets its sequence, its hash and the time."""
        with self._database.writing() as connection:
            head = _locked_head(connection)
            if head.sequence == head.sealed_sequence:
                return
            checkpoint = sign(head.sequence, head.hash, self._database.now_ns(connection))
            connection.execute(insert(audit.checkpoints), checkpoint.document())
            sealed = {"sealed_sequence": checkpoint.sequence, "sealed_ns": checkpoint.at_ns}
            connection.execute(update(audit.head).values(sealed))

    def head(self) -> Head:
        """The end of the chain, as it is noted beside it."""
        with self._database.reading() as connection:
            row = connection.execute(_head()).first()
        return Head() if row is None else Head(*row)

    def now_ns(self) -> int:
        """The clock that entries are stamped by."""
        with self._database.reading() as connection:
            return self._database.now_ns(connection)

    def links(self, after: int = 0) -> Iterator[Link]:
        """The chain, as its rows have it now: what one hangs on is the hash of the row before."""
        table, previous = audit.entries, GENESIS
        if after:
            with self._database.reading() as connection:
                chosen = select(table.c.hash).where(table.c.sequence == after)
                previous = connection.execute(chosen).scalar_one_or_none() or GENESIS
        while True:
            chosen_rows = select(table).where(table.c.sequence > after).order_by(table.c.sequence).limit(_AT_ONCE)
            with self._database.reading() as connection:
                rows = connection.execute(chosen_rows).all()
            if not rows:
                return
            for row in rows:
                yield Link(row.sequence, _document_of(row), previous, row.hash)
                previous = row.hash
            after = rows[-1].sequence

    def newest(
        self, limit: int, only: Mapping[str, str] | None = None, before: int | None = None
    ) -> list[dict[str, Any]]:
        """Entries, newest first; `only` names columns and what must stand there."""
        table = audit.entries
        chosen = select(table).order_by(table.c.sequence.desc()).limit(limit)
        if before is not None:
            chosen = chosen.where(table.c.sequence < before)
        for column, value in (only or {}).items():
            chosen = chosen.where(table.c[column] == value)
        with self._database.reading() as connection:
            rows = connection.execute(chosen).all()
        return [{**_document_of(row), "hash": row.hash} for row in rows]

    def checkpoints(self, after: int = 0) -> list[Checkpoint]:
        """Checkpoints beyond a sequence, oldest first."""
        table = audit.checkpoints
        columns = (table.c[name] for name in Checkpoint.__slots__)
        chosen = select(*columns).where(table.c.sequence > after).order_by(table.c.sequence)
        with self._database.reading() as connection:
            return [Checkpoint(*row) for row in connection.execute(chosen)]


def _head() -> Select[Any]:
    return select(*(audit.head.c[name] for name in Head.__slots__)).where(audit.head.c.number == _HEAD)


def _locked_head(connection: Connection) -> Head:
    """Whoever holds this row appends; SQLite has one writer anyway."""
    chosen = _head().with_for_update()
    row = connection.execute(chosen).first()
    if row is None:
        first = {name: getattr(Head(), name) for name in Head.__slots__}
        connection.execute(insert_into(connection, audit.head).values(number=_HEAD, **first).on_conflict_do_nothing())
        row = connection.execute(chosen).one()
    return Head(*row)


def _document(sequence: int, at_ns: int, entry: AuditEntry) -> dict[str, Any]:
    """What is hashed: every column but the hash. Texts of others are made harmless first, and cut."""
    texts = {name: _harmless(getattr(entry, name)) for name in _TEXTS}
    detail = {_harmless(name): _harmless(value) for name, value in entry.detail.items()}
    return {"sequence": sequence, "at_ns": at_ns, **texts, "detail": detail}


def _harmless(text: str) -> str:
    return visible(text)[:TEXT_MAX]


def _row(kept: Link) -> dict[str, Any]:
    return {**kept.document, "detail": json.dumps(kept.document["detail"], sort_keys=True), "hash": kept.hash}


def _document_of(row: Row[Any]) -> dict[str, Any]:
    texts = {name: getattr(row, name) for name in _TEXTS}
    return {"sequence": row.sequence, "at_ns": row.at_ns, **texts, "detail": _detail(row.detail)}


def _detail(text: str) -> Any:
    """A text that is not what we write any more stays a text, and so has another hash."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return plain if json.dumps(plain, sort_keys=True) == text else text
