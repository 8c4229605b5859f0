"""Login of the command line: a browser logs in, its person agrees, and a token goes to a port of their own machine.

As RFC 8252 has it for native applications (loopback redirect, section 7.3) with PKCE (RFC 7636): what passes through
the browser is a code that is good once, for a minute, and only for who made the challenge. Nothing happens without a
click (section 8.6): whoever lures a browser here must not get a token for it.
"""

import hmac
import html
import time
from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from brownout_controller.access.permissions import Permission
from brownout_controller.access.pkce import challenge_of, shown_code
from brownout_controller.access.token_form import new_token
from brownout_controller.api import sessions
from brownout_controller.api.gate import OPEN, Caller, needs
from brownout_controller.api.problems import Problem
from brownout_controller.api.routes.common import Here, router
from brownout_controller.api.routes.login import ACTION, check_rate, origin_of, provider_of, refuse_login
from brownout_controller.api.sessions import CLI_COOKIE
from brownout_controller.api.shapes import CliCode
from brownout_controller.audit.entry import AuditEntry, Outcome
from brownout_controller.store.access import NS_PER_S, token_row
from brownout_controller.store.logins import Handover

routes = router("login")

PURPOSE = "brownout login"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; form-action 'self' http://127.0.0.1:*"
}
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Brownout: log in</title></head><body><main>
<h1>Let the command line in as {user}?</h1>
<p>A command on this machine asks for a token with all that you may, good until this session ends.
Agree only if <code>brownout login</code> shows you this code: <strong>{code}</strong></p>
<form method="post" action="/api/v1/auth/cli"><button>Let it in</button></form>
<p>If you have not typed <code>brownout login</code>, close this page.</p></main></body></html>
"""

Me = Annotated[Caller, needs(Permission.TOKEN_OWN)]


@routes.get("/auth/cli", response_class=HTMLResponse)
def ask(request: Request, caller: Me) -> Response:
    """Ask who has logged in whether the command line may come in as well."""
    _, challenge = _asked(request, caller)
    page = _PAGE.format(user=html.escape(caller.user), code=html.escape(shown_code(challenge)))
    return HTMLResponse(page, headers=_HEADERS)


@routes.post("/auth/cli", response_class=RedirectResponse)
def agree(request: Request, here: Here, caller: Me) -> Response:
    """Send a code to the command line, by the browser."""
    port, challenge = _asked(request, caller)
    code = sessions.new_secret()
    here.logins.hand_over(code, Handover(challenge, caller.user, caller.token.token_id, caller.token.expires_ns))
    answer = RedirectResponse(f"http://127.0.0.1:{port}/?code={code}", 303)
    sessions.forget(answer, CLI_COOKIE)
    return answer


@routes.post("/auth/cli/token", dependencies=[OPEN], status_code=201)
def exchange(request: Request, here: Here, body: CliCode) -> dict[str, Any]:
    """An API token for a code, shown this once."""
    provider_of(here)
    origin = origin_of(request)
    check_rate(here, here.login_guesses, origin, "too many logins from this address came to nothing")
    found = here.logins.take_handover(body.code)
    if found is None or not hmac.compare_digest(found.challenge, challenge_of(body.verifier)):
        refuse_login(here, origin, "the code is not good: unknown, used, too old, or somebody else's")
    token, left_s = new_token(), (found.expires_ns - time.time_ns()) // NS_PER_S
    row = token_row(token, found.user, found.user, max(1, left_s), PURPOSE, made_by=found.session)
    detail = {"session": found.session}
    actor, subject = f"user:{found.user}", f"token {token.token_id}"
    here.audit.record(AuditEntry(actor, ACTION, subject, Outcome.ALLOWED, origin, detail=detail))
    here.access.add_token(row)
    return {"user": row.user, "id": row.token_id, "token": token.text, "expires_ns": row.expires_ns}


def _asked(request: Request, caller: Caller) -> tuple[int, str]:
    """Port and challenge of the command line that this browser was opened for.

    Raises:
        Problem: 409: somebody came by a token, which may be limited while what is made here is not, or for no command.
    """
    if not sessions.is_session(caller.token):
        why = "a token logs nobody in; a browser's session does"
        caller.tell(Outcome.REFUSED, "a login of the command line", why)
        raise Problem(409, "no-session", "this is for browsers", why, "brownout login")
    found = sessions.cli_of(request)
    if found is None:
        why = "this browser was not opened for a command line, or too long ago"
        raise Problem(409, "no-cli", "no command line waits here", why, "brownout login")
    return found
