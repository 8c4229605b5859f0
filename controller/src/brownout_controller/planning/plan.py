"""The plan: what will be done where, decided before anything is. Frozen, and named by its digest."""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from brownout_agent.faults import catalogue

from brownout_controller.language.experiment import CONTROLLER, Experiment, FaultSpec, Target
from brownout_controller.language.nearest import nearest
from brownout_controller.language.selectors import Selector
from brownout_controller.planning.fleet_view import HostView
from brownout_controller.planning.partitions import Cut
from brownout_controller.planning.peers import NoPeers, named_targets, peers_of, unaddressed

WATCH_EVERY_MS = 100
_NAMED_MAX = 3
Targets = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why nothing can be run, and what to do about it."""

    code: str
    message: str
    help: str = ""


class PlanRefused(Exception):
    """The plan cannot be run as the fleet stands; nothing was sent."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault of the experiment. `hosts` is empty when they are chosen at injection."""

    name: str
    kind: str
    parameters: dict[str, Any]
    at_ms: float
    after: str | None
    wait_ms: float
    for_ms: float
    hosts: tuple[str, ...]
    matched: tuple[str, ...]
    chosen_at_injection: bool
    may_be_skipped: bool = False
    """`if_none: skip`: a run in which nobody matched is as it was wished."""
    peers: Cut | None = None
    """For each of the hosts those that it is parted from, or sees worse; None where that is as written."""


