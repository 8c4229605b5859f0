"""The lever that halts everything and keeps runs from beginning, until somebody releases it."""

from typing import Annotated, Any

from brownout_controller.access.permissions import Permission
from brownout_controller.api.gate import Caller, needs
from brownout_controller.api.routes.common import Here, router
from brownout_controller.api.shapes import Reason
from brownout_controller.store.levers import Lever

routes = router("lever")


@routes.get("/lever")
def show(here: Here, caller: Annotated[Caller, needs(Permission.LEVER_READ)]) -> dict[str, Any]:
    """Whether everything is halted, why, and by whom."""
    return {"pulled": _shown(here.levers.standing())}


@routes.post("/lever/pull")
async def pull(
    here: Here, caller: Annotated[Caller, needs(Permission.LEVER_PULL)], body: Reason | None = None
) -> dict[str, Any]:
    """Halt everything. Answers when every host has confirmed, or could have: who has not is named with the reason."""
    halting = await here.controller.lever.pull(body.reason if body else "", caller.actor)
    return {
        "pulled": _shown(halting.lever),
        "confirmed": list(halting.confirmed),
        "unconfirmed": halting.unconfirmed,
        "trouble": halting.trouble,
    }


@routes.post("/lever/release")
async def release(here: Here, caller: Annotated[Caller, needs(Permission.LEVER_RELEASE)]) -> dict[str, Any]:
    """Let runs begin again; `released` is the lever that stood, or null."""
    return {"released": _shown(await here.controller.lever.release(caller.actor))}


def _shown(lever: Lever | None) -> dict[str, Any] | None:
    if lever is None:
        return None
    return {"reason": lever.reason, "by": lever.pulled_by, "pulled_ns": lever.pulled_ns}
