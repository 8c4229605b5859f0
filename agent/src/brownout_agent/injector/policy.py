"""The local policy: what this host lets anybody do to it, a hostile controller included.

The file is root's, read by the injector alone and written by no program of ours. Missing or invalid, it refuses
everything::

    version: 1
    environment: staging            # an order for another environment is refused
    faults:
      cpu.load: {allow: true, max_seconds: 900, max: {percent: 90}}
      memory.load: {allow: true, max: {size: 2GiB}}
      disk.fill: {allow: true, paths: [/srv/data]}
      cpu.throttle: {allow: true, min: {quota: 20%}}
      network.loss: {allow: true, interfaces: [eth1]}
      "*": {allow: false}           # every other fault; this is also the default
    hours: {days: [mon, tue, wed, thu, fri], from: "09:00", to: "17:00", tz: Europe/Berlin}
    limits: {concurrent: 2, per_day: 20, cooldown_s: 60}
    on_controller_loss: undo        # or finish
    protect_processes: [postgres]   # beside sshd, systemd and our own
    protect_peers: [10.0.0.1]       # never cut off, beside the controller
    protect_ports: [22]
    stop_file: /etc/brownout/STOP
    exec:                           # what `exec.run` may execute; an experiment gives the name
      stop-replica:
        apply: [/usr/bin/systemctl, stop, replica.service]
        undo: [/usr/bin/systemctl, start, replica.service]
        measure: [/usr/local/bin/replica-is-away]

What holds is the least of the order, the policy and the ceilings that are compiled in.
"""

import math
import os
import stat
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress, ValidationError, model_validator

from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Fault, FaultParameters, Host, Peer, Refusal
from brownout_agent.injector.ceilings import Written, ceiling, check_ceilings, check_floors, has_parameter
from brownout_agent.injector.exec_rules import NAMES_MAX, ExecRule, Name
from brownout_agent.injector.hours import Hours
from brownout_agent.injector.order import Order
from brownout_agent.injector.stop_file import WELL_KNOWN
from brownout_agent.kernel.folders import is_below

DURATION_CEILING_S = 12 * 3600.0
"""No policy can allow more; AWS FIS and Azure Chaos Studio stop at the same 12 h."""
LEASE_CEILING_S = 300.0
_FINISH_LEASE_S = DURATION_CEILING_S + 3600.0
"""Longer than any fault, its start included."""
_FILE_BYTES_MAX = 64 * 1024
_ANY_KIND = "*"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FaultRule(_Strict):
    """What one kind of fault may do here."""

    allow: bool
    max_seconds: Annotated[float, Field(gt=0, le=DURATION_CEILING_S)] = 900.0
    max: dict[str, Written] = {}
    """Ceilings of quantities by name, as people write them."""
    min: dict[str, Written] = {}
    """Floors, of those that do the more harm the smaller they are."""
    paths: Annotated[tuple[Path, ...], Field(min_length=1)] | None = None
    """A disk fault works in these folders and below them only; anywhere when left out."""
    interfaces: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """A network fault must name one of these interfaces; any or none when left out."""

    @property
    def folders(self) -> tuple[str, ...] | None:
        """`paths` as faults take them."""
        return None if self.paths is None else tuple(map(str, self.paths))


