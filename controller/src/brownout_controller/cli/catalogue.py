"""faults list, explain: what can be injected, generated from the faults themselves."""

from typing import Annotated, Any

import typer
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Fault
from pydantic_core import PydanticUndefined

from brownout_controller.cli.output import Format, fail, show
from brownout_controller.cli.settings import Output
from brownout_controller.exit_codes import ExitCode
from brownout_controller.language.nearest import nearest

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


def explain(name: Annotated[str, typer.Argument(help="a fault, such as cpu.load")]) -> None:
    """What a fault does, its parameters, and who ends it when everything of ours is dead."""
    fault = catalogue().get(name)
    if fault is None:
        similar = nearest(name, catalogue())
        fail(
            ExitCode.USAGE,
            "unknown-fault",
            f"there is no fault `{name}`",
            f"brownout explain {similar}" if similar else "brownout faults list",
        )
    print(f"{fault.kind}: {fault.summary}\n")
    for parameter in _parameters(fault):
        default = "required" if parameter["required"] else f"default {parameter['default']}"
        print(f"  {parameter['name']:<12} {parameter['description']} ({default})")
    print(f"\nEnds: {fault.reverts}")


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
