"""When a run needs somebody else's approval, and whether it has one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from brownout_controller.access.decisions import ALLOWED, Decision, Place, Principal, decide
from brownout_controller.access.permissions import Permission

APPROVAL_TTL_S = 24 * 3600
APPROVAL_TTL_MAX_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Blast:
    """How far a run reaches: so many different hosts with faults, of so many in its environment.

    For a target that is resolved at injection every host counts that matched when the plan was made.
    """

    hosts: int
    of: int

    @property
    def percent(self) -> float:
        """0-100."""
        return 100 * self.hosts / self.of if self.of else 0.0

    def __str__(self) -> str:
        return f"{self.hosts} of {self.of} hosts ({self.percent:.3g} %)"


@dataclass(frozen=True, slots=True)
class BlastLimit:
    """A run above either of them needs approval. `percent` is 0-100 of the environment's hosts."""

    hosts: int = 1
    percent: float = 25.0

    def exceeded(self, blast: Blast) -> str:
        """Why this blast is above the limit; "" when it is not."""
        if blast.hosts > self.hosts:
            return f"it reaches {blast}, and more than {self.hosts} needs approval"
        if blast.percent > self.percent:
            return f"it reaches {blast}, and more than {self.percent:g} % needs approval"
        return ""


@dataclass(frozen=True, slots=True)
class Approval:
    """One person's word that one plan may be run."""

    approval_id: int
    digest: str
    approver: str
    given_ns: int
    expires_ns: int
    withdrawn_ns: int | None = None

    def good(self, now_ns: int) -> bool:
        """Whether it still counts."""
        return self.withdrawn_ns is None and self.given_ns <= now_ns < self.expires_ns


def may_approve(principal: Principal, place: Place, author: str) -> Decision:
    """Whether somebody may approve a plan that `author` made."""
    decision = decide(principal, Permission.APPROVAL_GIVE, place)
    if decision.allowed and principal.user == author:
        return Decision(False, f"{author} made this plan, so somebody else must approve it")
    return decision


def find_approval(
    approvals: Iterable[Approval],
    digest: str,
    involved: frozenset[str],
    still_approver: Callable[[str], bool],
    now_ns: int,
) -> Approval | None:
    """An approval of this very plan that counts now: good, by nobody who is `involved` as author or starter, and by
    somebody who may still approve.
    """
    for approval in approvals:
        fits = approval.digest == digest and approval.good(now_ns) and approval.approver not in involved
        if fits and still_approver(approval.approver):
            return approval
    return None


def may_start(principal: Principal, place: Place, blast: Blast, limit: BlastLimit, approved: bool) -> Decision:
    """Whether somebody may start a run that reaches so far."""
    decision = decide(principal, Permission.RUN_START, place)
    if not decision.allowed or approved:
        return decision
    if why := limit.exceeded(blast):
        return Decision(False, f"nobody else has approved this plan: {why}")
    alone = decide(principal, Permission.RUN_START_UNAPPROVED, place)
    return ALLOWED if alone.allowed else Decision(False, f"nobody else has approved this plan: {alone.reason}")
