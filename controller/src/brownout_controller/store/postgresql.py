"""PostgreSQL as we use it: 15 or newer, every commit synced, no wait without an end."""

from typing import Any

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError

from brownout_controller.store.errors import StoreError

OLDEST = 15
_SCHEMES = frozenset({"postgresql", "postgres", "postgresql+psycopg"})
_CONNECT_TIMEOUT_S = 5
_OPTIONS = {
    "application_name": "brownout",
    "connect_timeout": _CONNECT_TIMEOUT_S,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
"""For libpq: a server that vanished without a word is noticed."""
_SETTINGS = ("statement_timeout=30s", "lock_timeout=10s", "idle_in_transaction_session_timeout=30s")
_MIGRATION_LOCK = 0x62726F776E6F7574  # "brownout"


def engine_at(url: str) -> tuple[str, Engine]:
    """The address without its password, and an engine; nothing is connected yet.

    Raises:
        StoreError: no address of PostgreSQL.
    """
    parsed = _read(url)
    given = parsed.query.get("options", ())
    options = " ".join([*(f"-c {setting}" for setting in _SETTINGS), *([given] if isinstance(given, str) else given)])
    arguments: dict[str, Any] = {**_OPTIONS, "options": options}
    engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=True, pool_size=5, max_overflow=5)
    event.listen(engine, "connect", _wait_for_the_disk)
    return _place(parsed), engine


def place_of(url: str) -> str:
    """An address as it may be shown, and as PostgreSQL's own tools take it: without the password.

    Raises:
        StoreError: no address of PostgreSQL.
    """
    return _place(_read(url))


def _read(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError(
            "the database's address cannot be read; it looks like postgresql://USER:PASSWORD@HOST:5432/NAME"
        ) from None
    if parsed.drivername not in _SCHEMES:
        raise StoreError(
            f"a database of kind {parsed.drivername!r}; besides the SQLite of --data-dir only postgresql:// is known"
        )
    return parsed.set(drivername="postgresql+psycopg")


def _wait_for_the_disk(connection: Any, _record: Any) -> None:
    """Answer for commits only once they are on disk (and on a synchronous standby, where the server has one)."""
    (level,) = connection.execute("SHOW synchronous_commit").fetchone()
    if level in {"off", "local"}:
        connection.execute("SET synchronous_commit TO on")
    connection.commit()


def check_server(engine: Engine, place: str) -> None:
    """Refuse a server that cannot keep what we promise.

    Raises:
        DBAPIError: it cannot be reached.
        StoreError: too old, or one that may forget what it has acknowledged.
    """
    with engine.connect() as connection:
        number, name, fsync = connection.execute(
            text(
                "SELECT current_setting('server_version_num')::int, current_setting('server_version'),"
                " current_setting('fsync')"
            )
        ).one()
    if number < OLDEST * 10_000:
        raise StoreError(f"{place} is PostgreSQL {name}; {OLDEST} or newer is needed")
    if fsync != "on":
        raise StoreError(f"{place} runs with fsync={fsync} and may forget what it said it kept; set fsync = on")


def lock_migrations(connection: Connection) -> None:
    """One controller at a time changes tables; the lock ends with the transaction."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})


def _place(url: URL) -> str:
    """Of what may stand behind the `?`, only where the server is: the rest may be secret."""
    query = {name: value for name, value in url.query.items() if name in {"host", "port"}}
    shown = URL.create("postgresql", url.username, None, url.host, url.port, url.database, query)
    return shown.render_as_string()
