"""Settings of probes and watchers, checked against the dataclasses that the agent will run them with.

A field `timeout_ms` is the key `timeout` in a file, and its value a duration. `identity_header` is not a key of the
kind: it is written as `identity: {header: ...}` beside it.
"""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from brownout_agent.observe import probe_kinds, watcher_kinds
from pydantic import TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from brownout_controller.language import later
from brownout_controller.language.expectations import Observer
from brownout_controller.language.forms import positive_duration, refusal, reworded, strict_booleans
from brownout_controller.language.nearest import nearest

IDENTITY_FIELD = "identity_header"

_LATER = {Observer.PROBE: later.PROBES, Observer.WATCHER: later.WATCHERS}


def kinds(observer: Observer) -> dict[str, type[Any]]:
    """Every kind of probe, or of watcher, that this version can run."""
    return probe_kinds() if observer is Observer.PROBE else watcher_kinds()


def fields_by_key(cls: type[Any]) -> dict[str, "dataclasses.Field[Any]"]:
    """The fields of a kind's settings, by the keys that people write."""
    return {field.name.removesuffix("_ms"): field for field in dataclasses.fields(cls) if field.name != IDENTITY_FIELD}


def has_default(field: "dataclasses.Field[Any]") -> bool:
    """Whether a setting may be left out."""
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def check_kind(observer: Observer, kind: str) -> str:
    """The kind itself, if this version can run it.

    Raises:
        PydanticCustomError: `not-yet` or `unknown-kind`.
    """
    known = kinds(observer)
    if kind in known:
        return kind
    if kind in _LATER[observer]:
        raise refusal("not-yet", f"this version has no {observer} of kind `{kind}`", f"it has {_listed(known)}")
    similar = nearest(kind, known)
    label = f"did you mean `{similar}`?" if similar else f"this version has {_listed(known)}"
    raise refusal("unknown-kind", f"there is no {observer} of kind `{kind}`", label)


def check_settings(observer: Observer, kind: str, written: object, identity: str = "") -> dict[str, Any]:
    """Every field of the kind's dataclass as plain data, from what was written or from its default.

    A text instead of a mapping is the kind's first field: `http: "http://..."` is `http: {url: "http://..."}`.

    Raises:
        ValidationError: unknown, missing or wrong keys, each with its place below `written`.
    """
    cls = kinds(observer)[kind]
    fields = fields_by_key(cls)
    short = not isinstance(written, Mapping)
    values: Mapping[str, Any] = written if isinstance(written, Mapping) else {next(iter(fields)): written}
    types = {key: field.type for key, field in fields.items()}
    converted, problems = _convert(strict_booleans(types, values), fields)
    if identity:
        converted[IDENTITY_FIELD] = identity
    adapter = TypeAdapter(cls)
    try:
        instance = adapter.validate_python(converted)
    except ValidationError as error:
        problems += [_moved(found, written, short) for found in error.errors(include_url=False)]
    if problems:
        raise ValidationError.from_exception_data(kind, problems)
    plain: dict[str, Any] = adapter.dump_python(instance, mode="json")
    return plain


def _convert(
    values: Mapping[str, Any], fields: Mapping[str, "dataclasses.Field[Any]"]
) -> tuple[dict[str, Any], list[InitErrorDetails]]:
    converted: dict[str, Any] = {}
    problems: list[InitErrorDetails] = []
    for key, value in values.items():
        if key not in fields:
            problems.append(InitErrorDetails(type="extra_forbidden", loc=(key,), input=value))
            continue
        name = fields[key].name
        try:
            converted[name] = positive_duration(value) if name.endswith("_ms") else value
        except PydanticCustomError as error:
            problems.append(InitErrorDetails(type=error, loc=(key,), input=value))
            converted[name] = 1.0  # a good value, so that only the other fields are found wrong below
    return converted, problems


def _moved(found: Any, written: object, short: bool) -> InitErrorDetails:
    """A finding of the dataclass, at the key that people wrote."""
    loc: tuple[int | str, ...] = found["loc"]
    if loc:
        loc = (str(loc[0]).removesuffix("_ms"), *loc[1:])
    elif isinstance(written, Mapping):
        loc = tuple(_named_keys(str(found["msg"]), written))[:1]
    if short and found["type"] != "missing":
        loc = ()
    if found["type"] == "value_error":
        return InitErrorDetails(type=reworded("bad-value", found["ctx"]["error"]), loc=loc, input=found["input"])
    return InitErrorDetails(type=found["type"], loc=loc, input=found["input"], ctx=found.get("ctx", {}))


def _named_keys(message: str, written: Mapping[str, Any]) -> Iterator[str]:
    """The keys that a dataclass's own ValueError speaks of; its text begins with the field's name."""
    words = [word.strip("`'\",:") for word in message.removeprefix("Value error, ").split()]
    for word in words:
        for key in (word.removesuffix("_ms"), f"{word}s"):
            if key in written:
                yield key


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def field_docs(cls: type[Any]) -> dict[str, str]:
    """What the text under each field of a dataclass says of it, by the keys that people write."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, text in pairwise(definition.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                docs[name.removesuffix("_ms")] = " ".join(doc.split()).replace(", in milliseconds", "")
    return docs
