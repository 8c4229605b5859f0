"""One fault that the supervisor looks after, and what listeners are told of it and of those that are over."""

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from brownout_agent.faults.contract import Effect, Fault, FaultParameters, Host, Record
from brownout_agent.injector.deadlines import Deadlines
from brownout_agent.injector.holder import Holder
from brownout_agent.injector.journal import Entry, Mark
from brownout_agent.injector.lifecycle import Cause
from brownout_agent.injector.measuring import Readings
from brownout_agent.injector.order import Order
from brownout_agent.injector.trial import Trial
from brownout_agent.kernel.clock import boottime_ns


@dataclass(frozen=True, slots=True)
class FaultStatus:
    """What listeners are told of one fault."""

    fault_id: str
    kind: str
    state: Mark
    at_boottime_ns: int
    """When it came to this state, by the journal; not when somebody asked."""
    cause: str = ""
    message: str = ""
    residue: tuple[str, ...] = ()
    effect: Effect | None = None


@dataclass(slots=True)
class Live:
    """A fault that this process looks after."""

    order: Order
    fault: Fault[Any]
    parameters: FaultParameters
    facts: dict[str, Any]
    host: Host
    deadlines: Deadlines
    state: Mark | None = None
    trial: Trial | None = None
    """While it is on trial."""
    holder: Holder | None = None
    readings: Readings | None = None
    looked_ns: int = 0
    """When it was last measured or, with residue, last undone."""
    undo: Future[list[str]] | None = None
    """The undo that is at work. One that hangs is waited for again and never doubled."""
    cause: str = ""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def as_record(self) -> Record[Any]:
        """What the journal knows of it, as its fault wants it."""
        keys = self.holder.keys if self.holder else ()
        return Record(self.order.fault_id, self.parameters, self.facts, self.order.duration_s, keys)

    def status(self, entry: Entry | None, message: str) -> FaultStatus:
        """What to tell of it; `entry` is the journal's, where it has one."""
        return FaultStatus(
            fault_id=self.order.fault_id,
            kind=self.order.kind,
            state=self.state or Mark.RECORDED,
            at_boottime_ns=entry.at_boottime_ns if entry and entry.mark is self.state else boottime_ns(),
            cause=self.cause,
            message=message,
            residue=entry.residue if entry else (),
            effect=self.readings.effect if self.readings else None,
        )


def past_status(entry: Entry) -> FaultStatus:
    """What to tell of a fault that no supervisor looks after: of an earlier life, or stopped before its start."""
    if entry.mark is Mark.REFUSED_FOR_EVER:
        message = "its stop came before its start; it never began and never will"
        return FaultStatus(entry.fault_id, "", Mark.CLEAN, entry.at_boottime_ns, Cause.STOPPED, message)
    return FaultStatus(entry.fault_id, entry.kind, entry.mark, entry.at_boottime_ns, entry.cause, "", entry.residue)
