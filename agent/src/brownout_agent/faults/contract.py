"""What a fault is. One fault is one file in this package, and nothing else needs to change for a new one.

A fault's life on a host, and who does what::

    detect   can this host do it at all, and if not, why                        injector, before any order
    prepare  resolve the parameters against this host, refuse what is unsafe;   injector; touches nothing
             returns *facts*: all that undo, residue and measure need, as JSON
             ---- the journal makes parameters and facts durable here ----
    apply    bring the fault about and hold it                                  the holder, a child process
    measure  what it achieves, by another instrument than the one that injects  injector, once a second
    undo     what the holder's death did not already undo                       injector, reaper or next boot
    residue  what is still there, read from the kernel                          the same, after undo

**A fault is held by a process.** `apply` runs in a *holder* that the kernel kills when the injector dies
(PR_SET_PDEATHSIG) and when its time is up or its lease is not renewed (a timer on CLOCK_BOOTTIME), so the best fault is
one that is gone when its holder is: memory, CPU time, a ptrace seizure, an nftables table with `flags owner`. `undo` is
for the rest.

`undo` works from the journal's record alone: data, never code. It may be called twice, on a fault that was applied
by half, and in another process than the one that applied it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, NoReturn, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from brownout_agent.kernel.processes import ProcessKey
from brownout_agent.quantities import (
    parse_bit_rate,
    parse_byte_rate,
    parse_duration_ms,
    parse_percent,
    parse_size_bytes,
)

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Facts = dict[str, Any]
"""What `prepare` found: plain JSON, kept in the journal."""

TRIAL_S = 3.0
"""How long a fault that could cut its host off may be in effect before it is confirmed, or else ends."""


# Parameters cross the wire and rest in the journal as people wrote them (`512MiB`), so that every side reads one form.
Percent = Annotated[float, BeforeValidator(parse_percent), Field(description="above 0 and up to 100")]
SizeBytes = Annotated[int, BeforeValidator(parse_size_bytes), Field(description="a size like 512MiB")]
ByteRate = Annotated[int, BeforeValidator(parse_byte_rate), Field(description="a rate like 20MiB/s")]
BitRate = Annotated[int, BeforeValidator(parse_bit_rate), Field(description="a rate like 10mbit")]
DurationMs = Annotated[float, BeforeValidator(parse_duration_ms), Field(description="a duration like 300ms")]


class FaultParameters(BaseModel):
    """Base of every fault's parameters. A key that the fault does not know refuses the whole order."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    one_of: ClassVar[tuple[str, ...]] = ()
    """Ways to say how much, of which an order gives exactly one: a policy's ceiling for one binds the others."""


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether this host can do a fault; `reason` and `remedy` are for people and are empty when it can."""

    able: bool
    reason: str = ""
    remedy: str = ""


ABLE = Capability(able=True)


@dataclass(frozen=True, slots=True)
class Effect:
    """What was asked against what was achieved.

    `proved` is the fault's own judgement. `explanation` says, for people and in one sentence, what was measured by
    which instrument, or why nothing was proved. `achieved` is None when nothing could be measured.
    """

    asked: float
    achieved: float | None
    unit: str
    proved: bool
    explanation: str
    samples: int = 0
    lowest: float | None = None
    highest: float | None = None


class Refusal(Exception):
    """The host will not or cannot do this; nothing was touched."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Peer:
    """A network peer that no fault may cut off. `port` 0 means every port."""

    address: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class Commands:
    """Three programs with their arguments that this host's policy has named together, and how long each may take."""

    name: str
    apply: tuple[str, ...]
    undo: tuple[str, ...]
    measure: tuple[str, ...]
    apply_within_s: float = 10.0
    undo_within_s: float = 10.0
    measure_within_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Host:
    """What a fault may know of the host that it is on, beyond what the kernel says."""

    exempt_peers: tuple[Peer, ...] = ()
    """The live control connections of the agent: never part of a network fault."""
    exempt_ports: tuple[int, ...] = (22,)
    """Local or remote TCP ports that no network fault touches: SSH."""
    exempt_uids: tuple[int, ...] = ()
    """The agent's user, where that is not root: what it asks DNS servers is no fault's matter."""
    protected_pids: frozenset[int] = frozenset()
    """Agent, injector, reaper and their ancestors: never signalled, never paused."""
    protected_names: tuple[str, ...] = ("sshd", "systemd", "init", "dbus-daemon", "systemd-journald")
    """Command names that no process fault touches."""
    scratch: str = "/var/tmp"  # noqa: S108 - only a default; files there are opened with O_TMPFILE
    """Where disk faults work when the parameters do not say."""
    folders: tuple[str, ...] | None = None
    """The policy's `paths` for this kind of fault: it works in these folders and below them only; None: anywhere."""
    unfinished: tuple[tuple[str, Facts], ...] = ()
    """Kind and facts of each fault that is on here, or not seen undone yet. Of two that change the same thing, neither
    could give back what was before."""
    interfaces: tuple[str, ...] | None = None
    """The policy's `interfaces` for this kind of fault: it touches no packets of others; None: of any."""
    commands: tuple[Commands, ...] = ()
    """The policy's `exec`: all that anybody may have executed here."""


