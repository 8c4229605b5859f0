"""audit list, verify, export: who did what, and whether the log of it is what was written."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from brownout_agent.chain import Link, read_line

from brownout_controller.audit.checkpoint import Checkpoint, CheckpointError, known_key, read_exported
from brownout_controller.audit.entry import Outcome
from brownout_controller.audit.verifying import Verified, verify
from brownout_controller.cli import remote
from brownout_controller.cli.fleet_access import open_store
from brownout_controller.cli.output import Format, fail, progress, show, show_one
from brownout_controller.cli.settings import DataDir, Output, default_data_dir
from brownout_controller.exit_codes import ExitCode
from brownout_controller.serving import authority_folder
from brownout_controller.store.audit import AuditStore

app = typer.Typer(help="The audit log: who did what, from where, and what became of it.", no_args_is_help=True)

_BREAKS_TOLD = 20


@app.command("list")
def list_entries(
    data_dir: DataDir = default_data_dir(),
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000, help="so many at most, newest first")] = 50,
    actor: Annotated[str, typer.Option("--actor", help="only of these: user:mary, agent:ID, local:root")] = "",
    action: Annotated[str, typer.Option("--action", help="only these: run.start, agent.session")] = "",
    outcome: Annotated[Outcome | None, typer.Option("--outcome", help="only these")] = None,
    output: Output = Format.TABLE,
) -> None:
    """The latest entries, newest first."""
    only = {name: value for name, value in (("actor", actor), ("action", action), ("outcome", outcome)) if value}
    if (server := remote.chosen()) is not None:
        with remote.connect(server) as api:
            rows = api.get("/audit", limit=min(limit, 200), **only)["items"]
    else:
        with open_store(data_dir) as store:
            rows = AuditStore(store.database).newest(limit, only)
    if output is Format.TABLE:
        rows = [{**row, "at": _when(row["at_ns"])} for row in rows]
    show(rows, ("sequence", "at", "actor", "action", "subject", "outcome", "origin", "reason"), output, "sequence")


@app.command("verify")
def verify_log(
    data_dir: DataDir = default_data_dir(),
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            "--checkpoints", exists=True, file_okay=False, help="exported ones (--audit-export): catches a log cut off"
        ),
    ] = None,
    key: Annotated[
        list[str], typer.Option("--key", metavar="HEX", help="believe this public key beside this machine's own")
    ] = [],  # noqa: B006 - typer wants a literal default
    file: Annotated[
        Path | None,
        typer.Option("--file", exists=True, dir_okay=False, help="this export, or this host's copy, instead"),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Go along the whole log. Exit code 4 when an entry was changed, moved or left out, or the log cut off."""
    keys = {*key, _own_key(data_dir)} - {""}
    signed = _exported(checkpoints)
    if file is not None:
        found = _verify_file(file, signed, keys)
    else:
        with open_store(data_dir) as store:
            audit = AuditStore(store.database)
            # Its end as it is now: who appends while the chain is read must not look like somebody who cuts it off.
            end = audit.head()
            links = (one for one in audit.links() if one.sequence <= end.sequence)
            kept = [one for one in audit.checkpoints() if one.sequence <= end.sequence]
            found = verify(links, [*signed, *kept], keys, (end.sequence, end.hash))
    _tell(found, output)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="a new file, one JSON object a line", readable=False)],
    after: Annotated[int, typer.Option("--after", min=0, help="only entries after this one")] = 0,
    data_dir: DataDir = default_data_dir(),
) -> None:
    """Write the log into a file that `brownout audit verify --file` reads."""
    count = 0
    with open_store(data_dir) as store:
        try:
            with file.open("x", encoding="ascii") as target:
                for one in AuditStore(store.database).links(after):
                    target.write(one.line() + "\n")
                    count += 1
        except OSError as error:
            fail(ExitCode.REFUSED, "file", f"{file} cannot be written: {error.strerror}", "choose another file")
    print(f"{count} entries in {file}")


def _own_key(data_dir: Path) -> str:
    try:
        return known_key(authority_folder(data_dir))
    except (CheckpointError, OSError) as error:
        fail(ExitCode.REFUSED, "audit-key", str(error))


def _exported(folder: Path | None) -> list[Checkpoint]:
    if folder is None:
        return []
    try:
        found = read_exported(folder)
    except (CheckpointError, OSError) as error:
        fail(ExitCode.REFUSED, "checkpoints", str(error), "brownout audit verify, with a folder of checkpoints alone")
    if not found:
        fail(ExitCode.USAGE, "usage", f"{folder} holds no checkpoint; brownout server start --audit-export writes them")
    return found


def _verify_file(file: Path, signed: list[Checkpoint], keys: set[str]) -> Verified:
    try:
        with file.open(encoding="ascii") as lines:
            return verify(_links(lines), signed, keys)
    except (OSError, ValueError) as error:
        fail(ExitCode.REFUSED, "file", f"{file} is no audit log: {error}")


def _links(lines: Iterator[str]) -> Iterator[Link]:
    for line in lines:
        yield read_line(line)


def _tell(found: Verified, output: Format) -> None:
    document: dict[str, Any] = {
        "sound": found.sound,
        "first": found.first,
        "records": found.records,
        "sealed": found.sealed,
        "breaks": [{"sequence": one.sequence, "why": one.why} for one in found.breaks],
    }
    if output in {Format.JSON, Format.YAML}:
        show_one(document, output)
    elif found.sound:
        print(f"sound: {found.records} records from {found.first} on, signed up to {found.sealed}")
        last = found.first + found.records - 1
        if found.records and found.sealed < last:
            progress().print(f"{last - found.sealed} later ones have no checkpoint yet: whoever writes to the database "
                             "could still have made them anew")  # fmt: skip
    if not found.sound:
        told = [str(one) for one in found.breaks[:_BREAKS_TOLD]]
        more = [f"and {len(found.breaks) - _BREAKS_TOLD} more"] if len(found.breaks) > _BREAKS_TOLD else []
        message = "\n".join(["the audit log is not what was written", *told, *more])
        fail(ExitCode.REFUSED, "tampered", message, "compare with a backup: brownout data backup, restore")


def _when(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="milliseconds")
