"""Undo one fault and look whether the kernel agrees. The one way, for injector, reaper and next start."""

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Fault, Record, Refusal
from brownout_agent.injector.holder import end_by_key
from brownout_agent.injector.journal import Entry
from brownout_agent.kernel.clock import boot_id
from brownout_agent.kernel.processes import ProcessKey


def undo_and_verify(fault: Fault[Any], record: Record[Any], holders: Iterable[ProcessKey]) -> list[str]:
    """Kill the holders, undo the rest, and read what is left from the kernel; empty is clean. Never raises OSError."""
    residue = [f"holder process {key.pid} outlived SIGKILL" for key in end_by_key(holders)]
    try:
        fault.undo(record)
    except (OSError, Refusal) as error:
        residue.append(f"undo of {fault.kind} failed: {error}")
    try:
        residue += fault.residue(record)
    except OSError as error:
        residue.append(f"the kernel could not be asked about {fault.kind}: {error}")
    return residue


def undo_entry(entry: Entry) -> list[str]:
    """Undo what a journal of a dead injector names; returns what is left."""
    if entry.boot_id != boot_id():
        return []  # all that our faults make lives in the kernel of one boot
    fault = catalogue().get(entry.kind)
    if fault is None:
        return [f"no fault `{entry.kind}` is installed here any more, so nothing can undo it"]
    try:
        parameters = fault.Parameters.model_validate(entry.parameters)
    except ValidationError as error:
        return [f"the parameters in the journal do not fit this version's {entry.kind}: {error}"]
    record = Record(entry.fault_id, parameters, entry.facts, entry.duration_s, entry.holders)
    return undo_and_verify(fault, record, entry.holders)