class Limits(_Strict):
    """What all faults together may do here."""

    concurrent: Annotated[int, Field(ge=1, le=128)] = 1
    per_day: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Faults begun in any 24 hours; as many as you like when left out."""
    cooldown_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    """Rest between the end of one fault and the start of another."""


class PolicyFile(_Strict):
    """The file, as it is written."""

    version: Literal[1]
    environment: str
    faults: dict[str, FaultRule]
    hours: Hours | None = None
    limits: Limits = Limits()
    on_controller_loss: Literal["undo", "finish"] = "undo"
    stop_file: Path = WELL_KNOWN
    protect_processes: tuple[str, ...] = ()
    protect_peers: tuple[IPvAnyAddress, ...] = ()
    protect_ports: tuple[Annotated[int, Field(gt=0, lt=65536)], ...] = (22,)
    exec: Annotated[dict[Name, ExecRule], Field(max_length=NAMES_MAX)] = {}

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.stop_file.is_absolute() or not self.stop_file.name:
            raise ValueError(f"stop_file: {self.stop_file} is not the absolute path of a file")
        for kind, rule in self.faults.items():
            _check_rule(kind, rule)
        return self


def _check_rule(kind: str, rule: FaultRule) -> None:
    """Find a mistake now that would let more pass than its writer thinks: a misspelt kind, a ceiling of nothing."""
    bounds = {name for name in ("paths", "interfaces") if getattr(rule, name) is not None}
    if kind == _ANY_KIND and not rule.max and not rule.min and not bounds:
        return
    known = catalogue()
    if kind != _ANY_KIND and kind not in known:
        near = get_close_matches(kind, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(known)}"
        raise ValueError(f"faults: this host knows no fault `{kind}`; {hint}")
    if kind in known and (useless := bounds - known[kind].bounds):
        raise ValueError(f"faults.{kind}: `{min(useless)}` bounds nothing of this fault")
    if rule.paths and (relative := [str(path) for path in rule.paths if not path.is_absolute() or ".." in path.parts]):
        raise ValueError(f"faults.{kind}.paths: {relative[0]} is not the absolute path of a folder")
    for key, written in (("max", rule.max), ("min", rule.min)):
        for name, bound in written.items():
            _check_bound(f"faults.{kind}.{key}", known.get(kind), name, bound)


def _check_bound(where: str, only: Fault[Any] | None, name: str, bound: Written) -> None:
    """A ceiling or a floor of one kind of fault, or of all that have the parameter."""
    meant = [only] if only else [fault for fault in catalogue().values() if has_parameter(fault, name)]
    if not meant:
        raise ValueError(f"{where}: no fault has a parameter `{name}`")
    for fault in meant:
        try:
            ceiling(fault, name, bound)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


@dataclass(frozen=True, slots=True)
class Situation:
    """What an order meets: everything beside itself that decides whether it may pass."""

    now: datetime
    """By the wall clock, aware."""
    running: int = 0
    begun_in_a_day: int = 0
    idle_s: float = math.inf
    """Since the latest fault ended."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy in force. `file` is None when everything is refused, and `why` says why."""

    file: PolicyFile | None
    why: str

    @property
    def environment(self) -> str:
        """The environment that orders must name; empty when everything is refused."""
        return self.file.environment if self.file else ""

    @property
    def stop_file(self) -> Path:
        """The file that halts this host while it is there, beside the well-known one."""
        return self.file.stop_file if self.file else WELL_KNOWN

    @property
    def per_day(self) -> int:
        """How many faults may be begun in 24 hours, and so have to be counted; 0 when they need not be."""
        return (self.file and self.file.limits.per_day) or 0

    def lease_s(self, asked_s: float) -> float:
        """How long a fault goes on without a word of the controller, of what an order asks for."""
        finishes = self.file is not None and self.file.on_controller_loss == "finish"
        return _FINISH_LEASE_S if finishes else asked_s

    def check(self, order: Order, fault: Fault[Any], parameters: FaultParameters, situation: Situation) -> None:
        """Let an order pass whose parameters the fault finds good.

        Raises:
            Refusal: the order goes beyond what this host allows; the reason says how far it would.
        """
        if self.file is None:
            raise Refusal(f"this host refuses every fault: {self.why}", "write a policy; see docs/policy.md")
        if order.environment != self.file.environment:
            raise Refusal(f"the order is for environment `{order.environment}`, this host is `{self.file.environment}`")
        rule = self._rule(order.kind)
        if not rule.allow:
            raise Refusal(f"this host's policy does not allow {order.kind}", f"allow it under `faults:` in {self.why}")
        if order.duration_s > rule.max_seconds:
            raise Refusal(f"{order.kind} for {order.duration_s:g} s; this host allows at most {rule.max_seconds:g} s")
        check_ceilings(fault, parameters, rule.max, order.parameters)
        check_floors(fault, parameters, rule.min, order.parameters)
        _check_hours(self.file.hours, order.duration_s, situation.now)
        _check_limits(self.file.limits, situation)

    def may_look_at(self, real_path: str) -> bool:
        """Whether some fault that works in folders may work in this one, so that its free space may be told."""
        kinds = (kind for kind, fault in catalogue().items() if "paths" in fault.bounds)
        allowed = [rule.folders for kind in kinds if (rule := self._rule(kind)).allow]
        return any(folders is None or is_below(real_path, folders) for folders in allowed)

    def _rule(self, kind: str) -> FaultRule:
        faults = self.file.faults if self.file else {}
        return faults.get(kind) or faults.get(_ANY_KIND) or FaultRule(allow=False)

    def host(self, control_peers: tuple[Peer, ...], protected_pids: frozenset[int], kind: str = "") -> Host:
        """What faults may know of this host; with a `kind`, also what bounds that one."""
        if self.file is None:
            return Host(exempt_peers=control_peers, protected_pids=protected_pids)
        return Host(
            exempt_peers=control_peers + tuple(Peer(str(address)) for address in self.file.protect_peers),
            exempt_ports=self.file.protect_ports,
            protected_pids=protected_pids,
            protected_names=Host().protected_names + self.file.protect_processes,
            folders=self._rule(kind).folders,
            interfaces=self._rule(kind).interfaces,
            commands=tuple(rule.commands(name) for name, rule in self.file.exec.items()),
        )


