"""The JSON Schema for editors: made from the catalogue, whole, and in step with what validates."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.observe import probe_kinds, watcher_kinds
from brownout_controller.language.experiment import ExperimentFile
from brownout_controller.language.findings import keys_of
from brownout_controller.language.schema import DIALECT, experiment_schema


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(experiment_schema()))
    return made


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(child)


def test_it_is_draft_07_and_knows_the_keys_of_the_language(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == DIALECT
    assert list(schema["properties"]) == keys_of(ExperimentFile)
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"version", "name", "faults"}


def test_every_reference_leads_somewhere_and_every_pattern_is_one(schema: dict[str, Any]) -> None:
    references = [node["$ref"] for node in _nodes(schema) if isinstance(node.get("$ref"), str)]
    assert references
    assert {reference.removeprefix("#/$defs/") for reference in references} <= schema["$defs"].keys()
    patterns = [node["pattern"] for node in _nodes(schema) if isinstance(node.get("pattern"), str)]
    assert all(re.compile(pattern) for pattern in patterns)


def test_nothing_in_it_is_internal(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    assert "\\u0000" not in text
    assert "_ms" not in text


def test_every_fault_stands_in_it_with_its_own_parameters(schema: dict[str, Any]) -> None:
    fault = schema["$defs"]["FaultSpec"]
    assert fault["properties"]["inject"]["enum"] == list(catalogue())
    by_kind = {
        rule["if"]["properties"]["inject"]["const"]: rule["then"]["properties"]["with"] for rule in fault["allOf"]
    }
    assert {kind: set(found["properties"]) for kind, found in by_kind.items()} == {
        kind: set(fault.Parameters.model_fields) for kind, fault in catalogue().items()
    }
    assert all(found["additionalProperties"] is False for found in by_kind.values())


def test_every_probe_and_watcher_stands_in_it(schema: dict[str, Any]) -> None:
    probe, watcher = schema["$defs"]["ProbeSpec"], schema["$defs"]["WatchSpec"]
    assert set(probe["properties"]) == {*probe_kinds(), "every", "from", "identity"}
    assert set(watcher["properties"]) == {*watcher_kinds(), "from"}
    assert probe["oneOf"] == [{"required": [kind]} for kind in probe_kinds()]


@pytest.mark.parametrize(
    ("written", "fits"),
    [("30s", True), ("2h45m", True), ("300ms", True), ("PT10M", True), ("30", False), ("1:30", False)],
)
def test_durations_are_described_as_people_write_them(schema: dict[str, Any], written: str, fits: bool) -> None:
    described = schema["$defs"]["FaultSpec"]["properties"]["for"]["anyOf"][0]
    assert described["type"] == "string"
    assert (re.search(described["pattern"], written) is not None) is fits