@dataclass(frozen=True, slots=True)
class PlannedObserver:
    """One probe or watcher at one vantage: `controller`, or a host."""

    observer_id: str
    name: str
    kind: str
    is_watcher: bool
    settings: dict[str, Any]
    every_ms: float
    vantage: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a run needs besides time."""

    experiment: Experiment
    seed: int
    hosts: tuple[HostView, ...]
    targets: dict[str, tuple[str, ...]]
    """The hosts of each named target but those that are resolved at injection: the same wherever it is named."""
    faults: tuple[PlannedFault, ...]
    observers: tuple[PlannedObserver, ...]

    @property
    def expected_ms(self) -> float:
        """How long a run takes in which every fault goes its full time."""
        ends_ms: dict[str, float] = {}

        def end_of(fault: PlannedFault) -> float:
            if fault.name not in ends_ms:
                first = next((other for other in self.faults if other.name == fault.after), None)
                begin_ms = fault.at_ms if first is None else end_of(first) + fault.wait_ms
                ends_ms[fault.name] = begin_ms + fault.for_ms
            return ends_ms[fault.name]

        around = self.experiment.steady_state
        return around.before_ms + max(map(end_of, self.faults), default=0.0) + around.after_ms

    @property
    def digest(self) -> str:
        """SHA-256 over what will be done: the experiment with its variables filled in, the seed, the hosts and where
        each thing runs.
        """
        done = {
            "experiment": self.experiment.model_dump(mode="json"),
            "seed": self.seed,
            "targets": self.targets,
            "faults": [asdict(fault) for fault in self.faults],
            "observers": [asdict(observer) for observer in self.observers],
        }
        return hashlib.sha256(json.dumps(done, sort_keys=True, default=str).encode()).hexdigest()


def make_plan(experiment: Experiment, hosts: Iterable[HostView], seed: int) -> Plan:
    """Resolve targets and vantages against those of these hosts that the experiment can be about.

    Raises:
        PlanRefused: a target or vantage matches nobody, or a chosen host cannot do what it is chosen for.
    """
    known = sorted(hosts, key=lambda host: host.name)
    here = tuple(within(experiment.environment, known))
    fleet = _Fleet(experiment.environment, here, tuple(host for host in known if host not in here), [])
    targets = {
        name: _draw(target, name, here, seed)
        for name, target in experiment.targets.items()
        if target.resolve != "at_injection"
    }
    faults = tuple(_plan_fault(experiment, fault, fleet, targets, seed) for fault in experiment.faults)
    observers = (*_plan_probes(experiment, fleet), *_plan_watchers(experiment, fleet))
    if fleet.problems:
        raise PlanRefused(fleet.problems)
    return Plan(experiment, seed, here, targets, faults, observers)


def within(environment: str, hosts: Iterable[HostView]) -> list[HostView]:
    """The hosts that an experiment of an environment can mean: those there, and those of which nobody knows where they
    are. Those are good for probes; a fault is refused by the policy that they lack.
    """
    return [host for host in hosts if host.environment in {environment, ""}]


@dataclass(frozen=True, slots=True)
class _Fleet:
    """The hosts that a plan can mean, those that it cannot, and what is wrong so far."""

    environment: str
    here: tuple[HostView, ...]
    elsewhere: tuple[HostView, ...]
    problems: list[Problem]

    def nobody(self, code: str, what: str, selector: Selector, outcome: str = "") -> None:
        """Note that a selector matches no host here, and where it would."""
        others = [host for host in self.elsewhere if selector.matches(host.labels)]
        if not others:
            self.problems.append(Problem(code, f"{what} matches 0 hosts{outcome}", _closest(selector, self.here)))
            return
        named = ", ".join(f"{host.name} (`{host.environment}`)" for host in others[:_NAMED_MAX])
        more = f" and {len(others) - _NAMED_MAX} more" if len(others) > _NAMED_MAX else ""
        message = f"{what} matches 0 hosts of environment `{self.environment}`{outcome}; elsewhere: {named}{more}"
        remedy = "set `environment:` in the experiment, or mend the hosts' policies"
        self.problems.append(Problem("wrong-environment", message, remedy))


def choose(
    experiment: Experiment, fault: FaultSpec, hosts: Sequence[HostView], targets: Targets, seed: int
) -> tuple[tuple[str, ...], Cut | None]:
    """The hosts that get a fault, and for each the hosts that are its peers (None: as written): those of `targets`,
    which were resolved before, and of these hosts by the seed.

    Raises:
        NoPeers: the fault names targets as its peers, or cuts its own, and nobody is left.
    """

    def hosts_of(name: str) -> tuple[str, ...]:
        return targets[name] if name in targets else _draw(experiment.targets[name], name, hosts, seed)

    if fault.target in experiment.targets:
        chosen = hosts_of(fault.target)
    else:
        chosen = _draw(experiment.target_of(fault), fault.name, hosts, seed)
    peers = peers_of(fault, experiment.targets, chosen, hosts_of, f"{seed}/{fault.name}")
    return (chosen if peers is None else tuple(host for host in chosen if host in peers)), peers


def _draw(target: Target, name: str, hosts: Sequence[HostView], seed: int) -> tuple[str, ...]:
    """The same fleet and seed give the same hosts."""
    candidates = [host.name for host in match(target, hosts)]
    chosen = random.Random(f"{seed}/{name}").sample(candidates, target.pick.of(len(candidates)))  # noqa: S311
    return tuple(sorted(chosen))


def match(target: Target, hosts: Sequence[HostView]) -> list[HostView]:
    """Every host that a target could mean, by name."""
    return [host for host in hosts if target.selector.matches(host.labels) and host.name not in target.exclude]


def _plan_fault(experiment: Experiment, fault: FaultSpec, fleet: _Fleet, targets: Targets, seed: int) -> PlannedFault:
    target = experiment.target_of(fault)
    matched = tuple(host.name for host in match(target, fleet.here))
    involved = [target, *(experiment.targets[name] for name in named_targets(fault, experiment.targets))]
    at_injection = any(one.resolve == "at_injection" for one in involved)
    chosen, peers = ((), None) if at_injection else _choose_now(experiment, fault, fleet, targets, seed)
    if not matched and target.if_none == "fail":
        what = f"target `{fault.target}` of fault `{fault.name}`"
        fleet.nobody("no-target", what, target.selector, ", so nothing was injected")
    for host in fleet.here:
        if host.name in (matched if at_injection else chosen):
            fleet.problems.extend(_unfit(fault, host, experiment.environment))
    return PlannedFault(
        name=fault.name,
        kind=fault.inject,
        parameters=dict(fault.parameters),
        at_ms=fault.at_ms or 0.0,
        after=fault.after,
        wait_ms=fault.wait_ms,
        for_ms=fault.for_ms,
        hosts=chosen,
        matched=matched,
        chosen_at_injection=at_injection,
        may_be_skipped=target.if_none == "skip",
        peers=peers,
    )


def _choose_now(
    experiment: Experiment, fault: FaultSpec, fleet: _Fleet, targets: Targets, seed: int
) -> tuple[tuple[str, ...], Cut | None]:
    try:
        chosen, peers = choose(experiment, fault, fleet.here, targets, seed)
    except NoPeers as error:
        remedy = "`brownout doctor` lists hosts and labels; `pick:` says how many of a target are meant"
        fleet.problems.append(Problem("no-peers", f"fault `{fault.name}`: {error}", remedy))
        return (), None
    views = {host.name: host for host in fleet.here}
    mute = {
        other.name: other
        for host, others in (peers or {}).items()
        for other in unaddressed(views[host], [views[one] for one in others])
    }
    for other in mute.values():
        message = f"{other.name} is a peer of fault `{fault.name}` and has told no address by which it is reached"
        remedy = f"name its addresses in `to`, or see `ip address` there; its agent is version {other.agent_version}"
        fleet.problems.append(Problem("no-address", message, remedy))
    return chosen, peers


def _unfit(fault: FaultSpec, host: HostView, environment: str) -> list[Problem]:
    if not host.injector_attached:
        message = f"{host.name} has no injector, so it can inject nothing"
        return [Problem("no-injector", message, f"start brownout-injector on {host.name}: {host.policy}")]
    if host.environment != environment:
        message = f"the experiment is for environment `{environment}`; {host.name} has no policy that allows anything"
        return [Problem("wrong-environment", f"{message} ({host.policy})", f"mend the policy of {host.name}")]
    if fault.inject in host.unable:
        reason, remedy = host.unable[fault.inject]
        return [Problem("not-able", f"{host.name} cannot do {fault.inject}: {reason}", remedy)]
    if fault.inject not in host.kinds:
        message = f"{host.name} does not know {fault.inject}; its agent is version {host.agent_version}"
        return [Problem("not-able", message, f"this controller knows {', '.join(catalogue())}")]
    return []


def _closest(selector: Selector, hosts: Sequence[HostView]) -> str:
    """Hosts that miss the fewest conditions, with what they have instead; or how a host comes to be here at all."""
    if not hosts:
        return "no host is connected; next: brownout doctor"
    scored = []
    for host in hosts:
        missed = [need for need in selector.requirements if not need.matches(host.labels)]
        scored.append((len(missed), host.name, missed))
    fewest = min(scored)[0]
    parts: list[str] = []
    for count, name, missed in sorted(scored, key=lambda entry: entry[:2]):
        if count == fewest and len(parts) < 3:
            labels = next(host.labels for host in hosts if host.name == name)
            has = ", ".join(f"{need.key}={labels[need.key]}" for need in missed if need.key in labels)
            parts.append(f"{name} has {has or 'no label ' + ', '.join(need.key for need in missed)}")
    label = nearest(str(selector), [f"{key}={value}" for host in hosts for key, value in host.labels.items()])
    return f"closest: {'; '.join(parts)}" + (f"; did you mean `{label}`?" if label else "")


def _plan_probes(experiment: Experiment, fleet: _Fleet) -> Iterable[PlannedObserver]:
    return [
        PlannedObserver(f"probe/{name}/{place}", name, probe.kind, False, probe.settings, probe.every_ms, place)
        for name, probe in experiment.probes.items()
        for vantage in probe.vantages
        for place in _places(vantage, f"probe `{name}`", fleet)
    ]


def _plan_watchers(experiment: Experiment, fleet: _Fleet) -> Iterable[PlannedObserver]:
    return [
        PlannedObserver(f"watch/{name}/{place}", name, watch.kind, True, watch.settings, WATCH_EVERY_MS, place)
        for name, watch in experiment.watch.items()
        for place in _places(watch.vantage, f"watcher `{name}`", fleet)[:1]
    ]


def _places(vantage: str, what: str, fleet: _Fleet) -> list[str]:
    if vantage == CONTROLLER:
        return [CONTROLLER]
    selector = Selector.parse(vantage)
    places = [host.name for host in fleet.here if selector.matches(host.labels)]
    if not places:
        fleet.nobody("no-vantage", f"the vantage `{vantage}` of {what}", selector)
    return places
