"""token create: how a host comes into the fleet."""

import json
from typing import Annotated

import typer

from brownout_controller.cli import remote
from brownout_controller.cli.auditing import local_audit, local_entry
from brownout_controller.cli.fleet_access import open_store, read_authority
from brownout_controller.cli.output import Format
from brownout_controller.cli.settings import DataDir, Output, default_data_dir
from brownout_controller.store.identities import Identities

app = typer.Typer(
    help="Tokens: one-time ones by which hosts join, and those by which people and programs use the API.",
    no_args_is_help=True,
)


@app.command()
def create(
    data_dir: DataDir = default_data_dir(),
    ttl: Annotated[int, typer.Option("--ttl", min=10, max=86_400, help="seconds until it expires")] = 900,
    output: Output = Format.TABLE,
) -> None:
    """A token that is good once, and the line to type on the host."""
    if (server := remote.chosen()) is not None:
        with remote.connect(server) as api:
            made = api.post("/join-tokens", {"ttl_s": ttl})
        token, pin = made["token"], made["ca_pin"]
    else:
        with open_store(data_dir) as store, local_audit(store, data_dir) as audit:
            audit.record(local_entry("host.enrol", "a join token", ttl_s=str(ttl)))
            pin = read_authority(data_dir, store).pin
            token = Identities(store.database).create_token(ttl)
    join = f"brownout-agent join --controller HOST:PORT --token {token} --ca-pin {pin}"
    if output is Format.TABLE:
        print(join)
        typer.echo(
            f"HOST:PORT is the --listen of `brownout run` or `brownout server start`. Good once, for {ttl} s.", err=True
        )
    else:
        print(json.dumps({"token": token, "ca_pin": pin, "join": join, "ttl_s": ttl}))