class Hold(Protocol):
    """The holder process, as `apply` sees it. Everything here belongs to the process that `apply` runs in."""

    fault_id: str
    duration_s: float

    def ready(self, **facts: Json) -> None:
        """The fault is in effect from now on. `facts` join those of `prepare`. Call it exactly once."""

    def wait(self) -> NoReturn:
        """Hold until killed; the way to end `apply` when there is nothing more to do."""

    def fork(self, work: Callable[[], None]) -> ProcessKey:
        """Run `work` in a child that dies with the holder and by its own timer. Only from the main thread."""

    def on_extension(self, work: Callable[[int], None]) -> None:
        """Have `work` called whenever the injector extends the fault, with the milliseconds that it may go on for.

        For a fault that gave the kernel a time-out of its own, beside the holder's timer. That time-out begins with
        TRIAL_S. `work` runs in a thread; what it raises ends the fault. Call it before `ready`.
        """


class Meter(ABC):
    """Measures one fault while it is active, by another instrument than the one that injects."""

    @abstractmethod
    def sample(self) -> None:
        """Take one reading. Called about once a second from when the fault is ready, and once just before it ends.

        Runs in a thread, not always the same one; never two readings of one fault at once.
        """

    @abstractmethod
    def effect(self) -> Effect:
        """The judgement over all readings so far."""


P = TypeVar("P", bound=FaultParameters)


@dataclass(frozen=True, slots=True)
class Record(Generic[P]):
    """A fault as the journal knows it: enough to undo it in another process, after a crash."""

    fault_id: str
    parameters: P
    facts: Facts
    duration_s: float
    holders: tuple[ProcessKey, ...] = field(default=())
    """The holder and what it forked, as far as they were marked."""


class Fault(ABC, Generic[P]):
    """Base of every fault. Subclasses are stateless: all state is in the record and in the kernel."""

    kind: ClassVar[str]
    """What an experiment names, `family.action`: `cpu.load`."""
    summary: ClassVar[str]
    """One sentence for lists and forms."""
    reverts: ClassVar[str]
    """One sentence: who ends it when everything of ours is dead. Shown by `explain`."""
    Parameters: type[P]
    bounds: ClassVar[frozenset[str]] = frozenset()
    """Which bounds of a policy its `prepare` keeps to: `paths` (`Host.folders`), `interfaces` (`Host.interfaces`)."""
    parting_s: ClassVar[float] = 0.0
    """How long its holder, sent SIGTERM, may take to end by itself before it is killed: where that spares others
    something. The undo does not rely on it."""
    outlives_reboot: ClassVar[bool] = False
    """Whether what it did may be there after a reboot. Then its record is undone after one as well; all that the others
    make lives in the kernel of one boot."""

    @abstractmethod
    def detect(self, host: Host) -> Capability:
        """Whether this host can do it. Decides by trying where that is harmless, never by kernel version.

        Runs in a thread.
        """

    def prepare(self, parameters: P, host: Host) -> Facts:
        """Resolve the parameters against this host. Runs in a thread and may block for a few seconds, to resolve names.

        Raises:
            Refusal: unsafe or impossible here. Nothing may have been touched.
        """
        return {}

    def watch_lifelines(self, record: Record[P], host: Host) -> Callable[[], str] | None:
        """For a fault that could cut its host off from those who could end it; None for one that could not.

        Called in a thread just before `apply`. What it returns is called in threads while the fault is on trial, and
        says which connection of theirs the fault hurts, in words for people; "" when it hurts none.
        """
        return None

    @abstractmethod
    def apply(self, parameters: P, facts: Facts, hold: Hold) -> None:
        """Bring the fault about, call `hold.ready()`, and hold it. Runs in the holder; returning ends the fault."""

    def undo(self, record: Record[P]) -> None:
        """Undo what the holder's death did not. Idempotent; accepts half-applied. The holder is already dead.

        Raises:
            OSError, Refusal: it could not be undone; the text becomes residue, and it is tried again.
        """

    def residue(self, record: Record[P]) -> list[str]:
        """What of this fault is still there, one line each, read from the kernel. Empty is clean."""
        return []

    @abstractmethod
    def measure(self, record: Record[P], host: Host) -> Meter:
        """A meter for a fault that has just become ready."""
