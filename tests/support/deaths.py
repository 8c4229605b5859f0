"""The words of the death matrix: the faults, what may die, when it strikes, and what came of each cell.

A *cell* is one fault under one column in one phase. One trial has a group of faults on at once, and fills a cell for
each of them; the next trial of the same column and phase has the next group.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from tests.support import one_at_a_time
from tests.support.standby import STANDBY

LEASE_S = 10.0
FAULT_S = 60.0
"""How long faults would last if nothing happened; longer than every bound."""
AT_ONCE, AT_ONCE_ON_UML = 12, 5
"""The most faults of one trial: what hosts of two cores, several side by side, begin and undo without being slow. A
user-mode Linux host has one slow core."""
RESTART_S = 3.0
"""What process.kill allows a program that it starts again to be itself (_START_TIMEOUT_S), and as much for exec.run."""
MARKS = Path("/dev/shm")
"""Where `exec.run` makes a file that is named like its tag."""
VICTIM = "import signal\nwhile True: signal.pause()"
_SUPERVISOR = """import os, sys
while True:
    os.waitpid(os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-S", "-c", *sys.argv[1:4]]), 0)
"""
"""Starts a victim, and again whenever it has died. Its own command line does not end as the victim's does."""


class Phase(StrEnum):
    """When it strikes: at a random instant after the orders, with all faults on, or after the stops."""

    INJECT = "inject"
    HOLD = "hold"
    UNDO = "undo"


class Seen(StrEnum):
    """By what the kernel shows a fault."""

    HOLDER = "a process of the fault's own"
    SILENCE = "a datagram that does not arrive"
    LOSS = "some of 24 datagrams that do not arrive"
    LATE = "a datagram that does not arrive at once"
    TWICE = "a datagram that arrives twice"
    UNASKED = "a DNS query that does not reach its server at once"
    RESET = "a connection that is reset"
    STILL = "a victim that stands still"
    MISSING = "a victim that does not run"
    CRASHING = "a process of the fault's own that kills a victim whenever its supervisor has started it"
    LIMITED = "a victim that may have next to no descriptors"
    FULL = "a victim whose control group may have no more processes"
    THROTTLED = "a victim whose control group has a quota of CPU time"
    TIGHT = "a victim whose control group has a limit of memory"
    FROZEN = "a victim whose control group is frozen"
    DOWN = "an interface that is down"
    CROWDED = "a process of the fault's own, while a service is its victim"
    SLOW = "a victim whose control group has a limit for a disk"
    MARKED = "a file that a program of the policy's has made"


BY_GROUP = {
    Seen.FULL: ("pids", ("pids.max",)),
    Seen.THROTTLED: ("cpu", ("cpu.cfs_quota_us", "cpu.max")),
    Seen.TIGHT: ("memory", ("memory.limit_in_bytes", "memory.max")),
    Seen.FROZEN: ("freezer", ("freezer.state", "cgroup.freeze")),
    Seen.SLOW: ("blkio", ("blkio.throttle.write_bps_device", "io.max")),
}
"""What shows by the victim's control group, which is its own: the controller, its files in version 1 and version 2."""


@dataclass(frozen=True)
class FaultCase:
    """A fault with its parameters, and what shows that it is on. `{tag}` is its victim, `{scratch}` a folder."""

    kind: str
    parameters: dict[str, object] = field(hash=False)
    seen: Seen
    to: str = ""
    """Where datagrams are sent, or a connection goes."""

    def filled_in(self, tag: str, scratch: str) -> dict[str, object]:
        """The parameters of one trial."""
        return {
            name: value.format(tag=tag, scratch=scratch) if isinstance(value, str) else value
            for name, value in self.parameters.items()
        }

    @property
    def has_victim(self) -> bool:
        """Whether it is done to a process."""
        return (
            self.seen in {Seen.STILL, Seen.MISSING, Seen.CRASHING, Seen.LIMITED, Seen.CROWDED} or self.seen in BY_GROUP
        )

    def victim_argv(self, python: str, tag: str) -> list[str]:
        """What runs the victim of this fault; the command line of the victim itself ends with the tag."""
        if self.seen is Seen.CRASHING:
            return [python, "-S", "-c", _SUPERVISOR, VICTIM, _SUPERVISED, tag, "supervisor"]
        program = one_at_a_time.SERVICE if self.seen is Seen.CROWDED else VICTIM
        return [python, "-S", "-c", program, tag]


_SUPERVISED = "supervised"
SILENT_TO, LOSSY_TO, LATE_TO = "127.0.0.9", "127.0.0.8", "127.0.0.7"
REFUSED_TO, RESET_TO, FLAPPING_TO = "127.0.0.6", "127.0.0.5", "127.0.0.4"
UNANSWERED_TO, DELAYED_TO, ANSWERED_TO = "127.0.0.3", "127.0.0.10", "127.0.0.11"
DOUBLED_TO, OVERTAKEN_TO = "127.0.0.12", "127.0.0.13"
CORRUPT_TO, SLOW_TO = "127.0.0.14", "127.0.0.15"
EXHAUSTED_TO, PARTED_TO = "127.0.0.16", "127.0.0.17"
NAME = "{to}.brownout.test"
"""What is asked for at a fault's own server."""
FAULTS = (
    FaultCase("cpu.load", {"percent": 5, "of": "own", "cores": "0"}, Seen.HOLDER),
    FaultCase("memory.load", {"size": "16MiB", "reserve": "64MiB"}, Seen.HOLDER),
    FaultCase("disk.io", {"write": "1MiB/s", "file_size": "1MiB", "path": "{scratch}"}, Seen.HOLDER),
    FaultCase("memory.leak", {"rate": "1MiB/s", "size": "16MiB", "reserve": "64MiB"}, Seen.HOLDER),
    FaultCase("memory.oom", {"size": "16MiB", "every": "1s"}, Seen.HOLDER),
    FaultCase("disk.fill", {"size": "8MiB", "path": "{scratch}"}, Seen.HOLDER),
    FaultCase("disk.inodes", {"count": 100, "path": "{scratch}"}, Seen.HOLDER),
    FaultCase("network.blackhole", {"to": SILENT_TO, "port": 9}, Seen.SILENCE, SILENT_TO),
    FaultCase("network.loss", {"to": LOSSY_TO, "percent": 50}, Seen.LOSS, LOSSY_TO),
    FaultCase("network.latency", {"to": LATE_TO, "latency": "300ms", "direction": "egress"}, Seen.LATE, LATE_TO),
    FaultCase("network.corrupt", {"to": CORRUPT_TO, "percent": 50}, Seen.LOSS, CORRUPT_TO),
    FaultCase("network.duplicate", {"to": DOUBLED_TO, "percent": 100}, Seen.TWICE, DOUBLED_TO),
    FaultCase("network.reorder", {"to": OVERTAKEN_TO, "percent": 90, "delay": "300ms"}, Seen.LATE, OVERTAKEN_TO),
    FaultCase("network.rate", {"to": SLOW_TO, "rate": "1kbit"}, Seen.LATE, SLOW_TO),
    FaultCase("network.port_occupy", {"port": 9009, "protocol": "any"}, Seen.HOLDER),
    FaultCase("network.partition", {"to": PARTED_TO}, Seen.SILENCE, PARTED_TO),
    FaultCase("network.reject", {"to": REFUSED_TO, "port": 9}, Seen.SILENCE, REFUSED_TO),
    FaultCase("network.reset", {"to": RESET_TO, "connections": "both"}, Seen.RESET, RESET_TO),
    FaultCase("network.flap", {"to": FLAPPING_TO, "every": "10m", "down": "9m"}, Seen.SILENCE, FLAPPING_TO),
    FaultCase("network.accept_queue", {"port": one_at_a_time.PORT}, Seen.CROWDED),
    FaultCase("network.ephemeral_ports", {"to": EXHAUSTED_TO, "port": 9}, Seen.HOLDER, EXHAUSTED_TO),
    FaultCase("network.interface_down", {"interface": STANDBY}, Seen.DOWN),
    FaultCase("dns.failure", {"names": NAME.format(to=UNANSWERED_TO)}, Seen.UNASKED, UNANSWERED_TO),
    FaultCase("dns.delay", {"names": NAME.format(to=DELAYED_TO), "delay": "5s"}, Seen.UNASKED, DELAYED_TO),
    FaultCase("dns.answer", {"names": NAME.format(to=ANSWERED_TO), "to": "::1"}, Seen.UNASKED, ANSWERED_TO),
    FaultCase("process.pause", {"command": "{tag}"}, Seen.STILL),
    FaultCase("process.kill", {"command": "{tag}", "restart": True}, Seen.MISSING),
    FaultCase("process.crash_loop", {"command": f"-c {VICTIM} {_SUPERVISED} {{tag}}", "every": "1s"}, Seen.CRASHING),
    FaultCase("process.fd_exhaustion", {"command": "{tag}"}, Seen.LIMITED),
    FaultCase("process.pid_exhaustion", {"command": "{tag}"}, Seen.FULL),
    FaultCase("cpu.throttle", {"command": "{tag}", "quota": "5%"}, Seen.THROTTLED),
    FaultCase("memory.limit", {"command": "{tag}", "limit": "1GiB", "beyond": "kill"}, Seen.TIGHT),
    FaultCase("process.freeze", {"command": "{tag}"}, Seen.FROZEN),
    FaultCase("exec.run", {"name": "mark"}, Seen.MARKED),
    FaultCase("disk.throttle", {"command": "{tag}", "path": "{scratch}", "write": "1MiB/s"}, Seen.SLOW),
)
_NOT_ON_UML = frozenset({*BY_GROUP, Seen.DOWN, Seen.CROWDED, Seen.MARKED})
_NEEDS_MEMORY_GROUPS = "memory.oom"
UML_FAULTS = tuple(
    fault for fault in FAULTS if not fault.to and fault.seen not in _NOT_ON_UML and fault.kind != _NEEDS_MEMORY_GROUPS
)
"""User-mode Linux 6.1 has no nftables for IP. Its hosts have one interface, no service, victims without groups, no
group in which memory is limited, and a policy that names no programs."""


@dataclass(frozen=True)
class Column:
    """What happens to the host, and within how many seconds every fault must then be gone."""

    name: str
    bound_s: float
    on_uml: bool = False

    @property
    def restart_s(self) -> float:
        """What the start of a program may take on top. A user-mode Linux host has one slow core: 5 times as long."""
        return RESTART_S * (5 if self.on_uml else 1)

    def bound_of(self, fault: FaultCase, bound_s: float) -> float:
        """The column's bound, or what a trial made of it; where the undo starts programs, their start comes on top."""
        return bound_s + (self.restart_s if fault.seen in {Seen.MISSING, Seen.MARKED} else 0.0)

    @property
    def faults(self) -> tuple[FaultCase, ...]:
        """Those that its hosts can have."""
        return UML_FAULTS if self.on_uml else FAULTS

    def group(self, turn: int) -> tuple[FaultCase, ...]:
        """Those of one trial. In as many turns as there are groups each fault comes once."""
        count = math.ceil(len(self.faults) / (AT_ONCE_ON_UML if self.on_uml else AT_ONCE))
        return self.faults[turn % count :: count]


COLUMNS = (
    Column("none", 1),
    Column("agent KILL", LEASE_S + 1),
    Column("injector KILL", 5),
    Column("both KILL", 30),
    Column("both STOP", 30),
    Column("controller KILL", LEASE_S + 1),
    Column("link cut", LEASE_S + 1),
    Column("disk full", 1),
    Column("read-only", 1),
    Column("OOM", 30),
    Column("power cut", 0, on_uml=True),
    Column("clock +1 h", 5, on_uml=True),
    Column("clock -1 h", 5, on_uml=True),
    Column("clock +10 y", 5, on_uml=True),
    Column("clock -10 y", 5, on_uml=True),
)
BY_NAME = {column.name: column for column in COLUMNS}


@dataclass(frozen=True)
class Outcome:
    """What came of one cell.

    `gone_after_s` counts from the strike, or, where nothing died, from the stop or the end of the fault's time; 0 when
    the fault was not there any more at the first look, None when it was still there at the last.
    """

    column: str
    phase: Phase
    fault: str
    seed: int
    was_there: bool
    """At the moment of the strike."""
    gone_after_s: float | None
    bound_s: float
    leftovers: tuple[str, ...] = ()
    censored: str = ""
    """Why the cell says nothing: the trial did not come as far as its strike, or nobody looked when it mattered."""
    said: str = ""
    """The controller's last word on the fault, for whoever reads of a cell that is not good."""
    commit: str = ""

    @property
    def judgement(self) -> str:
        """`good`, `late`, `left` or `censored`."""
        if self.censored:
            return "censored"
        if self.leftovers:
            return "left"
        in_time = self.gone_after_s is not None and self.gone_after_s <= self.bound_s
        return "good" if in_time else "late"

    def as_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> "Outcome":
        """What `as_line` wrote."""
        plain = json.loads(line)
        return cls(**{**plain, "phase": Phase(plain["phase"]), "leftovers": tuple(plain["leftovers"])})
