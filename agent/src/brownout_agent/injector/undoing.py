"""Undo one fault and look whether the kernel agrees. The one way, for injector, reaper and next start."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Fault, Record, Refusal
from brownout_agent.injector.holder import end_by_key
from brownout_agent.injector.journal import Entry
from brownout_agent.kernel.clock import boot_id
from brownout_agent.kernel.processes import ProcessKey

UNDO_TIMEOUT_S = 20.0
"""An undo that takes longer is told as residue, and goes on."""

log = logging.getLogger(__name__)


def undo_and_verify(fault: Fault[Any], record: Record[Any], holders: Iterable[ProcessKey]) -> list[str]:
    """Kill the holders, undo the rest, and read what is left from the kernel; empty is clean.

    Whatever is raised on the way, a fault's mistakes included, is residue: not clean, told, and tried again.
    """
    residue = _tried("its holder could not be killed", lambda: outlived(end_by_key(holders, fault.parting_s)))
    residue += _tried(f"undo of {fault.kind} failed", lambda: _undo(fault, record))
    residue += _tried(f"the kernel could not be asked about {fault.kind}", lambda: fault.residue(record))
    return residue


def outlived(holders: Iterable[ProcessKey]) -> list[str]:
    """Residue of holders that should be dead."""
    return [f"holder process {key.pid} outlived SIGKILL" for key in holders]


def _undo(fault: Fault[Any], record: Record[Any]) -> list[str]:
    fault.undo(record)
    return []  # what it left is asked of the kernel


def _tried(what: str, work: Callable[[], list[str]]) -> list[str]:
    try:
        return list(work())  # a fault that forgets to say what is left has not said that nothing is
    except (OSError, Refusal) as error:
        return [f"{what}: {error}"]
    except Exception as error:
        log.exception("%s", what)
        return [f"{what}: {type(error).__name__}: {error}"]


def undo_entry(entry: Entry) -> list[str]:
    """Undo what a journal of a dead injector names; returns what is left, in words of its own also when it raises."""
    return _tried(f"{entry.kind} could not be undone", lambda: _undo_entry(entry))


def _undo_entry(entry: Entry) -> list[str]:
    fault = catalogue().get(entry.kind)
    is_of_this_boot = entry.boot_id == boot_id()
    if not is_of_this_boot and not (fault and fault.outlives_reboot):
        return []  # all that it made lived in the kernel of that boot
    if fault is None:
        return [f"no fault `{entry.kind}` is installed here any more, so nothing can undo it"]
    try:
        parameters = fault.Parameters.model_validate(entry.parameters)
    except ValidationError as error:
        return [f"the parameters in the journal do not fit this version's {entry.kind}: {error}"]
    holders = entry.holders if is_of_this_boot else ()  # their numbers are somebody else's by now
    record = Record(entry.fault_id, parameters, entry.facts, entry.duration_s, holders)
    return undo_and_verify(fault, record, holders)
