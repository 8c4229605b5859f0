"""runs list, runs show, report: what has been."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from brownout_controller.analysis.verdict import judge
from brownout_controller.cli import remote, remote_runs
from brownout_controller.cli.fleet_access import open_store
from brownout_controller.cli.output import Format, ascii_only, console, fail, show, show_one
from brownout_controller.cli.settings import DataDir, Output, default_data_dir
from brownout_controller.exit_codes import ExitCode
from brownout_controller.reporting.console import summary
from brownout_controller.reporting.document import from_document
from brownout_controller.reporting.files import FORMATS, render
from brownout_controller.store.store import RunUnknown

app = typer.Typer(help="What has been run.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(help="the run's number; see `brownout runs list`")]


@app.command("list")
def list_runs(
    data_dir: DataDir = default_data_dir(),
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 20,
    output: Output = Format.TABLE,
) -> None:
    """The latest runs, newest first."""
    if (server := remote.chosen()) is not None:
        lines = remote_runs.runs(server, limit)
    else:
        with open_store(data_dir) as store:
            lines = [{**asdict(line), "run": line.number} for line in store.list_runs(limit)]
    rows = [
        {
            "run": line["run"],
            "name": line["name"],
            "verdict": line["verdict"] or "running, or its controller died",
            "exit_code": line["exit_code"],
            "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["started_ns"] / 1e9)),
            "operator": line["operator"],
            "headline": line["headline"],
        }
        for line in lines
    ]
    show(rows, ("run", "name", "verdict", "started", "operator"), output, "run")


@app.command("show")
def show_run(number: Number, data_dir: DataDir = default_data_dir(), output: Output = Format.TABLE) -> None:
    """One run: verdict, expectations, anatomy, effects, residue."""
    document = _load(data_dir, number)
    if output in {Format.JSON, Format.YAML}:
        show_one(document, output)
        return
    record = from_document(document)
    out = console()
    out.print(summary(record, judge(record), ascii_only=ascii_only(out)))


def report(
    number: Number,
    data_dir: DataDir = default_data_dir(),
    output: Annotated[str, typer.Option("--output", "-o", help=f"one of {', '.join(FORMATS)}")] = "html",
    to: Annotated[Path | None, typer.Option("--to", help="a file instead of stdout")] = None,
) -> None:
    """Make a run's report again, from what was kept."""
    if output not in FORMATS:
        raise typer.BadParameter(f"-o {output}: not one of {', '.join(FORMATS)}")
    record = from_document(_load(data_dir, number))
    text = render(record, judge(record), output)
    if to is None:
        print(text)
    else:
        to.write_text(text, encoding="utf-8")


def _load(data_dir: Path, number: int) -> dict[str, Any]:
    if (server := remote.chosen()) is not None:
        return remote_runs.document(server, number)
    with open_store(data_dir) as store:
        try:
            return store.load_document(number)
        except RunUnknown as error:
            fail(ExitCode.USAGE, "no-run", str(error))
