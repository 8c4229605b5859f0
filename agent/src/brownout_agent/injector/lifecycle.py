"""The life of one fault on one host, as a pure state machine: an event in, the next state and instructions out.

No clock, no process, no file. The supervisor carries the instructions out and feeds back what came of them::

    new ──Accepted──▶ recorded ──Spawned──▶ held ──Applied──▶ active
                         │ Failed, End        │ Failed, End      │ HolderDied, End
                         └──────────▶ undoing ◀──────────────────┘
                                         │ Undone(residue=())      ──▶ clean
                                         └ Undone(residue=(…))     ──▶ residue ──Retry──▶ undoing
"""

from dataclasses import dataclass
from enum import StrEnum

from brownout_agent.injector.journal import Mark
from brownout_agent.kernel.processes import ProcessKey


class Cause(StrEnum):
    """Why a fault ends. The names are those of EndCause on the wire."""

    DURATION = "DURATION"
    STOPPED = "STOPPED"
    LEASE_LOST = "LEASE_LOST"
    APPLY_FAILED = "APPLY_FAILED"
    HOLDER_DIED = "HOLDER_DIED"
    REAPED = "REAPED"
    SHUTDOWN = "SHUTDOWN"
    HALTED = "HALTED"
    CONTROL_LOST = "CONTROL_LOST"


# ---- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """The order passed every check."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """An inert holder stands ready."""

    holder: ProcessKey


@dataclass(frozen=True, slots=True)
class Applied:
    """The fault is in effect."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The holder could not be started, or could not bring the fault about."""

    reason: str


@dataclass(frozen=True, slots=True)
class HolderDied:
    """The holder died though nobody of ours killed it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A step raised what nobody had expected: what is on now is not known."""

    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """The fault is to end now."""

    cause: Cause
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Undone:
    """Undo has run and the kernel was looked at."""

    residue: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Retry:
    """Time to try again what left residue."""


Event = Accepted | Spawned | Applied | Failed | HolderDied | Broken | End | Undone | Retry


# ---- instructions, in the order in which they must be carried out ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """Make the record durable."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start an inert holder."""


@dataclass(frozen=True, slots=True)
class Go:
    """Have the holder apply the fault."""


@dataclass(frozen=True, slots=True)
class StartMeasuring:
    """Make the meter and take the first reading."""


@dataclass(frozen=True, slots=True)
class Note:
    """Put the mark into the journal."""

    mark: Mark
    cause: str = ""
    holder: ProcessKey | None = None
    residue: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Undo:
    """Begin, beside everything else: a last reading, kill the holder, undo the rest, and look at the kernel."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell whoever listens."""

    message: str = ""


Instruction = Record | Spawn | Go | StartMeasuring | Note | Undo | Report

_NOTHING: tuple[Instruction, ...] = ()


def step(state: Mark | None, event: Event) -> tuple[Mark | None, tuple[Instruction, ...]]:
    """The next state and what to do now. `None` is the state before anything. Late events change nothing."""
    match state, event:
        case None, Accepted():
            return Mark.RECORDED, (Record(), Report(), Spawn())
        case Mark.RECORDED, Spawned(holder):
            return Mark.HELD, (Note(Mark.HELD, holder=holder), Go())
        case Mark.HELD, Applied():
            return Mark.ACTIVE, (Note(Mark.ACTIVE), StartMeasuring(), Report())
        case ((Mark.RECORDED | Mark.HELD), (Failed(reason) | Broken(reason))):
            return _undo(Cause.APPLY_FAILED, reason)
        case Mark.ACTIVE, (HolderDied(reason) | Broken(reason)):
            return _undo(Cause.HOLDER_DIED, reason)
        case ((Mark.RECORDED | Mark.HELD | Mark.ACTIVE), End(cause, reason)):
            return _undo(cause, reason)
        case _:
            return _step_of_undo(state, event)


def _step_of_undo(state: Mark | None, event: Event) -> tuple[Mark | None, tuple[Instruction, ...]]:
    match state, event:
        case Mark.UNDOING, Broken(reason):
            return _step_of_undo(state, Undone((reason,)))
        case Mark.UNDOING, Undone(residue=()):
            return Mark.CLEAN, (Note(Mark.CLEAN), Report())
        case Mark.UNDOING, Undone(residue=residue):
            return Mark.RESIDUE, (Note(Mark.RESIDUE, residue=residue), Report("; ".join(residue)))
        case Mark.RESIDUE, Retry():
            return Mark.UNDOING, (Undo(),)
        case _:
            return state, _NOTHING


def _undo(cause: Cause, reason: str) -> tuple[Mark, tuple[Instruction, ...]]:
    # The undo is begun first: a disk that is slow to take a mark must not keep the fault on.
    return Mark.UNDOING, (Undo(), Note(Mark.UNDOING, cause=cause), Report(reason))
