"""The audit log, for who may read it."""

from typing import Annotated, Any

from fastapi import Query

from brownout_controller.access.permissions import Permission
from brownout_controller.api.gate import Caller, needs
from brownout_controller.api.routes.common import Here, Limit, page, router
from brownout_controller.audit.entry import Outcome
from brownout_controller.store.audit import AuditStore

routes = router("audit")

Text = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


@routes.get("/audit")
def list_entries(
    here: Here,
    caller: Annotated[Caller, needs(Permission.AUDIT_READ)],
    limit: Limit = 50,
    before: Annotated[int | None, Query(ge=1, lt=2**63, description="only entries before this one")] = None,
    actor: Text = None,
    action: Text = None,
    outcome: Outcome | None = None,
) -> dict[str, Any]:
    """Entries, newest first, each with its hash. To look at this is an entry as well."""
    only = {"actor": actor, "action": action, "outcome": outcome}
    chosen = {name: value for name, value in only.items() if value is not None}
    return page(AuditStore(here.store.database).newest(limit, chosen, before))
