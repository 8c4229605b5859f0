"""What a probe and a watcher are. Both observe and never judge; the controller judges what they saw.

One probe kind is one file in `probes/`, one watcher is one file in `watchers/`. Their settings are plain dataclasses,
since the talking agent imports no pydantic; the controller validates them with pydantic's TypeAdapter all the same.
Entry-point groups `brownout.probes` and `brownout.watchers` bring other people's.
"""

import importlib
import pkgutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer, or the lack of one. Times are CLOCK_BOOTTIME of the host that asked, in nanoseconds.

    `outcome` is short and stable, for grouping: "200", "503", "refused", "timeout", "reset", "dns". `identity` says
    who answered, where the probe was told how to find out; "" is unknown.
    """

    sent_ns: int
    took_us: int
    ok: bool
    outcome: str
    identity: str = ""


@runtime_checkable
class Probe(Protocol):
    """A frozen dataclass of settings that can ask once."""

    kind: ClassVar[str]
    summary: ClassVar[str]

    async def ask(self) -> Sample:
        """Ask once and say what came back. Bounded by its own timeout; never raises for what the target does.

        Raises:
            NotAskedError: the prober itself could not ask; that is a missed question, and not the target's fault.
        """
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """A system's own view of its health changed, seen at `at_ns`; at `not_before_ns` it was still `before`.

    The first look yields a Change with an empty `before` for every subject, so that a timeline knows how it began.
    """

    at_ns: int
    not_before_ns: int
    subject: str
    before: str
    after: str
    detail: str = ""


@runtime_checkable
class Watcher(Protocol):
    """A frozen dataclass of settings that follows one system."""

    kind: ClassVar[str]
    summary: ClassVar[str]

    def changes(self, every_s: float) -> AsyncIterator[Change]:
        """Yield every change until cancelled. Raises OSError or ValueError when the system cannot be read at all."""
        ...


@cache
def probe_kinds() -> dict[str, type[Any]]:
    """Every probe class by its kind, `http` and `tcp` among them."""
    return _find("probes", Probe)


@cache
def watcher_kinds() -> dict[str, type[Any]]:
    """Every watcher class by its kind, `haproxy` among them."""
    return _find("watchers", Watcher)


def build(kinds: Mapping[str, type[Any]], kind: str, settings: Mapping[str, Any]) -> Any:
    """The probe or watcher of `kind` with these settings.

    Raises:
        ValueError: unknown kind or setting.
    """
    if kind not in kinds:
        raise ValueError(f"unknown kind `{kind}`; this version knows {', '.join(kinds)}")
    try:
        return kinds[kind](**settings)
    except (TypeError, AttributeError) as error:  # a setting that is not there, or one of another type
        raise ValueError(f"{kind}: {error}") from error


def _find(folder: str, protocol: type[Any]) -> dict[str, type[Any]]:
    package = importlib.import_module(f"brownout_agent.{folder}")
    found: dict[str, type[Any]] = {}
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__ and isinstance(value, protocol):
                found[_kind(value)] = value
    for point in entry_points(group=f"brownout.{folder}"):
        cls = point.load()
        found[_kind(cls)] = cls
    return dict(sorted(found.items()))


def _kind(cls: Any) -> str:
    return str(cls.kind)
