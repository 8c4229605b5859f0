"""How people write single values: each form checks, converts, and is described once for messages and for the schema."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from brownout_agent.quantities import (
    format_duration_ms,
    parse_byte_rate,
    parse_duration_ms,
    parse_percent,
    parse_size_bytes,
)
from pydantic import BeforeValidator, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from brownout_controller.language import later
from brownout_controller.language.expectations import Expectation, InvalidExpectation, parse_expectation
from brownout_controller.language.selectors import Pick, Selector

LONGEST_MS = 24 * 3_600_000.0
"""No duration in an experiment is longer than a day."""
NAME_PATTERN = r"^[a-z0-9-]{1,63}$"


def refusal(code: str, message: str, label: str = "", part: tuple[int, int] | None = None) -> PydanticCustomError:
    """The error to raise, which pydantic carries to its place in the file. Braces in texts are literal.

    `part` is the start and end of what is wrong within the value's text; all of it if None.
    """
    return PydanticCustomError(code, "{text}", {"text": message, "label": label, "part": part})


def reworded(code: str, error: ValueError) -> PydanticCustomError:
    """The refusal of a plain ValueError, whose text is `what is wrong; what to write`."""
    message, _, label = str(error).partition("; ")
    return refusal(code, message, label)


def duration(value: object) -> float:
    """Milliseconds of a duration from 0 to a day."""
    try:
        milliseconds = parse_duration_ms(value)
    except ValueError as error:
        raise reworded("bad-duration", error) from error
    if milliseconds > LONGEST_MS:
        raise refusal(
            "bad-duration", f"`{value}` is longer than {format_duration_ms(LONGEST_MS)}", "write a shorter duration"
        )
    return milliseconds


def positive_duration(value: object) -> float:
    """Milliseconds of a duration above 0, to a day."""
    milliseconds = duration(value)
    if milliseconds == 0:
        raise refusal("bad-duration", f"`{value}` is no time at all", "write a longer duration")
    return milliseconds


def expectation(value: object) -> Expectation:
    """The expectation of its text."""
    if not isinstance(value, str):
        raise refusal("wrong-type", "an expectation is text", 'write it like "outage < 5s"')
    try:
        return parse_expectation(value)
    except InvalidExpectation as error:
        part = (error.start, error.end)
        if (metric := value[error.start : error.end]) in later.METRICS:
            raise refusal("not-yet", f"this version has no metric `{metric}`", part=part) from error
        raise refusal(error.code, error.message, error.hint, part) from error


def selector(value: object) -> Selector:
    """The selector of its text."""
    if not isinstance(value, str):
        raise refusal("bad-selector", "a selector is text", "write it like role=app")
    try:
        return Selector.parse(value)
    except ValueError as error:
        raise reworded("bad-selector", error) from error


def pick(value: object) -> Pick:
    """The pick of a number, `all`, or a percentage."""
    try:
        return Pick.parse(value)
    except ValueError as error:
        raise reworded("bad-pick", error) from error


def strict_booleans(types: Mapping[str, object], written: Mapping[str, Any]) -> dict[str, Any]:
    """What was written, with a thing that pydantic refuses wherever neither true nor false stands for a boolean.

    pydantic takes `no`, `off`, 0 and more for false; here they are a text and a number, and not booleans.
    """
    refused: object = []
    return {
        name: refused if types.get(name) in (bool, bool | None) and not isinstance(value, bool) else value
        for name, value in written.items()
    }


def one_or_more(value: object) -> object:
    """A list, of a list or of a single text."""
    return [value] if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(duration)]
PositiveDuration = Annotated[float, BeforeValidator(positive_duration)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
SelectorForm = Annotated[Selector, BeforeValidator(selector), PlainSerializer(str, return_type=str)]
PickForm = Annotated[Pick, BeforeValidator(pick), PlainSerializer(str, return_type=str)]
ExpectationForm = Annotated[Expectation, BeforeValidator(expectation)]

_DURATION_SCHEMA = {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(us|ms|s|m|h|d))+$|^PT?[0-9].*$"}
SCHEMAS: Mapping[Callable[..., object], dict[str, Any]] = {
    duration: _DURATION_SCHEMA,
    positive_duration: _DURATION_SCHEMA,
    parse_duration_ms: _DURATION_SCHEMA,
    parse_size_bytes: {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? *([KMGTkmgt][iI]?)?[bB]$"},
    parse_byte_rate: {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? *([KMGTkmgt][iI]?)?[bB] */s$"},
    parse_percent: {
        "anyOf": [
            {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
            {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?%?$"},
        ]
    },
    expectation: {"type": "string", "pattern": r"^\s*[a-z0-9_]+\s*(<=|>=|==|!=|<|>)\s*\S+"},
    selector: {"type": "string", "minLength": 1, "examples": ["role=app", "app=postgres,role!=replica"]},
    pick: {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^all$|^[0-9]+(\.[0-9]+)?%$"}]},
}
"""The JSON Schema of what people write, by the function that reads it."""
