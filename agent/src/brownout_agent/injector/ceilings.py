"""Ceilings and floors of a fault's parameters, as people write them in a policy: `percent: 90`, `size: 2GiB`."""

import operator
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from brownout_agent.faults.contract import Fault, FaultParameters, Refusal

Written = bool | int | float | str
"""A ceiling or a floor before it is known what it is one of."""


def has_parameter(fault: Fault[Any], name: str) -> bool:
    """Whether the fault has a parameter of this name."""
    return name in fault.Parameters.model_fields


def ceiling(fault: Fault[Any], name: str, written: Written) -> float:
    """The number that a ceiling, or a floor, means, in the unit in which the fault holds the parameter.

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
        raise ValueError(f"{name} of {fault.kind} is no quantity, so it has no most and no least")
    return float(value)


def check_ceilings(
    fault: Fault[Any], parameters: FaultParameters, written: Mapping[str, Written], asked: Mapping[str, Any]
) -> None:
    """Let parameters pass that stay below every ceiling; `asked` is how the order wrote them.

    Raises:
        Refusal: one is above, or the order says how much by a parameter that has no ceiling where its like has one.
    """
    _check(fault, parameters, written, asked, operator.gt, "at most", "ceiling")


def check_floors(
    fault: Fault[Any], parameters: FaultParameters, written: Mapping[str, Written], asked: Mapping[str, Any]
) -> None:
    """As `check_ceilings`, of what does the more harm the smaller it is.

    Raises:
        Refusal: one is below, or the order says how much by a parameter that has no floor where its like has one.
    """
    _check(fault, parameters, written, asked, operator.lt, "at least", "floor")


def _check(
    fault: Fault[Any],
    parameters: FaultParameters,
    written: Mapping[str, Written],
    asked: Mapping[str, Any],
    is_beyond: Callable[[float, float], bool],
    bound: str,
    noun: str,
) -> None:
    for name, allowed in written.items():
        if not has_parameter(fault, name):
            continue  # a bound of `*`, meant for other faults
        value = getattr(parameters, name)
        if value is not None:
            if is_beyond(value, ceiling(fault, name, allowed)):
                raise Refusal(f"{fault.kind} with {name} {asked.get(name, value)}; this host allows {bound} {allowed}")
        elif name in fault.Parameters.one_of:
            chosen = next(other for other in fault.Parameters.one_of if getattr(parameters, other) is not None)
            if chosen not in written:
                reason = f"{fault.kind} says how much by `{chosen}`; this host has a {noun} for `{name}` ({allowed})"
                raise Refusal(reason, f"write `{name}` in the experiment, or a {noun} for `{chosen}` in the policy")
