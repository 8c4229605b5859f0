"""ca status, ca rotate: the authority that makes every identity, and changing it without losing an agent."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from brownout_controller.audit.entry import Outcome
from brownout_controller.cli.auditing import local_audit, local_entry
from brownout_controller.cli.fleet_access import open_store, read_authority
from brownout_controller.cli.output import Format, fail, progress, show
from brownout_controller.cli.settings import DataDir, Output, default_data_dir
from brownout_controller.exit_codes import ExitCode
from brownout_controller.fleet.authority import Authority
from brownout_controller.fleet.rotation import FOLLOWING, RotationRefused, Standing, laggards
from brownout_controller.store.identities import AgentLine, Identities

app = typer.Typer(help="The certificate authority of the cluster.", no_args_is_help=True)


@app.command()
def status(data_dir: DataDir = default_data_dir(), output: Output = Format.TABLE) -> None:
    """Which phase of a rotation it is in, and which agents have not come along with it."""
    with open_store(data_dir) as store:
        authority = read_authority(data_dir, store)
        behind = _behind(authority, Identities(store.database).agents())
    rotation = authority.rotation
    row: dict[str, Any] = {
        "phase": str(rotation.phase),
        "began": datetime.fromtimestamp(rotation.began_ns / 1e9, UTC).isoformat(timespec="seconds"),
        "issues": rotation.issuing,
        "shows": rotation.presenting,
        "trusts": ",".join(map(str, rotation.trusted)),
        "pin": authority.pin,
        "behind": len(behind),
    }
    show([{**row, "behind_agents": behind}], tuple(row), output, "phase")
    if output is Format.TABLE:
        _list(behind)


@app.command()
def bundle(data_dir: DataDir = default_data_dir()) -> None:
    """Print the authorities by which controllers are known (PEM): for --server-ca, curl --cacert and browsers."""
    with open_store(data_dir) as store:
        print(read_authority(data_dir, store).bundle_pem.decode(), end="")


@app.command()
def rotate(
    data_dir: DataDir = default_data_dir(),
    rollback: Annotated[bool, typer.Option("--rollback", help="go back to the old authority")] = False,
    force: Annotated[bool, typer.Option("--force", help="go on without the agents that have not come along")] = False,
) -> None:
    """Go one phase on: standby, init, update_clients, update_servers, standby. A running controller follows.

    Agents that have not come along are listed, and hold the next phase up: what they rest on ends with a later one.
    """
    with open_store(data_dir) as store, local_audit(store, data_dir) as audit:
        authority = read_authority(data_dir, store)
        behind = [] if rollback else _behind(authority, Identities(store.database).agents())
        if behind and not force:
            _list(behind)
            lost = "with --force each of these that does not come in time must join again with a new token"
            fail(
                ExitCode.REFUSED,
                "agents-behind",
                f"{len(behind)} agents have not come along with phase {authority.rotation.phase}; {lost}",
                "start them, or brownout hosts revoke those that are gone; then brownout ca rotate",
            )
        try:
            now_ns = time.time_ns()
            rotation = authority.rotation.rolled_back(now_ns) if rollback else authority.rotation.advanced(now_ns)
            forced = "yes" if behind else "no"
            audit.record(local_entry("authority.rotate", str(rotation.phase), left_behind=forced))
            authority.rotate(rotation)
        except RotationRefused as error:
            fail(ExitCode.REFUSED, "no-rotation", str(error))
        except OSError as error:
            audit.record(local_entry("authority.rotate", str(rotation.phase), Outcome.FAILED, str(error)))
            fail(ExitCode.REFUSED, "authority", f"the phase could not be kept: {error}", "make room, then try again")
    print(rotation.phase)
    progress().print(f"next: brownout ca status; then brownout ca rotate goes to {FOLLOWING[rotation.phase]}")


def agents_behind(authority: Authority, agents: Sequence[AgentLine]) -> list[tuple[Standing, str]]:
    """Agents that are in good standing and have not come along with the phase, and what each lacks."""
    known = [
        Standing(one.agent_id, one.host or "", one.seen_ns, one.trusts or "", one.generation, one.expires_ns or 0)
        for one in agents
        if one.withdrawn_as is None
    ]
    return laggards(authority.rotation, authority.bundle_digest, known, time.time_ns())


def _behind(authority: Authority, agents: Sequence[AgentLine]) -> list[dict[str, str]]:
    found = agents_behind(authority, agents)
    return [{"host": one.host or "(never seen)", "agent_id": one.agent_id, "lacks": lack} for one, lack in found]


def _list(behind: list[dict[str, str]]) -> None:
    for one in behind:
        progress().print(f"behind: {one['host']} ({one['agent_id']}): {one['lacks']}")
