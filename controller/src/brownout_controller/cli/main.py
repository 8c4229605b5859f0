"""`brownout`: the command line, put together."""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # before grpc is imported: children are spawned, never forked

import errno
import io
import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

from brownout_controller import __version__
from brownout_controller.cli import (
    audit,
    authority,
    catalogue,
    data,
    experiments,
    halting,
    hosts,
    login,
    people,
    runs,
    server,
    tokens,
)
from brownout_controller.cli.remote import SERVER, SERVER_CA, SERVER_PIN, TOKEN_FILE, Server, choose
from brownout_controller.demo.main import run_demo
from brownout_controller.store.database import DATABASE_URL

app = typer.Typer(
    name="brownout",
    help="Injects faults into staging hosts and measures how health checks and failover behave.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(experiments.validate)
app.command()(experiments.plan)
app.command()(experiments.run)
app.command()(halting.halt)
app.command()(halting.resume)
app.command()(login.login)
app.command()(login.logout)
app.command()(people.approve)
app.command()(people.whoami)
app.command()(runs.report)
app.command()(hosts.doctor)
app.command()(catalogue.explain)
app.command()(catalogue.schema)
app.add_typer(runs.app, name="runs")
app.add_typer(hosts.app, name="hosts")
app.add_typer(catalogue.app, name="faults")
app.add_typer(tokens.app, name="token")
app.add_typer(data.app, name="data")
app.add_typer(authority.app, name="ca")
app.add_typer(audit.app, name="audit")
app.add_typer(server.commands, name="server")
app.add_typer(people.users, name="users")
app.add_typer(people.approvals, name="approvals")


@app.command()
def demo(
    report_dir: Annotated[Path, typer.Option("--report-dir", help="where the report goes", readable=False)] = Path(
        "demo-report"
    ),
) -> None:
    """Lose an app server behind a real HAProxy, in namespaces of its own, and measure the failover."""
    os.environ.pop(SERVER, None)  # the demo has a controller of its own, whatever this user works with
    raise typer.Exit(run_demo(report_dir))


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    database: Annotated[
        str,
        typer.Option(
            metavar="postgresql://...",
            envvar=DATABASE_URL,
            show_envvar=True,
            help="keep everything there instead of in --data-dir; a password is better off in the variable",
        ),
    ] = "",
    server_url: Annotated[
        str,
        typer.Option(
            "--server",
            metavar="https://HOST:PORT",
            envvar=SERVER,
            show_envvar=True,
            help="ask a controller that serves there, with the token in $BROWNOUT_TOKEN",
        ),
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar=TOKEN_FILE, show_envvar=True, help="with --server: the token is in this file of ours alone"
        ),
    ] = None,
    server_pin: Annotated[
        str,
        typer.Option(
            metavar="sha256:HEX",
            envvar=SERVER_PIN,
            show_envvar=True,
            help="with --server: the authority that `server start` names there",
        ),
    ] = "",
    server_ca: Annotated[
        Path | None,
        typer.Option(envvar=SERVER_CA, show_envvar=True, help="with --server: authorities to trust instead, PEM"),
    ] = None,
) -> None:
    """What stands before every command."""
    if version:
        print(__version__)
        raise typer.Exit
    choose(Server(server_url, server_pin, server_ca, token_file) if server_url else None)
    os.environ[DATABASE_URL] = database  # where commands look, and what they start


def main() -> None:
    """A closed pipe on stdout (`| head`) is no error, nor a terminal that lacks a letter; a full disk is."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    stdout, code = sys.stdout, None
    try:
        try:
            app()
        except SystemExit as ended:
            # Typer ends with 1 when the pipe is closed, and then has put a stdout of its own in place.
            code = ended.code if sys.stdout is stdout else 0
        stdout.flush()
    except BrokenPipeError:
        _let_go_of(stdout)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _let_go_of(stdout)
        print(f"brownout: the answer could not be written: {error.strerror}", file=sys.stderr)
        code = code or 1
    raise SystemExit(code)


def _let_go_of(stdout: TextIO) -> None:
    """Nothing more is written there, not even at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


if __name__ == "__main__":
    main()
