"""Sessions of browsers: a random secret in a cookie that no other site and no script can read, and a row on our side.

`__Host-` binds a cookie to this very host over TLS (RFC 6265bis, 4.1.3.2); what it could do across sites the gate
refuses (`gate.cross_site`).
"""

import re
import secrets

from fastapi import Request, Response

from brownout_controller.access.decisions import Principal
from brownout_controller.api.authentication import Bearer, Unauthenticated
from brownout_controller.api.shapes import CHALLENGE
from brownout_controller.store.access import TokenRow
from brownout_controller.store.logins import ATTEMPT_TTL_S, SESSION_TTL_S, LoginStore, SessionRow

SESSION_COOKIE = "__Host-brownout-session"
LOGIN_COOKIE = "__Host-brownout-login"
CLI_COOKIE = "__Host-brownout-cli"
_PREFIX = "session "
_CLI = re.compile(rf"([0-9]{{1,5}})\.({CHALLENGE})")


def new_secret() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def session_of(request: Request) -> str:
    """What a browser shows; "" for nothing."""
    return request.cookies.get(SESSION_COOKIE, "")


def bearer_of_session(logins: LoginStore, secret: str) -> Bearer:
    """Somebody who has logged in, with all that they may, as a token would bring them.

    Raises:
        Unauthenticated: the session is over, or there never was one.
        StoreError: the database does not answer.
    """
    found = logins.session(secret)
    if found is None:
        raise Unauthenticated
    return Bearer(Principal(found.user.name, found.user.grants, _name(found)), _as_token(found))


def _as_token(session: SessionRow) -> TokenRow:
    user = session.user.name
    return TokenRow(
        _name(session), session.digest, user, "login", None, None, user, None, session.begun_ns, session.expires_ns
    )


def is_session(token: TokenRow) -> bool:
    """Whether somebody came by a browser's session. No API token's id has a space."""
    return token.token_id.startswith(_PREFIX)


def _name(session: SessionRow) -> str:
    return f"{_PREFIX}{session.digest[:12]}"


def set_session(answer: Response, secret: str) -> None:
    """Give a browser its session."""
    _set(answer, SESSION_COOKIE, secret, SESSION_TTL_S)


def set_login(answer: Response, state: str) -> None:
    """Bind a login to the browser that has begun it."""
    _set(answer, LOGIN_COOKIE, state, ATTEMPT_TTL_S)


def set_cli(answer: Response, port: int, challenge: str) -> None:
    """Remember for which command line a browser logs in."""
    _set(answer, CLI_COOKIE, f"{port}.{challenge}", ATTEMPT_TTL_S)


def cli_of(request: Request) -> tuple[int, str] | None:
    """Port and challenge of the command line for which a browser logs in."""
    match = _CLI.fullmatch(request.cookies.get(CLI_COOKIE, ""))
    return None if match is None else (int(match[1]), match[2])


def forget(answer: Response, *names: str) -> None:
    """Take cookies back."""
    for name in names:
        _set(answer, name, "", 0)


def _set(answer: Response, name: str, value: str, max_age_s: int) -> None:
    answer.set_cookie(name, value, max_age=max_age_s, path="/", secure=True, httponly=True, samesite="lax")
