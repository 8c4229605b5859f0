"""server start: a controller that stays, with its fleet and its API in one process."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brownout_controller.api.first_admin import FIRST_TOKEN_TTL_S, FIRST_USER, admin_token, first_admin
from brownout_controller.cli.auditing import local_audit, local_entry
from brownout_controller.cli.fleet_access import open_store, read_authority
from brownout_controller.cli.output import fail
from brownout_controller.cli.settings import DataDir, database_url, default_data_dir, split_address
from brownout_controller.exit_codes import ExitCode
from brownout_controller.fleet.authority import KeyPair
from brownout_controller.fleet.shared_authority import AUTHORITY_KEY
from brownout_controller.serving import WILDCARDS
from brownout_controller.store.access import AccessStore

if TYPE_CHECKING:
    from brownout_controller.api.oidc import Provider

commands = typer.Typer(
    help="A controller that stays, for hosts that join and people who come by the API.", no_args_is_help=True
)

Certificate = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert", help="certificate chain of the API, PEM; the cluster's own authority makes one if left out"
    ),
]
Key = Annotated[Path | None, typer.Option("--tls-key", help="its key, PEM, readable by this user alone")]


@commands.command()
def start(
    data_dir: DataDir = default_data_dir(),
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="for agents; PORT+1 for enrolment")
    ] = "127.0.0.1:7700",
    api: Annotated[str, typer.Option("--api", metavar="HOST:PORT", help="for people and programs")] = "127.0.0.1:7780",
    tls_cert: Certificate = None,
    tls_key: Key = None,
    advertise: Annotated[
        str,
        typer.Option(
            "--advertise",
            metavar="HOST:PORT",
            help="where agents reach this controller, told to those of the others; --listen if left out",
        ),
    ] = "",
    authority_file: Annotated[
        Path | None,
        typer.Option(
            "--authority-key",
            metavar="FILE",
            envvar=AUTHORITY_KEY,
            readable=False,
            help="several controllers on one PostgreSQL: the key that opens their authority there; the first makes it",
        ),
    ] = None,
    audit_export: Annotated[
        Path | None,
        typer.Option(
            "--audit-export",
            metavar="DIR",
            readable=False,
            help="write the audit log's signed checkpoints there as well; best a folder of another machine",
        ),
    ] = None,
    oidc: Annotated[
        Path | None,
        typer.Option("--oidc", metavar="FILE", readable=False, help="let people log in by an OpenID provider"),
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, which halts every run and undoes every fault first."""
    addresses = split_address(listen, "--listen"), split_address(api, "--api")
    pair = _pair_of_files(tls_cert, tls_key)
    os.environ[AUTHORITY_KEY] = str(authority_file or "")  # where whoever opens the authority looks
    _check_advertised(advertise, addresses[0][0])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    with open_store(data_dir) as store, local_audit(store, data_dir, audit_export) as audit:
        try:
            from brownout_controller.api.controller import serve  # noqa: PLC0415 - other commands need no web framework

            provider = _provider(oidc)

            asyncio.run(serve(store, read_authority(data_dir, store), *addresses, pair, audit, provider, advertise))
        except OSError as error:
            fail(ExitCode.UNREACHABLE, "cannot-listen", str(error), "choose another --listen or --api")


@commands.command("admin-token")
def print_admin_token(data_dir: DataDir = default_data_dir()) -> None:
    """A fresh token of the first admin, when the last one is lost: for whoever may read the data folder anyway."""
    with open_store(data_dir) as store, local_audit(store, data_dir) as audit:
        audit.record(local_entry("token.create", f"user {FIRST_USER}"))
        access = AccessStore(store.database)
        user = access.user(FIRST_USER)
        if user is None:
            token = first_admin(access)
            if token is None:
                fail(
                    ExitCode.REFUSED,
                    "no-admin",
                    f"there are users, and none is called {FIRST_USER}",
                    "brownout users list",
                )
        elif user.disabled:
            fail(ExitCode.REFUSED, "disabled", f"user {FIRST_USER} is disabled", "ask another admin for a token")
        else:
            token = admin_token(access)
    print(token.text)
    typer.echo(f"Good for {FIRST_TOKEN_TTL_S // 3600} h; kept nowhere.", err=True)


def _check_advertised(advertise: str, listen_host: str) -> None:
    """Agents must be told of an address that leads here, or they cannot come when another controller dies."""
    if advertise:
        split_address(advertise, "--advertise")
    elif database_url() and listen_host in WILDCARDS:
        fail(
            ExitCode.USAGE,
            "usage",
            f"--listen {listen_host} is every address of this machine, and agents of other controllers need one",
            "--advertise HOST:PORT",
        )


def _provider(file: Path | None) -> "Provider | None":
    from brownout_controller.api.oidc import Provider, read_settings  # noqa: PLC0415

    try:
        return None if file is None else Provider(read_settings(file))
    except (OSError, ValueError) as error:
        fail(ExitCode.USAGE, "oidc", str(error), "see docs/audit.md")


def _pair_of_files(certificate: Path | None, key: Path | None) -> Callable[[], KeyPair] | None:
    """Key and certificate from files, read again when they are asked for again."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        fail(ExitCode.USAGE, "usage", "--tls-cert and --tls-key go together")

    def read() -> KeyPair:
        if key.stat().st_mode & 0o077:
            raise PermissionError(f"{key} is open to others; next: chmod 600 {key}")
        return KeyPair(key.read_bytes(), certificate.read_bytes())

    return read
