"""The experiment: a frozen value, and at the same time the description of every key that a file may hold.

Field aliases are the keys of the file; fields that hold durations are named `..._ms` and hold milliseconds. What
depends on two places of a file (a name that must exist elsewhere) is checked in `references`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from brownout_agent.faults import catalogue
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic import model_validator as validates_model
from pydantic_core import InitErrorDetails, ValidationError

from brownout_controller.language import later, observers
from brownout_controller.language.expectations import Expectation, Observer
from brownout_controller.language.forms import (
    NAME_PATTERN,
    Duration,
    ExpectationForm,
    Name,
    PickForm,
    PositiveDuration,
    SelectorForm,
    one_or_more,
    refusal,
    selector,
    strict_booleans,
)
from brownout_controller.language.nearest import nearest
from brownout_controller.language.selectors import Pick, Selector

CONTROLLER = "controller"
"""The vantage that is no host: where the controller runs."""
FASTEST_PROBE_MS = 50.0
KIND_KEY, SETTINGS_KEY = "\0kind", "\0settings"
"""In a file the kind is itself a key. No file can hold these two: control characters are refused."""


def _vantage(value: str) -> str:
    if value == CONTROLLER:
        return value
    if re.fullmatch(NAME_PATTERN, value):
        raise refusal(
            "bad-selector", f"`{value}` is neither `controller` nor a selector", f"did you mean host={value}?"
        )
    return str(selector(value))


Vantage = Annotated[str, AfterValidator(_vantage)]
Text = Annotated[str, Field(max_length=1_000)]


def _variable(value: object) -> object:
    if isinstance(value, dict | list) or value is None:
        raise refusal("wrong-type", "a variable is a single value", "write text or a number")
    return value


class Section(BaseModel):
    """Base of every mapping in the file: a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Target(Section):
    """Which hosts a fault goes to. Resolved and shown by `plan`."""

    selector: SelectorForm = Field(description="which hosts, by label: app=postgres,role!=replica,zone in (a,b)")
    pick: PickForm = Field(default=Pick(1), description="how many of them: 1, all, or 50% (rounded up, at least 1)")
    exclude: tuple[Name, ...] = Field(default=(), description="names of hosts that are never chosen")
    if_none: Literal["fail", "skip"] = Field(
        default="fail", description="when no host matches: fail refuses the run, skip leaves the fault out"
    )
    resolve: Literal["at_start", "at_injection"] = Field(
        default="at_start", description="when hosts are chosen; at_injection, because a failover moves roles"
    )


class Identity(Section):
    """How an HTTP probe learns who answered."""

    header: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="response header that names the server, such as X-Served-By"
    )


class ProbeSpec(Section):
    """A question asked again and again. Probes only measure; `expect` and `guards` judge."""

    kind: str = Field(alias=KIND_KEY)
    identity: Identity | None = Field(default=None, description="how to learn who answered; http only")
    settings: dict[str, Any] = Field(alias=SETTINGS_KEY)
    """All fields of the kind's dataclass in brownout_agent.probes, durations in milliseconds."""
    every_ms: PositiveDuration = Field(
        default=1_000.0, alias="every", description="time from one request to the next; 50ms is the fastest"
    )
    vantages: Annotated[tuple[Vantage, ...], BeforeValidator(one_or_more)] = Field(
        default=(CONTROLLER,),
        alias="from",
        min_length=1,
        description="where it runs: controller, or selectors of hosts",
    )

    @validates_model(mode="before")
    @classmethod
    def _find_kind(cls, data: object) -> object:
        return _with_kind(Observer.PROBE, data, {"identity", "every", "from"})

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        return observers.check_kind(Observer.PROBE, kind)

    @field_validator("identity")
    @classmethod
    def _identity_is_possible(cls, identity: Identity | None, info: ValidationInfo) -> Identity | None:
        kind = info.data.get("kind")
        known = observers.kinds(Observer.PROBE).get(str(kind))
        if known and observers.IDENTITY_FIELD not in known.__dataclass_fields__:
            raise refusal(
                "bad-value", f"a probe of kind `{kind}` cannot tell who answered", "leave it out, or probe by http"
            )
        return identity

    @field_validator("settings", mode="before")
    @classmethod
    def _known_settings(cls, written: object, info: ValidationInfo) -> dict[str, Any]:
        if "kind" not in info.data:
            return {}
        identity = info.data.get("identity")
        return observers.check_settings(Observer.PROBE, info.data["kind"], written, identity.header if identity else "")

    @field_validator("every_ms")
    @classmethod
    def _not_too_fast(cls, every_ms: float) -> float:
        if every_ms < FASTEST_PROBE_MS:
            raise refusal("bad-duration", f"a probe asks at most every {FASTEST_PROBE_MS:g}ms", "write 50ms or more")
        return every_ms


