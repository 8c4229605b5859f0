"""The record of one run: frozen values, the only thing that analysis and reporting read.

**One timeline.** Every time is nanoseconds since the Unix epoch on the *controller's timeline*: its monotonic clock,
anchored to its wall clock once at the start of the run, so no step of any wall clock bends it. What an agent stamped
with its own CLOCK_BOOTTIME is moved onto this line by the measured clock offset; `error_ns` is half the round trip of
the best measurement.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How a run ended, from what was measured. The words are the product's own and do not change."""

    HELD = "held"
    DEVIATED = "deviated"
    INCONCLUSIVE = "inconclusive"
    ABORTED = "aborted"
    HALTED = "halted"
    ERRORED = "errored"


@dataclass(frozen=True, slots=True)
class Vantage:
    """Where a probe ran from: the controller, or a host of the fleet."""

    name: str
    clock_error_ns: int = 0


@dataclass(frozen=True, slots=True)
class Series:
    """Every sample of one probe from one vantage, in order of sending, in columns of equal length."""

    probe: str
    vantage: Vantage
    every_ns: int
    sent_ns: tuple[int, ...]
    took_ns: tuple[int, ...]
    ok: tuple[bool, ...]
    outcome: tuple[str, ...]
    identity: tuple[str, ...]
    """Who answered; "" where unknown."""
    missed: int = 0
    """Due times at which the prober did not get to ask. Never counted as good."""


class EventKind(StrEnum):
    """What can stand on a run's timeline."""

    RUN_STARTED = "run_started"
    STEADY_CONFIRMED = "steady_confirmed"
    FAULT_ORDERED = "fault_ordered"
    FAULT_ACTIVE = "fault_active"
    FAULT_REFUSED = "fault_refused"
    FAULT_ENDED = "fault_ended"
    FAULT_UNKNOWN = "fault_unknown"
    GUARD_HIT = "guard_hit"
    HALT_ORDERED = "halt_ordered"
    HOST_LOST = "host_lost"
    HOST_BACK = "host_back"
    WATCH_CHANGED = "watch_changed"
    WATCH_FAILED = "watch_failed"
    RESIDUE_AUDITED = "residue_audited"
    RUN_ENDED = "run_ended"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the timeline. Happened in [at_ns - before_ns - error_ns, at_ns + error_ns].

    `before_ns` is how much earlier it may have been (a poller saw it at `at_ns`, the change was since its last look);
    `error_ns` is clock error. `subject` names what it is about: a fault, a watch subject such as `lb:shop/app-1`.
    `detail` holds short plain values; for `WATCH_CHANGED`: watcher, subject, before, after.
    """

    at_ns: int
    kind: EventKind
    subject: str
    host: str = ""
    message: str = ""
    before_ns: int = 0
    error_ns: int = 0
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FaultOutcome:
    """What became of one fault on one host."""

    fault_id: str
    name: str
    kind: str
    host: str
    parameters: dict[str, Any]
    ordered_ns: int | None
    active_ns: int | None
    """When the host had it in effect; None if it never was."""
    ended_ns: int | None
    """When the host had verified that it was gone."""
    clock_error_ns: int
    end_cause: str
    undo: str
    """`clean`, `residue`, `unknown`, or `not_needed` when nothing was ever touched."""
    residue: tuple[str, ...] = ()
    asked: float | None = None
    achieved: float | None = None
    unit: str = ""
    proved: bool = False
    explanation: str = ""
    """Why it is proved or not, with the instrument; or why the host refused."""
    undo_begun_ns: int | None = None
    """When the host began to undo: until then the fault was in effect."""


class ResidueState(StrEnum):
    """What the residue audit of a host came to."""

    CLEAN = "clean"
    RESIDUE = "residue"
    UNKNOWN = "unknown"
    """Something that a fault of the run may have changed could not be looked at, before it or after."""


@dataclass(frozen=True, slots=True)
class HostResidue:
    """The residue audit of one host: what is there after the last undo against what was there before the first fault.

    Lines of `left` and `changed_meanwhile` begin with `+` (appeared) or `-` (vanished) and name the section.
    """

    host: str
    state: ResidueState
    left: tuple[str, ...] = ()
    """What a fault of this run could have made, or what bears our names."""
    changed_meanwhile: tuple[str, ...] = ()
    """What others have changed."""
    unread: tuple[str, ...] = ()
    """What could not be looked at, and why."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything about one run that will ever be judged, drawn or exported."""

    run_id: str
    name: str
    hypothesis: str
    source: str
    """The experiment file's text, as it was read."""
    source_sha256: str
    plan_digest: str
    seed: int
    started_ns: int
    ended_ns: int
    operator: str
    controller_host: str
    versions: dict[str, str]
    hosts: tuple[dict[str, Any], ...]
    """name, labels, clock_offset_ns, clock_error_ns, agent version, policy."""
    expectations: tuple[tuple[str, str], ...]
    """(probe or watcher name, text such as `outage < 5s`)."""
    events: tuple[Event, ...]
    series: tuple[Series, ...]
    faults: tuple[FaultOutcome, ...]
    stopped_by: str = ""
    """"" for a run that went to its end; else `guard`, `person`, `error`."""
    stop_reason: str = ""
    probe_thresholds: dict[str, float] = field(default_factory=dict)
    residue: tuple[HostResidue, ...] = ()
    """One for each host that a fault was ordered on and not refused; none in records of before there was an audit."""
