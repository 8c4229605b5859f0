"""From the text of an experiment to a plan that is kept, and what may be decided about it."""

import asyncio
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from brownout_controller.access.approvals import Blast, find_approval, may_approve
from brownout_controller.access.decisions import ALLOWED, Decision, Grant, Place, Principal, decide
from brownout_controller.access.permissions import Permission
from brownout_controller.api.problems import Problem
from brownout_controller.api.services import Services
from brownout_controller.language import Experiment, InvalidExperiment, check
from brownout_controller.language.source import LARGEST_BYTES, decode
from brownout_controller.planning.fleet_view import HostView
from brownout_controller.planning.plan import Plan, PlanRefused, make_plan
from brownout_controller.reporting.plan import plan_document
from brownout_controller.running.hosts import view_of
from brownout_controller.store.approvals import KeptPlan

SEED_BITS = 32
NAME = "experiment.yaml"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a plan is made from. `hosts` are the names of those that it may know of, whatever others come later."""

    experiment: str
    variables: dict[str, str]
    seed: int
    hosts: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """As it is kept: enough to make the same plan again."""
        return asdict(self)

    @classmethod
    def of(cls, document: dict[str, Any]) -> "Wish":
        """The wish that was kept."""
        return cls(document["experiment"], document["variables"], document["seed"], tuple(document["hosts"]))


async def read_wish(wish: Wish) -> Experiment:
    """The experiment of a wish, parsed off the event loop.

    Raises:
        Problem: 413 when it is too large, 422 when it is not valid.
    """
    return await asyncio.to_thread(_read, wish)


async def plan_wish(services: Services, wish: Wish, experiment: Experiment) -> Plan:
    """Resolve targets and vantages as the fleet stands, off the event loop.

    Raises:
        Problem: 409 where the fleet cannot carry it out.
    """
    views = [view_of(host) for host in services.fleet.connected if host.name in wish.hosts]
    return await asyncio.to_thread(_plan, experiment, views, wish.seed)


def _read(wish: Wish) -> Experiment:
    try:
        return check(decode(wish.experiment.encode(), NAME), wish.variables).experiment
    except InvalidExperiment as error:
        raise _invalid(error, len(wish.experiment.encode())) from error


def _plan(experiment: Experiment, views: list[HostView], seed: int) -> Plan:
    """The plan, with the hosts that it is about: who may see them may see it."""
    try:
        made = make_plan(experiment, views, seed)
        about = hosts_of(made)
        return replace(made, hosts=tuple(host for host in made.hosts if host.name in about))
    except PlanRefused as refused:
        findings = [{"code": one.code, "why": one.message, "next": one.help} for one in refused.problems]
        title = "the plan cannot be run as the fleet stands; nothing was injected"
        raise Problem(409, "plan-refused", title, str(refused), "brownout hosts list", findings) from refused


def _invalid(error: InvalidExperiment, size_bytes: int) -> Problem:
    findings = [
        {"code": one.code, "line": one.line, "column": one.column, "why": one.message, "next": one.help}
        for one in error.diagnostics
    ]
    status = 413 if size_bytes > LARGEST_BYTES else 422
    return Problem(status, "invalid-experiment", "the experiment is not valid", str(error), "", findings)


def seed_of(asked: int | None) -> int:
    """The seed that was asked for, or a random one."""
    return secrets.randbits(SEED_BITS) if asked is None else asked


def visible_hosts(services: Services, principal: Principal) -> tuple[str, ...]:
    """The connected hosts that somebody may see, by name."""
    return tuple(
        host.name
        for host in services.fleet.connected
        if decide(principal, Permission.HOST_READ, place_of_host(view_of(host))).allowed
    )


def place_of_host(view: HostView) -> Place:
    """Where a host is. One without a policy belongs to no known environment."""
    return Place(view.environment, (view.labels,))


def place_of_plan(plan: Plan) -> Place:
    """Every host that faults touch or may touch, and every one that probes run on."""
    about = hosts_of(plan)
    return Place(plan.experiment.environment, tuple(dict(host.labels) for host in plan.hosts if host.name in about))


def hosts_of(plan: Plan) -> frozenset[str]:
    """By name: the hosts of its faults, and those that probes and watchers run on."""
    return faulted(plan) | {observer.vantage for observer in plan.observers}


def faulted(plan: Plan) -> frozenset[str]:
    """The hosts of every fault: those that are chosen, or all that match where they are chosen at injection."""
    return frozenset(
        name for fault in plan.faults for name in (fault.matched if fault.chosen_at_injection else fault.hosts)
    )


def may_make(principal: Principal, plan: Plan) -> Decision:
    """Whether somebody may make a plan: in its environment, and on each of its hosts where that host is. One of no
    known environment is everybody's, so only a grant for all environments covers it.
    """
    places = [place_of_plan(plan), *(place_of_host(host) for host in plan.hosts if host.name in hosts_of(plan))]
    decisions = (decide(principal, Permission.PLAN_MAKE, place) for place in places)
    return next((one for one in decisions if not one.allowed), ALLOWED)


def blast_of(plan: Plan, hosts: Iterable[HostView]) -> Blast:
    """How far a plan reaches among the hosts of its environment."""
    environment = plan.experiment.environment
    return Blast(len(faulted(plan)), sum(host.environment == environment for host in hosts))


def is_approved(services: Services, kept: KeptPlan | None, starter: str) -> bool:
    """Whether a plan has an approval that counts for this starter. Blocking."""
    if kept is None:
        return False
    involved = frozenset({kept.author, starter})

    def still_approver(name: str) -> bool:
        user = services.access.user(name)
        return user is not None and not user.disabled and _may_approve(user.name, user.grants, kept)

    approvals = services.approvals.approvals(kept.digest)
    return find_approval(approvals, kept.digest, involved, still_approver, time.time_ns()) is not None


def _may_approve(name: str, grants: tuple[Grant, ...], kept: KeptPlan) -> bool:
    return may_approve(Principal(name, grants), kept.place, kept.author).allowed


def kept_plan(plan: Plan, wish: Wish, author: str) -> KeptPlan:
    """A plan as it is to be kept."""
    return KeptPlan(plan.digest, author, time.time_ns(), place_of_plan(plan), wish.document(), plan_document(plan))
