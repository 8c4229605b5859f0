"""The run as a JSON document: what was concluded, under stable keys, and the whole record, from which every report can
be made again. No NaN and no infinity: what nothing bounds is null.
"""

import json
import math
from typing import Any

from pydantic import TypeAdapter, ValidationError

from brownout_controller.analysis.anatomy import Anatomy
from brownout_controller.analysis.interval import Interval
from brownout_controller.analysis.marks import Mark, NotSeen
from brownout_controller.analysis.outages import Outage
from brownout_controller.analysis.verdict import Findings, find_unconfirmed
from brownout_controller.record import FaultOutcome, ResidueState, RunRecord
from brownout_controller.reporting.facts import impact_rows

SCHEMA = "brownout.run/1"
_RECORD = TypeAdapter(RunRecord)


def to_document(record: RunRecord, findings: Findings) -> dict[str, Any]:
    """The document as plain JSON values. Times are ns since the epoch (`_ns`), durations milliseconds (`_ms`)."""
    document = {
        "schema": SCHEMA,
        "run": record.run_id,
        "name": record.name,
        "hypothesis": record.hypothesis,
        "verdict": findings.verdict.value,
        "exit_code": int(findings.exit_code),
        "headline": findings.headline,
        "reasons": list(findings.reasons),
        "expectations": [
            {
                "name": result.name,
                "text": result.text,
                "verdict": result.verdict.value,
                "measured": _interval(result.measured),
                "unit": result.unit,
                "evidence": result.evidence,
                "vantage": result.vantage,
            }
            for result in findings.expectations
        ],
        "anatomy": [_anatomy(anatomy) for anatomy in findings.anatomies],
        "outages": [_outage(outage) for outage in findings.outages],
        "effects": [_effect(fault) for fault in record.faults],
        "effects_summary": findings.effects_summary,
        "residue": _residue(record),
        "undo_summary": findings.undo_summary,
        "impact": [{field: getattr(row, field) for field in row.__dataclass_fields__} for row in impact_rows(record)],
        "record": _RECORD.dump_python(record, mode="json"),
    }
    return {key: _finite(value) for key, value in document.items()}


def to_json(record: RunRecord, findings: Findings) -> str:
    """The document as text, ASCII only."""
    return json.dumps(to_document(record, findings), allow_nan=False) + "\n"


def from_document(document: dict[str, Any]) -> RunRecord:
    """The record inside a document: judge and draw it again.

    Raises:
        ValueError: not a document of this kind; the text says what is missing or wrong.
    """
    if document.get("schema") != SCHEMA:
        raise ValueError(f"not a run of Brownout: `schema` is {document.get('schema')!r}, expected {SCHEMA!r}")
    try:
        return _RECORD.validate_python(document.get("record"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"not a complete run of Brownout: record.{where}: {first['msg']}") from error


def _interval(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}


def _anatomy(anatomy: Anatomy) -> dict[str, Any]:
    return {
        "fault": anatomy.fault,
        "hosts": list(anatomy.hosts),
        "probe": anatomy.probe,
        "vantage": anatomy.vantage,
        "marks": {mark.name.value: _mark(mark) for mark in anatomy.marks},
        "durations_ms": {one.name: _interval(one.ms) for one in anatomy.durations},
        "notes": list(anatomy.notes),
    }


def _mark(mark: Mark | NotSeen) -> dict[str, Any]:
    if isinstance(mark, NotSeen):
        return {"at_ns": None, "reason": mark.reason}
    return {
        "at_ns": mark.at_ns,
        "earliest_ns": mark.earliest_ns,
        "latest_ns": mark.latest_ns,
        "source": mark.source,
    }


def _outage(outage: Outage) -> dict[str, Any]:
    return {
        "probe": outage.probe,
        "vantage": outage.vantage,
        "begun_ns": outage.begun_ns,
        "ended_ns": None if outage.open else outage.ended_ns,
        "open": outage.open,
        "duration_ms": _interval(outage.duration_ms),
        "failures": outage.failures,
        "outcomes": dict(outage.outcomes),
    }


def _effect(fault: FaultOutcome) -> dict[str, Any]:
    return {
        "fault": fault.name,
        "kind": fault.kind,
        "host": fault.host,
        "asked": fault.asked,
        "achieved": fault.achieved,
        "unit": fault.unit,
        "proved": fault.proved,
        "explanation": fault.explanation,
        "undo": fault.undo,
    }


def _residue(record: RunRecord) -> dict[str, Any]:
    """`state` is the worst of all; "not_audited" for a run that injected nothing, or of before there was an audit."""
    unconfirmed = find_unconfirmed(record)
    states = {found.state for found in record.residue} | {
        ResidueState.RESIDUE if fault.undo == "residue" else ResidueState.UNKNOWN for fault in unconfirmed.faults
    }
    order = (ResidueState.RESIDUE, ResidueState.UNKNOWN, ResidueState.CLEAN)
    return {
        "state": next((state.value for state in order if state in states), "not_audited"),
        "hosts": [
            {
                "host": found.host,
                "state": found.state.value,
                "left": list(found.left),
                "changed_meanwhile": list(found.changed_meanwhile),
                "unread": list(found.unread),
            }
            for found in record.residue
        ],
        "faults": [
            {"fault": fault.name, "host": fault.host, "undo": fault.undo, "left": list(fault.residue)}
            for fault in unconfirmed.faults
        ],
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
