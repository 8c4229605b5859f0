"""Options that several commands share, and where things are kept when nothing is said."""

import os
from pathlib import Path
from typing import Annotated

import typer

from brownout_controller.cli.output import Format
from brownout_controller.fleet.shared_authority import AUTHORITY_KEY
from brownout_controller.store.database import DATABASE_URL

_PORTS = 65_535
"""Of the fleet the next port is for enrolment, so the last one cannot be chosen."""


def default_data_dir() -> Path:
    """$BROWNOUT_DATA_DIR, else the user's data folder (XDG Base Directory Specification)."""
    if chosen := os.environ.get("BROWNOUT_DATA_DIR"):
        return Path(chosen)
    home = os.environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    return Path(home) / "brownout"


def database_url() -> str:
    """The PostgreSQL database to use, by `brownout --database` or its variable; "" for SQLite in the data folder."""
    return os.environ.get(DATABASE_URL, "")


def authority_key() -> Path | None:
    """The file that opens the authority of a shared database; None where nothing is said."""
    named = os.environ.get(AUTHORITY_KEY, "")
    return Path(named) if named else None


def pairs(values: list[str], what: str) -> dict[str, str]:
    """`["a=b"]` as a mapping.

    Raises:
        typer.BadParameter: one of them has no `=`.
    """
    found = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{value!r} is not {what}; write it like name=value")
        found[key] = rest
    return found


def split_address(text: str, option: str) -> tuple[str, int]:
    """`HOST:PORT` in two; port 0 takes a free one.

    Raises:
        typer.BadParameter: not that.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not int(port) < _PORTS:
        raise typer.BadParameter(f"{option} {text}: not HOST:PORT with a port below {_PORTS}")
    return host.strip("[]"), int(port)


DataDir = Annotated[
    Path,
    typer.Option("--data-dir", envvar="BROWNOUT_DATA_DIR", readable=False, help="where runs and identities are kept"),
]
Output = Annotated[Format, typer.Option("--output", "-o", help="how to print it")]
Variables = Annotated[list[str], typer.Option("--var", metavar="NAME=VALUE", help="set one of the experiment's vars")]
Labels = Annotated[
    list[str], typer.Option("--label", metavar="KEY=VALUE", help="label of this machine, in one-machine mode")
]
Listen = Annotated[
    str,
    typer.Option(
        "--listen",
        metavar="HOST:PORT",
        help="be the controller of hosts that joined, instead of using this machine; PORT+1 is for enrolment",
    ),
]
WaitHosts = Annotated[int, typer.Option("--wait-hosts", min=1, help="with --listen: so many hosts must be connected")]
WaitTimeout = Annotated[float, typer.Option("--wait-timeout", min=0.0, help="with --listen: seconds to wait for them")]
