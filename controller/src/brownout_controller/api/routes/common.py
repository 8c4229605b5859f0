"""What the files of routes share."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request

from brownout_controller.api.gate import GuardedRoute
from brownout_controller.api.problems import Problem
from brownout_controller.api.services import Services

PREFIX = "/api/v1"
PAGE_MAX = 200


def router(tag: str) -> APIRouter:
    """Routes behind the gate."""
    return APIRouter(prefix=PREFIX, tags=[tag], route_class=GuardedRoute)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Here = Annotated[Services, Depends(_services)]
"""The controller that serves."""
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="so many at most")]
Number = Annotated[int, Path(ge=1, lt=2**31)]
HostName = Annotated[str, Path(max_length=255)]
DigestInPath = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
NameInPath = Annotated[str, Path(max_length=63)]
IfMatch = Annotated[str | None, Header(max_length=20, description='the ETag that was read, as `"3"`')]


def etag(version: int) -> str:
    """A version as an entity tag."""
    return f'"{version}"'


def version_asked(if_match: str | None, now: int) -> int:
    """The version that a change is meant for.

    Raises:
        Problem: 428 when none is named, 412 when it is not the one that stands.
    """
    if if_match is None:
        why = "without it a change of somebody else, made meanwhile, would be lost"
        raise Problem(428, "if-match-missing", "this change needs If-Match", why, f"If-Match: {etag(now)}")
    match = re.fullmatch(r'"([0-9]{1,9})"', if_match)
    if match is None or int(match[1]) != now:
        raise stale(f"it is at {etag(now)}")
    return int(match[1])


def stale(why: str) -> Problem:
    """412: somebody else has changed it."""
    return Problem(412, "stale", "it was changed by somebody else since you read it", why, "read it again")


def page(items: list[Any]) -> dict[str, Any]:
    """A list, as every list is answered."""
    return {"items": items}
