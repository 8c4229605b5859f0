"""Users and their roles. Users are disabled, never deleted: what they did keeps their name."""

from typing import Annotated, Any

from fastapi import Response

from brownout_controller.access.permissions import Permission
from brownout_controller.api.gate import Caller, needs
from brownout_controller.api.problems import Problem
from brownout_controller.api.routes.common import Here, IfMatch, NameInPath, etag, page, router, stale, version_asked
from brownout_controller.api.shapes import ChangedUser, NewUser
from brownout_controller.store.access import Stale, User, UserExists, grant_document

routes = router("users")


@routes.get("/users")
def list_users(here: Here, caller: Annotated[Caller, needs(Permission.USER_READ)]) -> dict[str, Any]:
    """Every user."""
    return page([_shown(user) for user in here.access.users()])


@routes.post("/users", status_code=201)
def add_user(
    body: NewUser, here: Here, caller: Annotated[Caller, needs(Permission.USER_MANAGE)], answer: Response
) -> dict[str, Any]:
    """Add a user, who can do nothing before there is a token for them."""
    try:
        user = here.access.add_user(body.name, [shape.grant() for shape in body.grants])
    except UserExists as error:
        raise Problem(409, "exists", f"user {body.name} cannot be added", str(error), "choose another name") from error
    answer.headers["ETag"] = etag(user.version)
    return _shown(user)


@routes.get("/users/{name}")
def show_user(
    name: NameInPath, here: Here, caller: Annotated[Caller, needs(Permission.USER_READ)], answer: Response
) -> dict[str, Any]:
    """One user."""
    user = _found(name, here, caller)
    answer.headers["ETag"] = etag(user.version)
    return _shown(user)


@routes.put("/users/{name}")
def change_user(
    name: NameInPath,
    body: ChangedUser,
    here: Here,
    caller: Annotated[Caller, needs(Permission.USER_MANAGE)],
    answer: Response,
    if_match: IfMatch = None,
) -> dict[str, Any]:
    """Change roles, or disable, if nobody else has since the user was read. It holds from the next request on."""
    version = version_asked(if_match, _found(name, here, caller).version)
    try:
        user = here.access.change_user(name, [shape.grant() for shape in body.grants], body.disabled, version)
    except Stale as error:
        raise stale(str(error)) from error
    answer.headers["ETag"] = etag(user.version)
    return _shown(user)


def _found(name: str, here: Here, caller: Caller) -> User:
    user = here.access.user(name)
    if user is None:
        caller.missing(f"user {name}")
    return user


def _shown(user: User) -> dict[str, Any]:
    return {
        "name": user.name,
        "grants": [grant_document(grant) for grant in user.grants],
        "disabled": user.disabled,
        "created_ns": user.created_ns,
    }