class WatchSpec(Section):
    """A system whose own view of its health is followed."""

    kind: str = Field(alias=KIND_KEY)
    settings: dict[str, Any] = Field(alias=SETTINGS_KEY)
    """All fields of the kind's dataclass in brownout_agent.watchers, durations in milliseconds."""
    vantage: Vantage = Field(
        default=CONTROLLER, alias="from", description="where it runs: controller, or the selector of one host"
    )

    @validates_model(mode="before")
    @classmethod
    def _find_kind(cls, data: object) -> object:
        return _with_kind(Observer.WATCHER, data, {"from"})

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        return observers.check_kind(Observer.WATCHER, kind)

    @field_validator("settings", mode="before")
    @classmethod
    def _known_settings(cls, written: object, info: ValidationInfo) -> dict[str, Any]:
        return observers.check_settings(Observer.WATCHER, info.data["kind"], written) if "kind" in info.data else {}


class SteadyState(Section):
    """How long the expectations must hold before the first fault, and are watched after the last."""

    before_ms: PositiveDuration = Field(default=10_000.0, alias="before", description="before the first fault")
    after_ms: PositiveDuration = Field(default=20_000.0, alias="after", description="after the last fault has ended")


class ProbeGuard(Section):
    """Aborts the run when a probe has seen too much."""

    probe: str = Field(description="name of the probe")
    abort_if: ExpectationForm = Field(description="condition on one of its metrics, such as outage > 45s")
    for_ms: Duration = Field(default=0.0, alias="for", description="how long it must be true; at once if left out")


class AgentLostGuard(Section):
    """Aborts the run when the agent of a target was silent for so long."""

    agent_lost_ms: PositiveDuration = Field(alias="agent_lost", description="how long an agent may be silent")


class MaxDurationGuard(Section):
    """Aborts the run when it has taken so long."""

    max_duration_ms: PositiveDuration = Field(alias="max_duration", description="how long the run may take in all")


Guard = ProbeGuard | AgentLostGuard | MaxDurationGuard


def _guard(data: object) -> object:
    """The guard that the keys speak of, so that errors are about that one and not about all three."""
    if not isinstance(data, dict):
        raise refusal("wrong-type", "a guard is a mapping", 'write {probe: ..., abort_if: "outage > 45s"}')
    by_key: dict[str, type[Section]] = {
        "probe": ProbeGuard, "abort_if": ProbeGuard, "agent_lost": AgentLostGuard, "max_duration": MaxDurationGuard,
    }  # fmt: skip
    meant = (by_key[similar] for key in data if (similar := nearest(str(key), by_key)))
    return next(meant, ProbeGuard).model_validate(data)


class FaultSpec(Section):
    """One fault: what, where, when, and for how long."""

    name: Name = Field(description="how the report calls it; made from `inject` when left out")
    inject: str = Field(description="the kind of fault, such as cpu.load; see `brownout faults list`")
    target: Annotated[str, Field(min_length=1, max_length=500)] = Field(
        description="a name under `targets`, or a selector such as role=app or host=db-1"
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict, alias="with", validate_default=True, description="the fault's own parameters"
    )
    """As they were written; validated, and not converted, since every side reads them in that form."""
    at_ms: Duration | None = Field(
        default=None, alias="at", description="time from the end of the first steady state; 0s if left out"
    )
    after: str | None = Field(default=None, description="name of an earlier fault: starts when that one has ended")
    wait_ms: Duration = Field(default=0.0, alias="wait", description="time between the end of `after` and the start")
    for_ms: PositiveDuration = Field(alias="for", description="how long it lasts; the agent ends it by itself")

    @field_validator("inject")
    @classmethod
    def _known_fault(cls, kind: str) -> str:
        known = catalogue()
        if kind in known:
            return kind
        if kind in later.FAULTS:
            raise refusal("not-yet", f"this version has no fault `{kind}`", "see `brownout faults list`")
        similar = nearest(kind, known)
        label = f"did you mean `{similar}`?" if similar else "see `brownout faults list`"
        raise refusal("unknown-fault", f"there is no fault `{kind}`", label)

    @field_validator("parameters", mode="before")
    @classmethod
    def _known_parameters(cls, written: object, info: ValidationInfo) -> object:
        if written is None:
            written = {}
        if not isinstance(written, dict) or "inject" not in info.data:
            return written
        shapes = [
            InitErrorDetails(
                type=refusal("not-yet", "this version has no parameters that change over time"), loc=(key,), input=value
            )
            for key, value in written.items()
            if isinstance(value, dict) and later.SHAPES & value.keys()
        ]
        if shapes:
            raise ValidationError.from_exception_data("with", shapes)
        model = catalogue()[info.data["inject"]].Parameters
        types = {name: field.annotation for name, field in model.model_fields.items()}
        model.model_validate(strict_booleans(types, written))
        return written