def _check_hours(hours: Hours | None, duration_s: float, now: datetime) -> None:
    if hours is None:
        return
    closes = hours.open_until(now)
    if closes is None:
        raise Refusal(f"now is outside of this host's hours for faults ({hours})")
    if now + timedelta(seconds=duration_s) > closes:
        left_s = (closes - now).total_seconds()
        raise Refusal(f"{duration_s:g} s; this host's hours for faults ({hours}) end in {left_s:.0f} s")


def _check_limits(limits: Limits, situation: Situation) -> None:
    if situation.running >= limits.concurrent:
        raise Refusal(f"{situation.running} faults run here already; this host allows {limits.concurrent}")
    if limits.per_day is not None and situation.begun_in_a_day >= limits.per_day:
        begun = f"{situation.begun_in_a_day} faults were begun here in the last 24 hours"
        raise Refusal(f"{begun}; this host allows {limits.per_day}")
    if situation.idle_s < limits.cooldown_s:
        rest = f"a fault ended here {situation.idle_s:.0f} s ago; this host rests {limits.cooldown_s:g} s"
        raise Refusal(rest, f"try again in {math.ceil(limits.cooldown_s - situation.idle_s)} s")


EMBEDDED = Policy(
    PolicyFile(
        version=1,
        environment="staging",
        faults={"*": FaultRule(allow=True, max_seconds=900)},
        limits=Limits(concurrent=4),
    ),
    "the built-in modest policy of one-machine mode (15 min a fault, 4 at a time)",
)


def load(path: Path) -> Policy:
    """Read the policy file; whatever is wrong with it, the answer is a policy that refuses everything and says why."""
    try:
        return Policy(_read(path), str(path))
    except (OSError, ValueError) as error:
        return Policy(None, str(error))


def _read(path: Path) -> PolicyFile:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError(f"{path} must belong to root and be writable by nobody else; next: chmod 644 {path}")
        raw = file.read(_FILE_BYTES_MAX + 1)
    if len(raw) > _FILE_BYTES_MAX:
        raise ValueError(f"{path} is larger than {_FILE_BYTES_MAX} bytes")
    try:
        plain: Any = yaml.safe_load(raw)
        return PolicyFile.model_validate(plain)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"{path}: {where}: {first['msg']}") from error
