"""faults list, explain, schema: what can be injected, generated from the faults themselves."""

import json
from typing import Annotated, Any

import typer
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Fault
from pydantic_core import PydanticUndefined

from brownout_controller.cli import explain as topics
from brownout_controller.cli.output import Format, fail, show
from brownout_controller.cli.settings import Output
from brownout_controller.exit_codes import ExitCode
from brownout_controller.language.schema import experiment_schema

app = typer.Typer(help="The fault catalogue.", no_args_is_help=True)


@app.command("list")
def list_faults(output: Output = Format.TABLE) -> None:
    """Every fault with its parameters."""
    rows = [
        {
            "name": kind,
            "family": kind.partition(".")[0],
            "summary": fault.summary,
            "parameters": _parameters(fault) if output in {Format.JSON, Format.YAML} else ", ".join(_names(fault)),
        }
        for kind, fault in catalogue().items()
    ]
    show(rows, ("name", "summary", "parameters"), output, "name")


def explain(
    name: Annotated[str, typer.Argument(help="a key, fault, probe, watcher or metric: faults.for, cpu.load, outage")],
) -> None:
    """What a key of the experiment file, a fault, a probe, a watcher or a metric means."""
    try:
        print(topics.explain(name).render())
    except topics.UnknownTopic as error:
        fail(ExitCode.USAGE, "unknown-topic", str(error))


def schema() -> None:
    """The JSON Schema (draft-07) of experiment files, for editors."""
    print(json.dumps(experiment_schema(), indent=2))


def _names(fault: Fault[Any]) -> list[str]:
    return [field.alias or name for name, field in fault.Parameters.model_fields.items()]


def _parameters(fault: Fault[Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": field.alias or name,
            "description": field.description or "",
            "required": field.is_required(),
            "default": None if field.default is PydanticUndefined else _plain(field.default),
        }
        for name, field in fault.Parameters.model_fields.items()
    ]


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else str(value)
