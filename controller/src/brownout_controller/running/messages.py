"""What goes into the run's state machine and what comes out: events and instructions, and the states they speak of."""

from dataclasses import dataclass
from enum import StrEnum

from brownout_controller.planning.plan import PlannedFault
from brownout_controller.record import EventKind


class Phase(StrEnum):
    """How far the run has come."""

    STEADYING = "steadying"
    INJECTING = "injecting"
    SETTLING = "settling"
    UNDOING = "undoing"
    ENDED = "ended"


class State(StrEnum):
    """How far a fault on one host has come, as far as the controller knows."""

    ORDERED = "ordered"
    ACTIVE = "active"
    UNDOING = "undoing"
    CLEAN = "clean"
    RESIDUE = "residue"
    REFUSED = "refused"
    UNKNOWN = "unknown"


OVER = frozenset({State.CLEAN, State.RESIDUE, State.REFUSED, State.UNKNOWN})


@dataclass(slots=True)
class Instance:
    """One fault on one host."""

    fault_id: str
    fault: PlannedFault
    host: str
    state: State
    latest_ns: int
    """When it must be over even by the slowest of its own limits, as long as its host speaks."""
    give_up_ns: int
    """When it is called unknown if nothing more is heard; `latest_ns`, or sooner once its host is silent."""
    active_ns: int | None = None
    """When it was first heard to be active."""
    stop_reason: str = ""
    """Why it is to stop; said again whenever its host comes back."""


# ---- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. Every event carries `now_ns`, on one monotonic line."""

    now_ns: int


@dataclass(frozen=True, slots=True)
class SteadyJudged:
    """What the engine found when asked whether the expectations hold before the first fault."""

    now_ns: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HostsChosen:
    """The hosts of a fault whose target is resolved at injection."""

    now_ns: int
    fault: str
    hosts: tuple[str, ...]
    why_none: str = ""
    """Where some did match, and it cannot be done with them."""


@dataclass(frozen=True, slots=True)
class FaultSaid:
    """A host said how far one of our faults has come."""

    now_ns: int
    fault_id: str
    state: State
    message: str = ""


@dataclass(frozen=True, slots=True)
class HostSilent:
    """Nothing can be heard of a host's faults: its stream ended, or its injector is away."""

    now_ns: int
    host: str


@dataclass(frozen=True, slots=True)
class HostBack:
    """Agent and injector of a host can be spoken to again."""

    now_ns: int
    host: str


@dataclass(frozen=True, slots=True)
class AnswerLost:
    """An order got an indefinite answer: the fault may be active, or be about to."""

    now_ns: int
    fault_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The run is to end now: `guard`, `person` or `error`."""

    now_ns: int
    by: str
    reason: str


Event = Tick | SteadyJudged | HostsChosen | FaultSaid | HostSilent | HostBack | AnswerLost | StopAsked


# ---- instructions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JudgeSteady:
    """See whether the expectations hold now, and answer with SteadyJudged."""


@dataclass(frozen=True, slots=True)
class ChooseHosts:
    """Resolve this fault's target as the fleet stands, and answer with HostsChosen."""

    fault: PlannedFault


@dataclass(frozen=True, slots=True)
class Inject:
    """Send the order."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """This fault cannot be injected, since no host is there that it could go to."""

    instance: Instance
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Send a stop, wherever the fault may be."""

    instance: Instance
    reason: str


@dataclass(frozen=True, slots=True)
class Say:
    """Put a line on the timeline."""

    kind: EventKind
    subject: str
    host: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The run is over."""


Instruction = JudgeSteady | ChooseHosts | Inject | LeaveOut | Stop | Say | End
