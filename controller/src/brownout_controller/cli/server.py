"""server start: a controller that stays, with its fleet and its API in one process."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer

from brownout_controller.api.app import create_app
from brownout_controller.api.server import serve_api
from brownout_controller.api.services import FIRST_TOKEN_TTL_S, FIRST_USER, Services, admin_token, first_admin
from brownout_controller.audit.logged import LogAuditor
from brownout_controller.cli.fleet_access import open_store
from brownout_controller.cli.output import fail, progress
from brownout_controller.cli.settings import DataDir, default_data_dir, split_address
from brownout_controller.exit_codes import ExitCode
from brownout_controller.fleet.authority import KeyPair
from brownout_controller.running.manager import RunManager
from brownout_controller.serving import open_authority, serve_fleet
from brownout_controller.store.access import AccessStore
from brownout_controller.store.store import Store

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
) -> None:
    """Serve until SIGTERM or Ctrl-C, which halts every run and undoes every fault first."""
    addresses = split_address(listen, "--listen"), split_address(api, "--api")
    pair = _pair_of_files(tls_cert, tls_key)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    with open_store(data_dir) as store:
        try:
            asyncio.run(_serve(store, data_dir, *addresses, pair))
        except OSError as error:
            fail(ExitCode.UNREACHABLE, "cannot-listen", str(error), "choose another --listen or --api")


@commands.command("admin-token")
def print_admin_token(data_dir: DataDir = default_data_dir()) -> None:
    """A fresh token of the first admin, when the last one is lost: for whoever may read the data folder anyway."""
    with open_store(data_dir) as store:
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


async def _serve(
    store: Store, data_dir: Path, listen: tuple[str, int], api: tuple[str, int], pair: Callable[[], KeyPair] | None
) -> None:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ending.set)
    async with _serving(store, data_dir, listen, api, pair):
        await ending.wait()
        progress().print("ending: every run is halted and undone first")


@asynccontextmanager
async def _serving(
    store: Store, data_dir: Path, listen: tuple[str, int], api: tuple[str, int], pair: Callable[[], KeyPair] | None
) -> AsyncIterator[None]:
    """Fleet, runs and API, ended in the other order: runs are undone while agents can still be spoken to."""
    out, auditor = progress(), LogAuditor()
    authority = open_authority(data_dir)
    async with serve_fleet(store, authority, *listen, auditor=auditor) as controller:
        runs = RunManager(controller.fleet, store, controller.epoch, controller.controller_id, controller.lever)
        services = Services(controller, runs, auditor)
        token = first_admin(services.access)
        app, fresh_pair = create_app(services), pair or authority.server_pair
        async with controller.lever.obeying(runs), serve_api(app, *api, fresh_pair) as port:
            out.print(f"agents on {controller.host}:{controller.port}, enrolment on port {controller.enrol_port}")
            out.print(f"API on https://{api[0]}:{port}/api/v1, authority {authority.pin}")
            if token is not None:
                hours = FIRST_TOKEN_TTL_S // 3600
                out.print(f"the first user is `{FIRST_USER}`; this token is shown once and good for {hours} h:")
                print(token.text, flush=True)
            try:
                yield
            finally:
                await runs.close("this controller ends")


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
