"""Ceilings of a fault's parameters, written in a policy as people write them: `percent: 90`, `size: 2GiB`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from brownout_agent.faults.contract import Fault, FaultParameters, Refusal

Written = bool | int | float | str
"""A ceiling before it is known what it is a ceiling of."""


def has_parameter(fault: Fault[Any], name: str) -> bool:
    """Whether the fault has a parameter of this name."""
    return name in fault.Parameters.model_fields


def ceiling(fault: Fault[Any], name: str, written: Written) -> float:
    """The number that a ceiling means, in the unit in which the fault holds the parameter.

    Raises:
        ValueError: there is no such parameter, it is no quantity, or the text is none for it; says what to write.
    """
    fields = fault.Parameters.model_fields
    if name not in fields:
        raise ValueError(f"{fault.kind} has no parameter `{name}`; it has {', '.join(fields)}")
    annotation: Any = fields[name].annotation
    for constraint in fields[name].metadata:
        annotation = Annotated[annotation, constraint]
    try:
        value = TypeAdapter(annotation).validate_python(written)
    except ValidationError as error:
        raise ValueError(f"{name}: {error.errors()[0]['msg']}") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} of {fault.kind} is no quantity, so it can have no ceiling")
    return float(value)


def check_ceilings(
    fault: Fault[Any], parameters: FaultParameters, written: Mapping[str, Written], asked: Mapping[str, Any]
) -> None:
    """Let parameters pass that stay below every ceiling; `asked` is how the order wrote them.

    Raises:
        Refusal: one is above, or the order says how much by a parameter that has no ceiling where its like has one.
    """
    for name, most in written.items():
        if not has_parameter(fault, name):
            continue  # a ceiling of `*`, meant for other faults
        value = getattr(parameters, name)
        if value is not None:
            if value > ceiling(fault, name, most):
                raise Refusal(f"{fault.kind} with {name} {asked.get(name, value)}; this host allows at most {most}")
        elif name in fault.Parameters.one_of:
            chosen = next(other for other in fault.Parameters.one_of if getattr(parameters, other) is not None)
            if chosen not in written:
                reason = f"{fault.kind} says how much by `{chosen}`; this host has a ceiling for `{name}` ({most})"
                raise Refusal(reason, f"write `{name}` in the experiment, or a ceiling for `{chosen}` in the policy")
