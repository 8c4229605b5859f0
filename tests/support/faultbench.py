"""Holds one fault for a test, without agent, socket or journal: prepare, holder, meter, kill, undo, residue."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Fault, Host, Meter, Record
from brownout_agent.injector.holder import Holder
from brownout_agent.kernel.clock import boottime_ns


@dataclass
class Held:
    """A fault that is in effect."""

    fault: Fault[Any]
    record: Record[Any]
    holder: Holder
    meter: Meter


@asynccontextmanager
async def held(
    kind: str, host: Host | None = None, *, duration_s: float = 30.0, **parameters: Any
) -> AsyncIterator[Held]:
    """`async with held("cpu.load", percent=50) as it:` - in effect inside, undone and free of residue after it."""
    host = host or Host()
    fault = catalogue()[kind]
    model = fault.Parameters.model_validate(parameters)
    facts = fault.prepare(model, host)
    fault_id = str(uuid.uuid4())
    holder = await Holder.spawn(kind, fault_id)
    record: Record[Any] = Record(fault_id, model, facts, duration_s, (holder.key,))
    try:
        ends_ns = boottime_ns() + int(duration_s * 1e9)
        ready = await holder.go(parameters, facts, duration_s, lease_ends_ns=ends_ns, on_trial=False)
        holder.extend(ends_ns)
        record = Record(fault_id, model, {**facts, **ready.facts}, duration_s, holder.keys)
        yield Held(fault, record, holder, fault.measure(record, host))
    finally:
        await holder.end()
        fault.undo(record)
        left = fault.residue(record)
        assert not left, f"{kind} left residue: {left}"
