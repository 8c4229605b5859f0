"""Whether the controller lives, who one is, and what there is to inject."""

from typing import Annotated, Any

from brownout_agent.faults import catalogue
from fastapi import Request

from brownout_controller import __version__
from brownout_controller.access.permissions import PERMISSIONS, Permission
from brownout_controller.api.gate import OPEN, Caller, needs
from brownout_controller.api.routes.common import page, router
from brownout_controller.store.access import grant_document

routes = router("system")


@routes.get("/health", dependencies=[OPEN])
async def health() -> dict[str, str]:
    """Whether the controller answers."""
    return {"status": "ok"}


@routes.get("/openapi.json")
def openapi(request: Request, caller: Annotated[Caller, needs(Permission.SELF_READ)]) -> dict[str, Any]:
    """This API's description, OpenAPI 3.1."""
    description: dict[str, Any] = request.app.openapi()
    return description


@routes.get("/whoami")
def whoami(caller: Annotated[Caller, needs(Permission.SELF_READ)]) -> dict[str, Any]:
    """Who one is, by which token, and what one may."""
    grants = caller.principal.grants
    return {
        "user": caller.user,
        "token": caller.token.token_id,
        "token_expires_ns": caller.token.expires_ns,
        "grants": [grant_document(grant) for grant in grants],
        "permissions": sorted({permission.word for grant in grants for permission in PERMISSIONS[grant.role]}),
        "version": __version__,
    }


@routes.get("/faults")
def faults(caller: Annotated[Caller, needs(Permission.FAULT_READ)]) -> dict[str, Any]:
    """Every fault, with the JSON Schema of its parameters."""
    return page(
        [
            {"name": name, "family": name.partition(".")[0], "parameters": kind.Parameters.model_json_schema()}
            for name, kind in sorted(catalogue().items())
        ]
    )
