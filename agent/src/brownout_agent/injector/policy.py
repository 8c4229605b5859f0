"""The local policy: what this host lets anybody do to it, a hostile controller included.

The file is root's, read by the injector alone and written by no program of ours. Missing or invalid, it refuses
everything::

    version: 1
    environment: staging            # an order for another environment is refused
    faults:
      cpu.load: {allow: true, max_seconds: 900, max: {percent: 90}}
      network.blackhole: {allow: true, max_seconds: 120}
      "*": {allow: false}           # every other fault; this is also the default
    limits: {concurrent: 2}
    protect_processes: [postgres]   # beside sshd, systemd and our own
    protect_peers: [10.0.0.1]       # never cut off, beside the controller
    protect_ports: [22]
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress, ValidationError

from brownout_agent.faults.contract import Host, Peer, Refusal

DURATION_CEILING_S = 12 * 3600.0
"""No policy can allow more; AWS FIS and Azure Chaos Studio stop at the same 12 h."""
_FILE_BYTES_MAX = 64 * 1024


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FaultRule(_Strict):
    """What one kind of fault may do here."""

    allow: bool
    max_seconds: Annotated[float, Field(gt=0, le=DURATION_CEILING_S)] = 900.0
    max: dict[str, float] = {}
    """Ceilings of numeric parameters by name, in the parameter's own unit."""


class Limits(_Strict):
    """What all faults together may do here."""

    concurrent: Annotated[int, Field(ge=1, le=64)] = 1


class PolicyFile(_Strict):
    """The file, as it is written."""

    version: Literal[1]
    environment: str
    faults: dict[str, FaultRule]
    limits: Limits = Limits()
    protect_processes: tuple[str, ...] = ()
    protect_peers: tuple[IPvAnyAddress, ...] = ()
    protect_ports: tuple[Annotated[int, Field(gt=0, lt=65536)], ...] = (22,)


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy in force. `file` is None when everything is refused, and `why` says why."""

    file: PolicyFile | None
    why: str

    @property
    def environment(self) -> str:
        """The environment that orders must name; empty when everything is refused."""
        return self.file.environment if self.file else ""

    def check(self, kind: str, parameters: BaseModel, duration_s: float, environment: str, running: int) -> None:
        """Let an order pass.

        Raises:
            Refusal: the order goes beyond what this host allows; the reason says how far it would.
        """
        if self.file is None:
            raise Refusal(f"this host refuses every fault: {self.why}", "write a policy; see docs/policy.md")
        if environment != self.file.environment:
            raise Refusal(f"the order is for environment `{environment}`, this host is `{self.file.environment}`")
        rule = self.file.faults.get(kind) or self.file.faults.get("*") or FaultRule(allow=False)
        if not rule.allow:
            raise Refusal(f"this host's policy does not allow {kind}", f"allow it under `faults:` in {self.why}")
        if duration_s > rule.max_seconds:
            raise Refusal(f"{kind} for {duration_s:g} s; this host allows at most {rule.max_seconds:g} s")
        if running >= self.file.limits.concurrent:
            raise Refusal(f"{running} faults run here already; this host allows {self.file.limits.concurrent}")
        for name, ceiling in rule.max.items():
            asked = getattr(parameters, name, None)
            if isinstance(asked, int | float) and asked > ceiling:
                raise Refusal(f"{kind} with {name} {asked:g}; this host allows at most {ceiling:g}")

    def host(self, control_peers: tuple[Peer, ...], protected_pids: frozenset[int]) -> Host:
        """What faults may know of this host."""
        if self.file is None:
            return Host(exempt_peers=control_peers, protected_pids=protected_pids)
        return Host(
            exempt_peers=control_peers + tuple(Peer(str(address)) for address in self.file.protect_peers),
            exempt_ports=self.file.protect_ports,
            protected_pids=protected_pids,
            protected_names=Host().protected_names + self.file.protect_processes,
        )


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
