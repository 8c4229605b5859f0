"""What the store says when it cannot be used."""

import sqlite3

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_PRIMARY_CODE = 0xFF


class StoreError(Exception):
    """The store cannot be used; the text says why and what to do."""


def trouble(error: OSError | SQLAlchemyError, place: str) -> StoreError:
    """A driver's error in our words; `place` is the folder or the address without its password."""
    if isinstance(error, OSError):
        return StoreError(f"cannot keep runs in {place}: {error.strerror or error}")
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", None)
    if code is not None and code & _PRIMARY_CODE in _DAMAGED:
        return damaged(place, str(cause))
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return StoreError(f"cannot keep runs in {place}: {lines[0]}")


def damaged(place: str, what: str) -> StoreError:
    """The database's own file is not whole."""
    return StoreError(
        f"the database in {place} is damaged: {what}\n"
        "nothing is read from it and nothing written; put a backup in its place: brownout data restore FILE"
    )
