"""The one gate that every request comes through: who is it, and may they?

A route says what it needs by a parameter, `caller: Annotated[Caller, needs(Permission.RUN_READ)]`; what is open to
everybody says that too. Identity and permission are looked at before the body is read. Permissions over a place are
asked again for the object, by the handler: `caller.demand(...)`. Every decision is told to the auditor, and what cannot
be audited does not happen, except stopping.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NoReturn
from urllib.parse import urlsplit

from fastapi import Depends, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from brownout_controller.access.decisions import Decision, Place, Principal, decide
from brownout_controller.access.permissions import STOPPING, Over, Permission
from brownout_controller.api.authentication import Authenticator, Bearer, Guessing, Unauthenticated
from brownout_controller.api.bounded import BoundedRequest
from brownout_controller.api.problems import Problem, unavailable
from brownout_controller.api.sessions import bearer_of_session, session_of
from brownout_controller.audit.entry import NOBODY, AuditEntry, Auditor, Outcome
from brownout_controller.reporting.visible import visible
from brownout_controller.store.access import TokenRow
from brownout_controller.store.database import StoreError
from brownout_controller.store.logins import LoginStore

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
UNAUTHENTICATED_TAKES_S = 0.1
"""An answer to a wrong token comes after this time whatever was wrong with it, so its time tells nothing."""

_REASON_MAX = 200

log = logging.getLogger(__name__)


class Needs:
    """What a route asks of its caller; None for a route that is open to everybody."""

    def __init__(self, permission: Permission | None) -> None:
        self.permission = permission

    async def __call__(self, request: Request) -> "Caller | None":
        """The caller whom the gate has let in."""
        caller: Caller | None = request.state.caller
        return caller


def needs(permission: Permission) -> Any:
    """Declares a route's permission, and gives its caller."""
    return Depends(Needs(permission))


OPEN = Depends(Needs(None))
"""Declares a route that is open to everybody."""


def declared(dependant: Dependant) -> Needs | None:
    """What a route has declared; None when nothing."""
    return next((one.call for one in dependant.dependencies if isinstance(one.call, Needs)), None)


class Caller:
    """Somebody at a route that they may use somewhere. Its methods block: not for the event loop."""

    def __init__(
        self,
        bearer: Bearer,
        permission: Permission,
        origin: str,
        route: str,
        audit: Auditor,
        again: Callable[[], Bearer],
    ) -> None:
        """`again` looks up who they are now; it raises Unauthenticated where they are nobody any more."""
        self.permission = permission
        self.origin = origin
        self._bearer = bearer
        self._again = again
        self._route = route
        self._audit = audit
        self._told = False

    @property
    def user(self) -> str:
        """Their name."""
        return self._bearer.principal.user

    @property
    def actor(self) -> str:
        """Their name as the audit log has it."""
        return f"user:{self.user}"

    @property
    def principal(self) -> Principal:
        """They, with what they may."""
        return self._bearer.principal

    @property
    def token(self) -> TokenRow:
        """By which token they came."""
        return self._bearer.token

    def may(self, permission: Permission, place: Place | None = None) -> bool:
        """Whether they may, without a word to anybody."""
        return decide(self.principal, permission, place).allowed

    def demand(self, place: Place, subject: str, seen_by: Permission) -> None:
        """Let pass who has the route's permission for an object; `seen_by` lets one know that it is there.

        Raises:
            Problem: 403, or 404 for what they may not even see.
        """
        decision = decide(self.principal, self.permission, place)
        if decision.allowed:
            self.tell(Outcome.ALLOWED, subject)
            return
        self.tell(Outcome.REFUSED, subject, decision.reason)
        if not self.may(seen_by, place):
            raise not_found(subject)
        raise forbidden(self.permission, decision.reason)

    def barred(self, place: Place, subject: str) -> str:
        """Why they may no longer what they were let in for, "" while they may: for answers that go on.

        A database that is away bars nobody: whoever is turned out, is so by it.
        """
        try:
            why = decide(self._again().principal, self.permission, place).reason
        except Unauthenticated:
            why = "the token or session by which they came counts no more"
        except StoreError as error:
            log.warning("nobody can tell whether %s may still see %s: %s", self.user, subject, error)
            return ""
        if why:
            try:
                self.tell(Outcome.REFUSED, subject, why)
            except StoreError as error:  # the refusal stands even where it cannot be written
                log.error("not audited, that %s may see %s no more: %s", self.user, subject, error)
        return why

    def demand_new(self, decision: Decision, subject: str) -> None:
        """Let pass who may make something. What they have brought themselves is no secret to them.

        Raises:
            Problem: 403.
        """
        if not decision.allowed:
            self.refuse(subject, decision.reason)
        self.tell(Outcome.ALLOWED, subject)

    def missing(self, subject: str) -> NoReturn:
        """Say of what is not there exactly what is said of what they may not see.

        Raises:
            Problem: 404.
        """
        self.tell(Outcome.REFUSED, subject, "there is no such thing")
        raise not_found(subject)

    def refuse(self, subject: str, reason: str) -> NoReturn:
        """Refuse what their permission does not cover.

        Raises:
            Problem: 403.
        """
        self.tell(Outcome.REFUSED, subject, reason)
        raise forbidden(self.permission, reason)

    def tell(self, outcome: Outcome, subject: str = "", reason: str = "") -> None:
        """Tell the auditor.

        Raises:
            StoreError: it cannot be audited, so it must not happen.
        """
        self._told = True
        detail = {"route": self._route, "token": self.token.token_id}
        entry = AuditEntry(
            self.actor, self.permission.word, subject or self._route, outcome, self.origin, reason, detail
        )
        if self.permission in STOPPING:
            self._audit.record_later(entry)
        else:
            self._audit.record(entry)

    def tell_if_untold(self, failed: str = "") -> None:
        """After a request that asked for no single object, as a list does, or that failed before it came to one."""
        if not self._told:
            self.tell(Outcome.FAILED if failed else Outcome.ALLOWED, reason=failed)


