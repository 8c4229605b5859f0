"""data backup, restore, migrate, check: the database itself."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from brownout_controller.cli.output import Format, fail, show_one
from brownout_controller.cli.settings import DataDir, Output, database_url, default_data_dir
from brownout_controller.exit_codes import ExitCode
from brownout_controller.store import backup as backups
from brownout_controller.store import migrating
from brownout_controller.store.backup import Contents
from brownout_controller.store.database import Database, StoreError
from brownout_controller.store.postgresql import place_of
from brownout_controller.store.sqlite import FILE

app = typer.Typer(help="Back up, restore, migrate and check the database.", no_args_is_help=True)

AUTHORITY = "The authority's keys are not in it: keep a copy of {folder}/authority as you keep keys."


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="a new file", readable=False)],
    data_dir: DataDir = default_data_dir(),
    output: Output = Format.TABLE,
) -> None:
    """Copy the database into a new file, while it is in use if need be, and read the copy through."""
    if url := database_url():
        _by_its_own_tools(f"pg_dump --format=custom --file={shlex.quote(str(file))}", url)
    with _told():
        contents = backups.back_up(data_dir, file)
    _tell(contents, f"backed up to {file}", output, file=str(file))
    if output is Format.TABLE:
        typer.echo(AUTHORITY.format(folder=data_dir), err=True)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="what `brownout data backup` wrote", readable=False)],
    data_dir: DataDir = default_data_dir(),
    output: Output = Format.TABLE,
) -> None:
    """Put a backup in the place of the database; the database that was there is kept beside it."""
    if url := database_url():
        _by_its_own_tools(f"pg_restore --clean --if-exists --single-transaction {shlex.quote(str(file))}", url)
    with _told():
        contents, replaced = backups.restore(data_dir, file)
    kept = f"; what was there is kept as {replaced}" if replaced else ""
    _tell(contents, f"restored {file}{kept}", output, replaced=str(replaced) if replaced else None)


@app.command()
def migrate(data_dir: DataDir = default_data_dir(), output: Output = Format.TABLE) -> None:
    """Bring the database's tables up to date. Every command does so as well; a copy of a SQLite file is kept first."""
    with _told():
        Database.open(data_dir, database_url()).close()
    if output is Format.TABLE:
        print(f"at version {migrating.newest()}")
    else:
        show_one({"version": migrating.newest()}, output)


@app.command()
def check(data_dir: DataDir = default_data_dir(), output: Output = Format.TABLE) -> None:
    """Read the whole database and say whether it is sound."""
    if url := database_url():
        _by_its_own_tools("pg_amcheck", url)
    with _told():
        contents = backups.inspect_file(data_dir / FILE)
    _tell(contents, "sound", output)


def _tell(contents: Contents, done: str, output: Format, **more: str | None) -> None:
    if output is Format.TABLE:
        print(f"{done}: {contents.runs} runs, {contents.size_bytes} bytes, version {contents.version}")
    else:
        found = {"version": contents.version, "runs": contents.runs, "size_bytes": contents.size_bytes}
        show_one({**found, **more}, output)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        fail(ExitCode.REFUSED, "store", str(error))


def _by_its_own_tools(command: str, url: str) -> NoReturn:
    """A PostgreSQL server has better tools than we could be; the password is left to ~/.pgpass (libpq)."""
    with _told():
        place = place_of(url)
    message = f"{place} is PostgreSQL, which has its own tools for this"
    fail(ExitCode.REFUSED, "postgresql", message, f"{command} --dbname={shlex.quote(place)}")
