"""Approvals, and the limits above which runs need them."""

from typing import Annotated, Any

from fastapi import Path, Query, Response

from brownout_controller.access.approvals import Approval, BlastLimit, may_approve
from brownout_controller.access.permissions import Permission
from brownout_controller.api.gate import Caller, needs
from brownout_controller.api.problems import Problem
from brownout_controller.api.routes.common import Here, IfMatch, Limit, Number, etag, page, router, stale, version_asked
from brownout_controller.api.services import Services
from brownout_controller.api.shapes import ENVIRONMENT, NewApproval, NewLimit
from brownout_controller.store.access import Stale
from brownout_controller.store.approvals import KeptLimit, KeptPlan

routes = router("approvals")

EnvironmentInPath = Annotated[str, Path(pattern=f"^{ENVIRONMENT}$")]
PlanAsked = Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="only approvals of this plan")]


@routes.post("/approvals", status_code=201)
def approve(
    body: NewApproval, here: Here, caller: Annotated[Caller, needs(Permission.APPROVAL_GIVE)]
) -> dict[str, Any]:
    """Approve a plan that somebody else has made, for a while."""
    subject = f"plan {body.plan}"
    kept = _seen(here.approvals.plan(body.plan), subject, caller)
    caller.demand_new(may_approve(caller.principal, kept.place, kept.author), subject)
    return _shown(here.approvals.approve(body.plan, caller.user, body.ttl_s))


@routes.get("/approvals")
def list_approvals(
    here: Here,
    caller: Annotated[Caller, needs(Permission.APPROVAL_READ)],
    plan: PlanAsked = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """The latest approvals that one may see, newest first."""
    approvals = here.approvals.approvals(plan, limit)
    places = {digest: _place(here, digest) for digest in {approval.digest for approval in approvals}}
    return page([_shown(one) for one in approvals if caller.may(Permission.APPROVAL_READ, places[one.digest].place)])


@routes.delete("/approvals/{number}", status_code=204)
def withdraw(number: Number, here: Here, caller: Annotated[Caller, needs(Permission.APPROVAL_GIVE)]) -> Response:
    """Take an approval back. Runs that have begun go on; halt them."""
    subject = f"approval {number}"
    approval = here.approvals.approval(number)
    if approval is None:
        caller.missing(subject)
    caller.demand(_place(here, approval.digest).place, subject, Permission.APPROVAL_READ)
    if not here.approvals.withdraw(number):
        raise Problem(409, "withdrawn", f"{subject} was withdrawn before")
    return Response(status_code=204)


@routes.get("/limits/{environment}")
def show_limit(
    environment: EnvironmentInPath,
    here: Here,
    caller: Annotated[Caller, needs(Permission.LIMIT_READ)],
    answer: Response,
) -> dict[str, Any]:
    """Above which blast radius a run in an environment needs approval."""
    return _limit(here.approvals.limit_of(environment), answer)


@routes.put("/limits/{environment}")
def set_limit(
    environment: EnvironmentInPath,
    body: NewLimit,
    here: Here,
    caller: Annotated[Caller, needs(Permission.LIMIT_SET)],
    answer: Response,
    if_match: IfMatch = None,
) -> dict[str, Any]:
    """Set it, if nobody else has since it was read."""
    version = version_asked(if_match, here.approvals.limit_of(environment).version)
    try:
        kept = here.approvals.set_limit(environment, BlastLimit(body.hosts, body.percent), version)
    except Stale as error:
        raise stale(str(error)) from error
    return _limit(kept, answer)


def _seen(kept: KeptPlan | None, subject: str, caller: Caller) -> KeptPlan:
    if kept is None or not caller.may(Permission.PLAN_READ, kept.place):
        caller.missing(subject)
    return kept


def _place(here: Services, digest: str) -> KeptPlan:
    kept = here.approvals.plan(digest)
    assert kept is not None, "plans are never deleted, and an approval refers to one"
    return kept


def _shown(approval: Approval) -> dict[str, Any]:
    return {
        "id": approval.approval_id,
        "plan": approval.digest,
        "approver": approval.approver,
        "given_ns": approval.given_ns,
        "expires_ns": approval.expires_ns,
        "withdrawn_ns": approval.withdrawn_ns,
    }


def _limit(kept: KeptLimit, answer: Response) -> dict[str, Any]:
    answer.headers["ETag"] = etag(kept.version)
    return {"environment": kept.environment, "hosts": kept.limit.hosts, "percent": kept.limit.percent}
