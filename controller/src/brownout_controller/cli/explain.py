"""`brownout explain NAME`: what a key, a fault, a probe, a watcher or a metric means. Made from what validates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Fault
from brownout_agent.quantities import format_duration_ms, parse_duration_ms
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from brownout_controller.language import observers
from brownout_controller.language.expectations import METRICS, Observer
from brownout_controller.language.experiment import (
    AgentLostGuard,
    ExperimentFile,
    FaultSpec,
    Identity,
    MaxDurationGuard,
    ProbeGuard,
    ProbeSpec,
    SteadyState,
    Target,
    WatchSpec,
)
from brownout_controller.language.findings import keys_of
from brownout_controller.language.nearest import nearest


class UnknownTopic(ValueError):
    """There is nothing of that name to explain. The text says what is near."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing explained: a sentence, and what belongs below it, name and sentence each."""

    name: str
    summary: str
    parts: tuple[tuple[str, str], ...] = ()

    def render(self) -> str:
        """Plain text, several lines without a final newline."""
        width = max((len(name) for name, _ in self.parts), default=0)
        return "\n".join([f"{self.name}: {self.summary}", *(f"  {name:<{width}}  {text}" for name, text in self.parts)])


def explain(name: str) -> Topic:
    """The topic of that name: `faults.for`, `cpu.load`, `probes.http.url`, `outage`, or `experiment` for all keys.

    Raises:
        UnknownTopic: no such thing; says which is near.
    """
    topics = all_topics()
    if name in topics:
        return topics[name]
    similar = nearest(name, topics)
    hint = f"did you mean `{similar}`?" if similar else "begin with `brownout explain experiment`"
    raise UnknownTopic(f"there is nothing called `{name[:60]}` to explain; {hint}")


def all_topics() -> dict[str, Topic]:
    """Every topic by its name."""
    topics = [
        *_section("experiment", "Everything that a file may hold at its top.", [ExperimentFile], prefix=""),
        *_section("targets", _doc(Target), [Target]),
        *_section("probes", _doc(ProbeSpec), [ProbeSpec], _kinds(Observer.PROBE)),
        *_section("probes.identity", _doc(Identity), [Identity]),
        *_section("watch", _doc(WatchSpec), [WatchSpec], _kinds(Observer.WATCHER)),
        *_section("steady_state", _doc(SteadyState), [SteadyState]),
        *_section(
            "guards", "Any hit aborts the run and undoes every fault.", [ProbeGuard, AgentLostGuard, MaxDurationGuard]
        ),
        *_section("faults", _doc(FaultSpec), [FaultSpec]),
        Topic(
            "expect",
            "Conditions like `outage < 5s`, per probe or watcher; any miss makes the run `deviated`.",
            _metrics(),
        ),
        *_settings("probes", Observer.PROBE),
        *_settings("watch", Observer.WATCHER),
        *(Topic(metric.name, metric.definition) for metric in METRICS.values()),
        *(_fault(fault) for fault in catalogue().values()),
        *_parameters(),
    ]
    return {topic.name: topic for topic in topics}


def _section(
    name: str,
    summary: str,
    models: list[type[BaseModel]],
    more: tuple[tuple[str, str], ...] = (),
    prefix: str | None = None,
) -> list[Topic]:
    parts = [part for model in models for part in _parts(model)]
    start = f"{name}." if prefix is None else prefix
    return [*(Topic(f"{start}{key}", text) for key, text in parts), Topic(name, summary, (*more, *parts))]


def _parts(model: type[BaseModel]) -> list[tuple[str, str]]:
    fields = {field.alias or name: (name, field) for name, field in model.model_fields.items()}
    return [(key, _described(*fields[key])) for key in keys_of(model)]


def _described(name: str, field: FieldInfo) -> str:
    text = (field.description or "").rstrip(".")
    if field.is_required():
        return f"{text}. Required." if name != "name" else f"{text}."
    is_duration = any(getattr(one, "func", None) is parse_duration_ms for one in field.metadata)
    default = _default(f"{name}_ms" if is_duration else name, field.get_default())
    return f"{text}. Default: {default}." if default else f"{text}."


def _default(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not value or value is PydanticUndefined:
        return ""
    if name.endswith("_ms") and isinstance(value, float):
        return format_duration_ms(value)
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _kinds(observer: Observer) -> tuple[tuple[str, str], ...]:
    return tuple((kind, cls.summary) for kind, cls in observers.kinds(observer).items())


def _settings(section: str, observer: Observer) -> list[Topic]:
    topics: list[Topic] = []
    for kind, cls in observers.kinds(observer).items():
        docs = observers.field_docs(cls)
        parts = [(key, _setting(field, docs.get(key, ""))) for key, field in observers.fields_by_key(cls).items()]
        topics.append(Topic(f"{section}.{kind}", cls.summary, tuple(parts)))
        topics += [Topic(f"{section}.{kind}.{key}", text) for key, text in parts]
    return topics


def _setting(field: Any, doc: str) -> str:
    if not observers.has_default(field):
        return f"{doc} Required.".strip()
    default = _default(field.name, float(field.default) if field.name.endswith("_ms") else field.default)
    return f"{doc} Default: {default}.".strip() if default else doc


def _fault(fault: Fault[Any]) -> Topic:
    parts = (*_parts(fault.Parameters), ("(ends by)", fault.reverts))
    return Topic(fault.kind, fault.summary.rstrip(".") + ".", parts)


def _parameters() -> list[Topic]:
    """`faults.with.percent`: what it means in each fault that has it."""
    meanings: dict[str, list[tuple[str, str]]] = {}
    for kind, fault in catalogue().items():
        for key, text in _parts(fault.Parameters):
            meanings.setdefault(key, []).append((kind, text))
    by_kind: Mapping[str, Any] = catalogue()
    parts = tuple((kind, fault.summary.rstrip(".") + ".") for kind, fault in by_kind.items())
    return [
        *(Topic(f"faults.with.{key}", "A parameter of a fault.", tuple(found)) for key, found in meanings.items()),
        Topic("faults.with", "The fault's own parameters; see `brownout explain` with the fault's name.", parts),
        Topic("faults.inject", "The kind of fault. Required.", parts),
    ]


def _metrics() -> tuple[tuple[str, str], ...]:
    return tuple((metric.name, f"({metric.observer}) {metric.definition}") for metric in METRICS.values())


def _doc(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())