def named(faults: Sequence[object]) -> list[object]:
    """The faults as they were written, each with a name: `network-blackhole`, then `network-blackhole-2`."""
    taken = {fault["name"] for fault in faults if isinstance(fault, dict) and isinstance(fault.get("name"), str)}
    counts: Counter[str] = Counter()
    return [_with_name(fault, taken, counts) if isinstance(fault, dict) else fault for fault in faults]


def _with_name(fault: dict[str, Any], taken: set[str], counts: Counter[str]) -> dict[str, Any]:
    """The fault with a name that is not taken; `counts` says how many were made from each base."""
    if fault.get("name") is not None:
        return fault
    base = re.sub(r"[^a-z0-9-]+", "-", str(fault.get("inject", "")).lower())[:50].strip("-") or "fault"
    while True:
        counts[base] += 1
        name = base if counts[base] == 1 else f"{base}-{counts[base]}"
        if name not in taken:
            return {**fault, "name": name}


class ExperimentFile(Section):
    """Everything that a file may hold at its top."""

    version: Literal[1] = Field(description="version of this language: 1")
    name: Name = Field(description="small letters, digits and dashes, up to 63")
    hypothesis: Text = Field(default="", description="what is believed to hold, in one sentence")
    owner: Text = Field(default="", description="who answers for it")
    environment: Name = Field(default="staging", description="where it may run")
    labels: dict[str, Text] = Field(default_factory=dict, description="words of your own, kept with every run")
    vars: dict[Name, Annotated[bool | int | float | Text, BeforeValidator(_variable)]] = Field(
        default_factory=dict, description="values written once, used as ${vars.name} and set by --var name=value"
    )
    targets: dict[Name, Target] = Field(default_factory=dict, description="groups of hosts, named once")
    probes: dict[Name, ProbeSpec] = Field(default_factory=dict, description="what is asked again and again")
    watch: dict[Name, WatchSpec] = Field(default_factory=dict, description="systems whose own view is followed")
    steady_state: SteadyState = Field(default_factory=SteadyState, description="time before and after the faults")
    expect: dict[Name, Annotated[tuple[ExpectationForm, ...], BeforeValidator(one_or_more)]] = Field(
        default_factory=dict, description="per probe or watcher, what must hold; a miss makes the run `deviated`"
    )
    guards: tuple[Annotated[Guard, BeforeValidator(_guard)], ...] = Field(
        default=(), description="what aborts the run and undoes every fault"
    )
    faults: Annotated[
        tuple[FaultSpec, ...], BeforeValidator(lambda faults: named(faults) if isinstance(faults, list) else faults)
    ] = Field(min_length=1, max_length=100, description="what is injected, in order")


class Experiment(ExperimentFile):
    """A whole experiment, and the text it was read from."""

    source: str
    source_sha256: str

    @classmethod
    def of(cls, file: ExperimentFile, source: str, source_sha256: str) -> "Experiment":
        """The experiment of a file that was validated."""
        values = {name: getattr(file, name) for name in ExperimentFile.model_fields}
        return cls.model_construct(**values, source=source, source_sha256=source_sha256)

    def target_of(self, fault: FaultSpec) -> Target:
        """The target that a fault names, or the one that its selector makes, with one host picked."""
        if fault.target in self.targets:
            return self.targets[fault.target]
        return Target.model_construct(selector=Selector.parse(fault.target))

    def expectations(self) -> tuple[tuple[str, Expectation], ...]:
        """Every expectation with the name of its probe or watcher."""
        return tuple((name, expectation) for name, several in self.expect.items() for expectation in several)


def _with_kind(observer: Observer, data: object, keys: set[str]) -> object:
    """`{http: ..., every: ...}` with the kind and its settings under keys of their own."""
    if not isinstance(data, dict):
        return data
    candidates = [key for key in data if key not in keys]
    known = [key for key in candidates if key in observers.kinds(observer)]
    kind = next(iter(known or candidates), None)
    if kind is None:
        listed = " or ".join(f"`{name}`" for name in observers.kinds(observer))
        raise refusal("missing-key", f"it does not say what kind of {observer} it is", f"add {listed}")
    return {**{key: value for key, value in data.items() if key != kind}, KIND_KEY: kind, SETTINGS_KEY: data[kind]}
