"""Plans: what would be done, decided before anything is, and kept so that somebody else can approve it."""

from typing import Annotated, Any

from fastapi.concurrency import run_in_threadpool

from brownout_controller.access.approvals import Blast, BlastLimit
from brownout_controller.access.permissions import Permission
from brownout_controller.api import planning
from brownout_controller.api.gate import Caller, needs
from brownout_controller.api.planning import Wish
from brownout_controller.api.routes.common import DigestInPath, Here, router
from brownout_controller.api.services import Services
from brownout_controller.api.shapes import NewPlan
from brownout_controller.running.hosts import view_of
from brownout_controller.store.approvals import KeptPlan

routes = router("plans")


@routes.post("/plans", status_code=201)
async def make_plan(
    body: NewPlan, here: Here, caller: Annotated[Caller, needs(Permission.PLAN_MAKE)]
) -> dict[str, Any]:
    """Plan an experiment on the hosts that one may see. Nothing is injected."""
    hosts = await run_in_threadpool(planning.visible_hosts, here, caller.principal)
    wish = Wish(body.experiment, body.variables, planning.seed_of(body.seed), hosts)
    experiment = await planning.read_wish(wish)
    await run_in_threadpool(refuse_elsewhere, caller, experiment.environment)
    plan = await planning.plan_wish(here, wish, experiment)
    blast = planning.blast_of(plan, map(view_of, here.fleet.connected))

    def keep() -> dict[str, Any]:
        kept = planning.kept_plan(plan, wish, caller.user)
        caller.demand_new(planning.may_make(caller.principal, plan), f"plan {plan.digest}")
        return describe(here, here.approvals.keep_plan(kept), blast, caller.user)

    return await run_in_threadpool(keep)


@routes.get("/plans/{digest}")
def show_plan(
    digest: DigestInPath, here: Here, caller: Annotated[Caller, needs(Permission.PLAN_READ)]
) -> dict[str, Any]:
    """A plan that was made, and whether it is approved."""
    kept = here.approvals.plan(digest)
    if kept is None:
        caller.missing(f"plan {digest}")
    caller.demand(kept.place, f"plan {digest}", Permission.PLAN_READ)
    return describe(here, kept, None, caller.user)


def refuse_elsewhere(caller: Caller, environment: str) -> None:
    """Say first of all that an environment is not theirs, before any word about what is in it.

    Raises:
        Problem: 403.
    """
    if not caller.principal.has(Permission.PLAN_MAKE, environment):
        reason = f"{caller.user} makes no plans for environment `{environment}`"
        caller.refuse(f"environment {environment}", reason)


def describe(here: Services, kept: KeptPlan, blast: Blast | None, starter: str) -> dict[str, Any]:
    """A plan as people see it. `approval_needed` says why, or is empty; it is known where the fleet was looked at."""
    limit: BlastLimit = here.approvals.limit_of(kept.place.environment).limit
    return {
        **kept.document,
        "author": kept.author,
        "made_ns": kept.made_ns,
        "experiment": kept.request["experiment"],
        "variables": kept.request["variables"],
        "approved": planning.is_approved(here, kept, starter),
        "approval_needed": None if blast is None else limit.exceeded(blast),
    }
