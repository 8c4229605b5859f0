"""Login by the OpenID provider, and logout."""

import hmac
import math
from typing import Annotated, Any, NoReturn

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse

from brownout_controller.access.guessing import Guesses
from brownout_controller.access.permissions import Permission
from brownout_controller.api import sessions
from brownout_controller.api.gate import OPEN, Caller, needs
from brownout_controller.api.oidc import OidcError, Proved, Provider, ProviderAway
from brownout_controller.api.problems import Problem
from brownout_controller.api.routes.common import PREFIX, Here, router
from brownout_controller.api.services import Services
from brownout_controller.api.sessions import CLI_COOKIE, LOGIN_COOKIE, SESSION_COOKIE
from brownout_controller.api.shapes import CHALLENGE
from brownout_controller.audit.entry import NOBODY, AuditEntry, Outcome
from brownout_controller.store.access import User
from brownout_controller.store.logins import Attempt, LoginRefused

routes = router("login")

ACTION = "user.login"
AGAIN = "begin again: GET /api/v1/auth/login"
Text = Annotated[str, Query(max_length=4_000)]
Port = Annotated[int, Query(ge=1, le=65_535)]
Challenge = Annotated[str, Query(pattern=f"^({CHALLENGE})?$")]


@routes.get("/auth/login", dependencies=[OPEN], response_class=RedirectResponse)
def login(request: Request, here: Here, cli_port: Port | None = None, cli_challenge: Challenge = "") -> Response:
    """Send a browser to the provider; `cli_port` and `cli_challenge` are those of a `brownout login` that waits."""
    if (cli_port is None) == bool(cli_challenge):
        raise Problem(400, "invalid", "cli_port and cli_challenge go together", "", "brownout login")
    provider, origin = provider_of(here), origin_of(request)
    check_rate(here, here.login_begins, origin, "too many logins were begun from this address")
    here.login_begins.wrong(origin, "")  # until it comes to something it is a guess, and it costs a row
    try:
        where, state, attempt = provider.begin()
    except ProviderAway as error:
        raise _away(error) from error
    here.logins.begin(state, attempt)
    answer = RedirectResponse(where, 303)
    sessions.set_login(answer, state)
    if cli_port is not None:
        sessions.set_cli(answer, cli_port, cli_challenge)
    else:
        sessions.forget(answer, CLI_COOKIE)
    return answer


@routes.get("/auth/callback", dependencies=[OPEN], response_class=RedirectResponse)
def callback(
    request: Request, here: Here, state: Text = "", code: Text = "", iss: Text = "", error: Text = ""
) -> Response:
    """A browser that comes back from the provider: a fresh session for whom the provider names."""
    origin = origin_of(request)
    check_rate(here, here.login_guesses, origin, "too many logins from this address came to nothing")
    provider = provider_of(here)
    try:
        attempt = _attempt(request, here, state)
        if error or not code:
            raise OidcError(f"the provider gives no code: {error or 'nothing'}")
        if iss and iss != provider.settings.issuer:
            raise OidcError("another provider than ours answers (iss)")
        proved = provider.finish(code, attempt)
        user = _user(here, provider, proved)
    except (OidcError, LoginRefused) as refusal:
        refuse_login(here, origin, str(refusal))
    except ProviderAway as away:
        raise _away(away) from away
    detail = {"issuer": proved.issuer, "subject": proved.subject}
    here.audit.record(AuditEntry(f"user:{user.name}", ACTION, "session", Outcome.ALLOWED, origin, detail=detail))
    secret = sessions.new_secret()
    here.logins.open(secret, user.name, instead_of=sessions.session_of(request))
    answer = RedirectResponse(f"{PREFIX}/{'auth/cli' if sessions.cli_of(request) else 'whoami'}", 303)
    sessions.forget(answer, LOGIN_COOKIE)
    sessions.set_session(answer, secret)
    return answer


@routes.post("/auth/logout")
def logout(
    request: Request, here: Here, caller: Annotated[Caller, needs(Permission.SELF_READ)], answer: Response
) -> dict[str, Any]:
    """End the session by which one comes."""
    if secret := sessions.session_of(request):
        here.logins.end(secret)
    sessions.forget(answer, SESSION_COOKIE)
    return {"user": caller.user, "ended": bool(secret)}


def provider_of(here: Services) -> Provider:
    """The provider.

    Raises:
        Problem: 404, there is none.
    """
    if here.provider is None:
        why = "this controller was started without --oidc"
        raise Problem(404, "no-login", "nobody logs in here", why, "use an API token: brownout token issue")
    return here.provider


def check_rate(here: Services, guesses: Guesses, origin: str, why: str) -> None:
    """Look at nothing more from an address for a while. The audit log folds what is alike, so no flood fills it."""
    wait_s = guesses.wait_s(origin, "")
    if wait_s > 0:
        here.audit.record(AuditEntry(NOBODY, ACTION, "session", Outcome.REFUSED, origin, why))
        seconds = str(math.ceil(wait_s))
        detail = f"nothing from it is looked at for {seconds} s"
        raise Problem(429, "guessing", why, detail, f"wait, then {AGAIN}", (), {"Retry-After": seconds})


def origin_of(request: Request) -> str:
    """The address that a request comes from."""
    return request.client.host if request.client else ""


def _attempt(request: Request, here: Services, state: str) -> Attempt:
    """The login that this very browser has begun, once."""
    shown = request.cookies.get(LOGIN_COOKIE, "")
    if not state or not hmac.compare_digest(shown.encode(), state.encode()):
        raise OidcError("this browser has not begun this login (state)")
    attempt = here.logins.take(state)
    if attempt is None:
        raise OidcError("this login is over, or took too long (state)")
    return attempt


def _user(here: Services, provider: Provider, proved: Proved) -> User:
    grants = provider.settings.grants_of(proved.groups)
    return here.logins.user_of(proved.issuer, proved.subject, proved.name, grants)


def refuse_login(here: Services, origin: str, why: str) -> NoReturn:
    """Count it, audit it, say why.

    Raises:
        Problem: 401.
    """
    here.login_guesses.wrong(origin, "")
    here.audit.record(AuditEntry(NOBODY, ACTION, "session", Outcome.REFUSED, origin, why))
    raise Problem(401, "login-refused", "the login is refused", why, AGAIN)


def _away(error: ProviderAway) -> Problem:
    return Problem(503, "provider", "the provider does not answer as it should", str(error), "ask who runs it")
