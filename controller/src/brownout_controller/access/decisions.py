"""Somebody, their grants, and the decision whether they may."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from brownout_controller.access.permissions import PERMISSIONS, STOPPING, Over, Permission, Role, roles_with
from brownout_controller.language.selectors import Selector


@dataclass(frozen=True, slots=True)
class Grant:
    """One role, and where it holds. `None` is everywhere: every environment, every host."""

    role: Role
    environments: frozenset[str] | None = None
    hosts: Selector | None = None

    @property
    def unlimited(self) -> bool:
        """Whether it holds everywhere."""
        return self.environments is None and self.hosts is None

    def in_environment(self, environment: str) -> bool:
        """Whether it holds there. The environment "" is not known, and only a grant for all of them covers it."""
        return self.environments is None or environment in self.environments

    def __str__(self) -> str:
        where = "every environment" if self.environments is None else ", ".join(sorted(self.environments))
        return f"{self.role} in {where}" + (f" on {self.hosts}" if self.hosts else "")


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who was proved to be who they are. `token_id` is the token by which, "" for none."""

    user: str
    grants: tuple[Grant, ...]
    token_id: str = ""

    def has(self, permission: Permission, environment: str | None = None) -> bool:
        """Whether any grant gives it, wherever, or somewhere in an environment."""
        given = (grant for grant in self.grants if permission in PERMISSIONS[grant.role])
        return any(environment is None or grant.in_environment(environment) for grant in given)


@dataclass(frozen=True, slots=True)
class Place:
    """What an object is about: its environment, and the labels of each of its hosts."""

    environment: str
    hosts: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Allowed, or refused for a reason."""

    allowed: bool
    reason: str = ""


ALLOWED = Decision(True)


def decide(principal: Principal, permission: Permission, place: Place | None = None) -> Decision:
    """Whether somebody may; `place` is needed where the permission is over one.

    Every host of a place must be covered by some grant that holds in its environment. What is about no host at all is
    covered only by a grant that is not limited to some.
    """
    grants = [grant for grant in principal.grants if permission in PERMISSIONS[grant.role]]
    if not grants:
        roles = ", ".join(roles_with(permission))
        return Decision(False, f"no role of {principal.user} may {permission.text}; these may: {roles}")
    if permission.over is Over.ANYTHING:
        return ALLOWED
    if permission.over is Over.SYSTEM:
        unlimited = any(grant.unlimited for grant in grants)
        reason = f"{permission.word} belongs to no environment, and every grant of {principal.user} is limited to some"
        return ALLOWED if unlimited else Decision(False, reason)
    assert place is not None, f"{permission.word} is asked for a place"
    return _over_place(principal, permission, place, grants)


def _over_place(principal: Principal, permission: Permission, place: Place, grants: list[Grant]) -> Decision:
    here = [grant for grant in grants if grant.in_environment(place.environment)]
    if not here:
        where = f"environment `{place.environment}`" if place.environment else "what belongs to no known environment"
        return Decision(False, f"{principal.user} has {permission.word}, but not for {where}")
    if any(grant.hosts is None for grant in here):
        return ALLOWED
    for labels in place.hosts:
        if not any(grant.hosts is not None and grant.hosts.matches(labels) for grant in here):
            name = labels.get("host", "a host")
            return Decision(False, f"{principal.user} has {permission.word}, but not for {name}")
    return ALLOWED if place.hosts else Decision(False, f"{principal.user} has {permission.word} for some hosts only")


def narrowed(
    grants: Iterable[Grant], roles: frozenset[Role] | None, environments: frozenset[str] | None
) -> tuple[Grant, ...]:
    """What a token of somebody with these grants gives, that is for these roles and environments (None: for all).

    A token never gives more than its owner has at the time. The role `halter` comes out of every grant that may halt.
    """
    kept: list[Grant] = []
    for grant in grants:
        here = grant.environments
        if environments is not None:
            here = environments if here is None else here & environments
        if here is not None and not here:
            continue
        if roles is None or grant.role in roles:
            kept.append(replace(grant, environments=here))
        elif Role.HALTER in roles and PERMISSIONS[grant.role] >= STOPPING:
            kept.append(Grant(Role.HALTER, here, grant.hosts))
    return tuple(dict.fromkeys(kept))
