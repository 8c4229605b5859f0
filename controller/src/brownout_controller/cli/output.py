"""Printing: tables, JSON, YAML or names on stdout; everything else on stderr."""

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NoReturn

import typer
import yaml
from rich.console import Console
from rich.table import Table

from brownout_controller.exit_codes import ExitCode
from brownout_controller.reporting.visible import visible


class Format(StrEnum):
    """How a read is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class _Calm(Console):
    """Where nobody reads any more, the work goes on in silence, and its exit code stands."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def console() -> Console:
    """Results."""
    return _Calm(highlight=False, markup=False)


def progress() -> Console:
    """What is going on, and what went wrong. In a log a line stays one line."""
    return _Calm(stderr=True, highlight=False, markup=False, soft_wrap=not sys.stderr.isatty())


def ascii_only(target: Console) -> bool:
    """Whether the terminal's encoding has no symbols beyond ASCII."""
    return not (target.encoding or "").lower().startswith("utf")


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], form: Format, name: str) -> None:
    """Print a list: chosen columns as a table, everything as JSON or YAML, or the `name` column alone."""
    match form:
        case Format.JSON:
            print(json.dumps(list(rows), indent=2))
        case Format.YAML:
            print(yaml.safe_dump([dict(row) for row in rows], sort_keys=False, allow_unicode=True), end="")
        case Format.NAME:
            for row in rows:
                print(visible(row[name]))
        case Format.TABLE:
            table = Table(*[column.upper().replace("_", " ") for column in columns], box=None, pad_edge=False)
            for row in rows:
                table.add_row(*(visible("" if row[column] is None else row[column]) for column in columns))
            console().print(table)


def show_one(document: Mapping[str, Any], form: Format) -> None:
    """Print one document as JSON or YAML."""
    if form is Format.YAML:
        print(yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True), end="")
    else:
        print(json.dumps(document, indent=2))


def fail(code: ExitCode, kind: str, message: str, help_text: str = "") -> NoReturn:
    """Say what went wrong and what to do next, and end with the code."""
    first, *rest = message.splitlines() or [""]
    print(f"error[{kind}]: {visible(first)}", file=sys.stderr)
    for line in rest:
        print(f"  | {visible(line)}", file=sys.stderr)
    if help_text:
        print(f"  = next: {visible(help_text)}", file=sys.stderr)
    raise typer.Exit(int(code))
