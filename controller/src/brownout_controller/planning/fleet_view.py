"""The fleet as a plan sees it: plain values, taken at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HostView:
    """One connected host. `unable` says, for each kind of fault that it cannot do, why and what would help."""

    name: str
    labels: Mapping[str, str]
    environment: str
    kinds: frozenset[str]
    unable: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    injector_attached: bool = True
    policy: str = ""
    agent_version: str = ""
    clock_error_ms: float | None = None
    addresses: tuple[str, ...] = ()
