"""Errors of the API: problem+json (RFC 9457) that says what, why, and what to do next."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from brownout_controller.reporting.visible import visible
from brownout_controller.store.database import StoreError

_TITLES = {404: ("no-such-route", "there is no such route"), 405: ("wrong-method", "the route has no such method")}
_MOST_FINDINGS = 20


class Problem(HTTPException):
    """One refusal. `code` is stable, `title` says what, `detail` why; `findings` are as many single reasons."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str = "",
        next_step: str = "",
        findings: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, title, dict(headers or {}))
        self.code = code
        self.title = title
        self.why = detail
        self.next_step = next_step
        self.findings = findings

    def response(self) -> JSONResponse:
        """What the client gets."""
        content: dict[str, Any] = {
            "type": f"urn:brownout:problem:{self.code}",
            "title": visible(self.title),
            "status": self.status_code,
            "code": self.code,
        }
        if self.why:
            content["detail"] = self.why
        if self.next_step:
            content["next"] = self.next_step
        if self.findings:
            content["findings"] = list(self.findings)[:_MOST_FINDINGS]
        return JSONResponse(content, self.status_code, self.headers, media_type="application/problem+json")


def unavailable(error: StoreError) -> Problem:
    """The store does not answer, so nothing can be decided or kept."""
    first, *rest = str(error).splitlines()
    return Problem(503, "store", first, " ".join(rest), "mend the database, then send it again")


def install(app: FastAPI) -> None:
    """Make every error of an app a problem."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    @app.exception_handler(StarletteHTTPException)
    async def http_error(_: Request, error: StarletteHTTPException) -> JSONResponse:
        code, title = _TITLES.get(error.status_code, ("http", str(error.detail)))
        next_step = "see /api/v1/openapi.json" if error.status_code in _TITLES else ""
        return Problem(error.status_code, code, title, next_step=next_step, headers=error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid(error).response()

    @app.exception_handler(StoreError)
    async def store_error(_: Request, error: StoreError) -> JSONResponse:
        return unavailable(error).response()


def _invalid(error: RequestValidationError) -> Problem:
    """422 for a body, 400 for headers and query; a path that cannot be is one that is not there."""
    found = error.errors()
    places = {str(item["loc"][0]) for item in found}
    if "path" in places:
        return Problem(404, "not-found", "there is no such thing, or you may not see it")
    findings = [{"where": ".".join(map(str, item["loc"])), "why": item["msg"]} for item in found]
    why = "; ".join(f"{item['where']}: {item['why']}" for item in findings[:3])
    status = 422 if places == {"body"} else 400
    return Problem(status, "invalid", "the request is not as it should be", why, "see /api/v1/openapi.json", findings)