def forbidden(permission: Permission, reason: str) -> Problem:
    """403: they are known, and may not."""
    return Problem(
        403, "not-permitted", f"not permitted: {permission.word}", reason, "ask an admin: brownout users list"
    )


def not_found(subject: str) -> Problem:
    """404, for what is not there and for what may not be seen."""
    return Problem(404, "not-found", f"there is no {subject}, or you may not see it")


class Gate:
    """Lets callers in, or not."""

    def __init__(self, authenticator: Authenticator, logins: LoginStore, audit: Auditor) -> None:
        self._authenticator = authenticator
        self._logins = logins
        self._audit = audit

    async def admit(self, request: Request, permission: Permission) -> Caller:
        """Whoever may use the route somewhere.

        Raises:
            Problem: 401, 403, 429 or 503.
        """
        begun_s = time.monotonic()
        try:
            return await asyncio.to_thread(self._admit, request, permission)
        except StoreError as error:
            raise unavailable(error) from error
        except Problem as problem:
            if problem.status_code == 401:
                await asyncio.sleep(max(0.0, begun_s + UNAUTHENTICATED_TAKES_S - time.monotonic()))
            raise

    def _admit(self, request: Request, permission: Permission) -> Caller:
        origin = request.client.host if request.client else ""
        route = f"{request.method} {request.url.path}"
        try:
            header = request.headers.get("authorization", "")
            secret = "" if header else session_of(request)
            if secret:
                again = partial(bearer_of_session, self._logins, secret)
                bearer = again()
            else:
                again = partial(self._authenticator.again, header)
                bearer = self._authenticator.authenticate(header, origin, stopping=permission in STOPPING)
        except Unauthenticated:
            why = "the token is not good: unknown, expired or revoked" if header else "there is no token"
            why = "the session is over" if secret else why
            self._audit.record(AuditEntry(NOBODY, permission.word, route, Outcome.REFUSED, origin, why))
            raise _unauthenticated(why) from None
        except Guessing as guessing:
            problem = _too_many(guessing.wait_s)
            # one subject for whatever was asked for: the audit log counts what is alike, so a flood does not fill it
            self._audit.record(AuditEntry(NOBODY, permission.word, "guessing", Outcome.REFUSED, origin, problem.title))
            raise problem from None
        caller = Caller(bearer, permission, origin, route, self._audit, again)
        if why := cross_site(request):
            caller.tell(Outcome.REFUSED, route, why)
            raise Problem(403, "cross-site", "a page of another site may not do this", why)
        if not caller.principal.has(permission):
            caller.refuse(route, decide(caller.principal, permission, Place("")).reason)
        if permission.over is not Over.PLACE:
            decision = decide(caller.principal, permission)
            if not decision.allowed:
                caller.refuse(route, decision.reason)
            if request.method not in SAFE_METHODS:
                caller.tell(Outcome.ALLOWED)
        return caller


def cross_site(request: Request) -> str:
    """Why an unsafe request looks like one that another site's page has sent; "" when it does not.

    Browsers say where a request comes from (Sec-Fetch-Site; before 2023 at least Origin); other clients say neither,
    and have no cookie that could be ridden.
    """
    if request.method in SAFE_METHODS:
        return ""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return "" if site in {"same-origin", "none"} else f"Sec-Fetch-Site is {site[:40]}"
    origin = request.headers.get("origin")
    if origin is not None:
        own = (request.url.scheme, request.headers.get("host", ""))
        parts = urlsplit(origin)
        return "" if (parts.scheme, parts.netloc) == own else f"its Origin is {origin[:200]}"
    return "it has a cookie, and neither Sec-Fetch-Site nor Origin" if "cookie" in request.headers else ""


def _unauthenticated(why: str) -> Problem:
    next_step = "set BROWNOUT_TOKEN, or ask an admin for a token: brownout token issue"
    return Problem(
        401, "no-token", "nobody is known by this request", why, next_step, (), {"WWW-Authenticate": "Bearer"}
    )


def _too_many(wait_s: float) -> Problem:
    seconds = str(math.ceil(wait_s))
    title = "too many wrong tokens"
    why = f"nothing from this address, or for this account, is looked at for {seconds} s"
    return Problem(429, "guessing", title, why, "wait, then send the right one", (), {"Retry-After": seconds})


class GuardedRoute(APIRoute):
    """A route behind the gate. One that declares nothing cannot be built into an app: see `create_app`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Gate, then body, then handler."""
        handle = super().get_route_handler()
        found = declared(self.dependant)
        permission = found.permission if found else None

        async def guarded(request: Request) -> Response:
            request = BoundedRequest(request.scope, request.receive)
            request.check_head()
            request.state.caller = None
            if permission is None:
                return await handle(request)
            gate: Gate = request.app.state.gate
            caller = request.state.caller = await gate.admit(request, permission)
            try:
                response = await handle(request)
            except Exception as error:
                await asyncio.to_thread(caller.tell_if_untold, visible(str(error)[:_REASON_MAX]))
                raise
            await asyncio.to_thread(caller.tell_if_untold)
            return response

        return guarded
