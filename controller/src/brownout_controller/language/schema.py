"""The JSON Schema (draft-07) of an experiment file, for editors. Made from the same models that validate.

A schema can say less than `brownout validate`: names that must exist elsewhere, orders, variables inside numbers.
"""

from collections.abc import Callable, Mapping
from typing import Any

from brownout_agent.faults import catalogue
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from brownout_controller.language import observers
from brownout_controller.language.expectations import Observer
from brownout_controller.language.experiment import KIND_KEY, SETTINGS_KEY, ExperimentFile
from brownout_controller.language.forms import SCHEMAS, one_or_more, positive_duration

DIALECT = "http://json-schema.org/draft-07/schema#"


def experiment_schema() -> dict[str, Any]:
    """The schema of a whole experiment file, with every fault, probe and watcher that is installed."""
    schema = ExperimentFile.model_json_schema(schema_generator=_Written)
    definitions: dict[str, Any] = schema["$defs"]
    _add_kinds(definitions["ProbeSpec"], Observer.PROBE)
    _add_kinds(definitions["WatchSpec"], Observer.WATCHER)
    _add_faults(definitions)
    return {"$schema": DIALECT, "title": "Brownout experiment", **{k: v for k, v in schema.items() if k != "title"}}


class _Written(GenerateJsonSchema):
    """Describes what people write instead of what it becomes. Defaults stand in the descriptions, with their units."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        function: Callable[..., object] = schema["function"]["function"]
        if function in SCHEMAS:
            return _or_variable(SCHEMAS[function])
        inner = super().function_before_schema(schema)
        return {"anyOf": [inner["items"], inner]} if function is one_or_more else inner

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return _or_variable(super().int_schema(schema))

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return _or_variable(super().float_schema(schema))

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return _or_variable(super().bool_schema(schema))

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return _or_variable(super().literal_schema(schema))

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def _or_variable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Instead of any single value a variable may stand."""
    return {"anyOf": [dict(schema), {"type": "string", "pattern": r"^\$\{vars\.[a-z0-9-]+\}$"}]}


def _add_kinds(section: dict[str, Any], observer: Observer) -> None:
    for key in (KIND_KEY, SETTINGS_KEY):
        section["properties"].pop(key)
        section["required"].remove(key)
    kinds = observers.kinds(observer)
    section["properties"] |= {kind: _settings_schema(cls) for kind, cls in kinds.items()}
    section["oneOf"] = [{"required": [kind]} for kind in kinds]


def _settings_schema(cls: type[Any]) -> dict[str, Any]:
    described = TypeAdapter(cls).json_schema(schema_generator=_Written)["properties"]
    fields, docs = observers.fields_by_key(cls), observers.field_docs(cls)
    properties = {
        key: {
            **(_or_variable(SCHEMAS[positive_duration]) if field.name.endswith("_ms") else described[field.name]),
            "description": docs.get(key, ""),
        }
        for key, field in fields.items()
    }
    required = [key for key, field in fields.items() if not observers.has_default(field)]
    mapping = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if len(required) > 1:
        return {**mapping, "description": cls.summary}
    return {"anyOf": [properties[next(iter(fields))], mapping], "description": cls.summary}


def _add_faults(definitions: dict[str, Any]) -> None:
    section = definitions["FaultSpec"]
    section["required"].remove("name")
    section["properties"]["inject"]["enum"] = list(catalogue())
    section["allOf"] = []
    for kind, fault in catalogue().items():
        parameters = fault.Parameters.model_json_schema(schema_generator=_Written)
        definitions |= parameters.pop("$defs", {})
        then: dict[str, Any] = {"properties": {"with": {**parameters, "description": fault.summary}}}
        if parameters.get("required"):
            then["required"] = ["with"]
        section["allOf"].append({"if": {"properties": {"inject": {"const": kind}}}, "then": then})
