"""API tokens. A limited token never begets one that can do more, or lives longer, than itself."""

import time
from typing import Annotated, Any

from fastapi import Path, Query

from brownout_controller.access.permissions import PERMISSIONS, STOPPING, Permission, Role
from brownout_controller.access.token_form import new_token
from brownout_controller.api.gate import Caller, needs
from brownout_controller.api.problems import Problem
from brownout_controller.api.routes.common import Here, page, router
from brownout_controller.api.shapes import NewToken
from brownout_controller.audit.entry import Outcome
from brownout_controller.store.access import NS_PER_S, MakerRevoked, TokenRow, User, token_row

routes = router("tokens")

DAY_S = 24 * 3600
TokenId = Annotated[str, Path(pattern="^[0-9a-f]{12}$")]
KeepMade = Annotated[bool, Query(description="revoke this one alone: for one that is replaced, not for a stolen one")]
_LISTED_MAX = 50
"""In the audit log; `made_by` in the list of tokens tells all."""


@routes.get("/tokens")
def list_tokens(here: Here, caller: Annotated[Caller, needs(Permission.TOKEN_OWN)]) -> dict[str, Any]:
    """One's own tokens, or everybody's for who manages them; never their secrets."""
    user = None if caller.may(Permission.TOKEN_MANAGE) else caller.user
    return page([_shown(row) for row in here.access.tokens(user)])


@routes.post("/tokens", status_code=201)
def create_token(body: NewToken, here: Here, caller: Annotated[Caller, needs(Permission.TOKEN_OWN)]) -> dict[str, Any]:
    """A new token, shown this once. For somebody else only by who manages tokens."""
    owner = here.access.user(body.user or caller.user)
    manages = caller.may(Permission.TOKEN_MANAGE)
    if owner is None or (owner.name != caller.user and not manages):
        caller.missing(f"user {body.user}")
    if owner.disabled:
        raise Problem(409, "disabled", f"user {owner.name} is disabled", "a token of theirs would let nobody in")
    roles = None if body.roles is None else frozenset(body.roles)
    _check_roles(roles, owner)
    environments = None if body.environments is None else frozenset(body.environments)
    ttl_s = body.days * DAY_S
    if not manages or _is_narrow(caller.token):
        roles, environments, ttl_s = _within(caller.token, roles, environments, ttl_s)
    token = new_token()
    made_by = caller.token.token_id
    row = token_row(token, owner.name, caller.user, ttl_s, body.purpose, roles, environments, made_by)
    try:
        here.access.add_token(row)
    except MakerRevoked as error:
        raise Problem(401, "no-token", "the token by which you ask counts no more", str(error)) from error
    return {**_shown(row), "token": token.text}


@routes.delete("/tokens/{token_id}")
def revoke_token(
    token_id: TokenId, here: Here, caller: Annotated[Caller, needs(Permission.TOKEN_OWN)], keep_made: KeepMade = False
) -> dict[str, Any]:
    """Revoke a token for good, and every token that was made by means of it; answers with all that it has revoked."""
    found = here.access.token(token_id)
    if found is None or (found[0].user != caller.user and not caller.may(Permission.TOKEN_MANAGE)):
        caller.missing(f"token {token_id}")
    _refuse_for_others(caller, token_id)
    revoked = here.access.revoke_token(token_id, with_made=not keep_made)
    if not revoked:
        raise Problem(409, "revoked", f"token {token_id} was revoked before, and nothing that it has made is good")
    with_it = [row.token_id for row in revoked if row.token_id != token_id]
    if with_it:
        listed = ", ".join(with_it[:_LISTED_MAX]) + (", ..." if len(with_it) > _LISTED_MAX else "")
        caller.tell(Outcome.ALLOWED, f"token {token_id}", f"with it {len(with_it)} made by means of it: {listed}")
    return {"revoked": [_shown(row) for row in revoked]}


def _check_roles(roles: frozenset[Role] | None, owner: User) -> None:
    """A token for a role that its owner does not have would do nothing, and its maker should know."""
    has = {grant.role for grant in owner.grants}
    if any(PERMISSIONS[role] >= STOPPING for role in has):
        has.add(Role.HALTER)
    if roles is not None and (lacking := roles - has):
        why = f"{owner.name} has not the role {', '.join(sorted(lacking))}"
        raise Problem(422, "no-such-role", "the token could do nothing", why, "brownout users list")


def _refuse_for_others(caller: Caller, token_id: str) -> None:
    """A token for some roles or environments revokes itself only: stolen, it must not take from its owner what can do
    more, as the token behind the glass.

    Raises:
        Problem: 403.
    """
    own = caller.token
    if _is_narrow(own) and own.token_id != token_id and not caller.may(Permission.TOKEN_MANAGE):
        caller.refuse(f"token {token_id}", "the token by which you ask is limited, and so revokes itself only")


def _is_narrow(token: TokenRow) -> bool:
    return token.roles is not None or token.environments is not None


def _within(
    maker: TokenRow, roles: frozenset[Role] | None, environments: frozenset[str] | None, ttl_s: int
) -> tuple[frozenset[Role] | None, frozenset[str] | None, int]:
    """What a token that is made by another one may be at most."""
    if maker.roles is not None:
        roles = maker.roles if roles is None else roles & (maker.roles | _halts(maker.roles))
    if maker.environments is not None:
        environments = maker.environments if environments is None else environments & maker.environments
    if roles == frozenset() or environments == frozenset():
        why = "it would be for roles or environments that the token has not by which you ask"
        raise Problem(422, "no-such-role", "the token could do nothing", why, "brownout whoami")
    left_s = (maker.expires_ns - time.time_ns()) // NS_PER_S
    return roles, environments, max(1, min(ttl_s, left_s))


def _halts(roles: frozenset[Role]) -> frozenset[Role]:
    return frozenset({Role.HALTER} if any(PERMISSIONS[role] >= STOPPING for role in roles) else ())


def _shown(row: TokenRow) -> dict[str, Any]:
    return {
        "id": row.token_id,
        "user": row.user,
        "purpose": row.purpose,
        "roles": None if row.roles is None else sorted(row.roles),
        "environments": None if row.environments is None else sorted(row.environments),
        "created_by": row.created_by,
        "made_by": row.made_by,
        "created_ns": row.created_ns,
        "expires_ns": row.expires_ns,
        "used_ns": row.used_ns,
        "revoked_ns": row.revoked_ns,
    }
