"""From the Authorization header to somebody. Unknown, expired and revoked tokens look the same to their bearer."""

import hmac
import time
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from brownout_controller.access.decisions import Principal, narrowed
from brownout_controller.access.guessing import Guesses
from brownout_controller.access.permissions import Role
from brownout_controller.access.token_form import digest_of, parse_token
from brownout_controller.store.access import AccessStore, TokenRow, User
from brownout_controller.store.database import StoreError

_NO_DIGEST = "0" * 64
_KNOWN_MAX = 1_000
_HALT_ONLY = frozenset({Role.HALTER})


class Unauthenticated(Exception):
    """Nobody was proved."""


@dataclass(frozen=True, slots=True)
class Guessing(Exception):
    """Too many wrong tokens from this address, or for this account."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class Bearer:
    """Somebody, and the token by which they came."""

    principal: Principal
    token: TokenRow


class Authenticator:
    """Looks tokens up. Blocking: not for the event loop."""

    def __init__(self, access: AccessStore) -> None:
        """Know the tokens that can only halt from the start: they may be needed first when all else fails.

        Raises:
            StoreError: the database does not answer.
        """
        self._access = access
        self._guesses = Guesses()
        self._known: OrderedDict[str, Bearer] = OrderedDict()
        """By digest: whoever has come in before. What is known is no guess, and may stop things without a database."""
        self._lock = Lock()
        for row in access.tokens():
            if row.roles == _HALT_ONLY and (bearer := _bearer(access.token(row.token_id), row.digest)) is not None:
                self._remember(row.digest, bearer)

    def authenticate(self, header: str, origin: str, *, stopping: bool = False) -> Bearer:
        """Whose token stands in an Authorization header.

        `stopping`: to stop something needs no database; without one, whoever was known before is known still.

        Raises:
            Unauthenticated: nobody's, or one that is not good any more.
            Guessing: too many wrong ones have come; nothing is looked at for a while.
            StoreError: the database does not answer.
        """
        scheme, _, text = header.partition(" ")
        parsed = parse_token(text) if scheme.lower() == "bearer" else None
        account = parsed.token_id if parsed else ""
        digest = digest_of(text)
        known = self._known.get(digest)
        if known is None and (wait_s := self._guesses.wait_s(origin, account)) > 0:
            raise Guessing(wait_s)
        try:
            bearer = _bearer(self._access.token(account), digest)
        except StoreError:
            if stopping and known is not None and known.token.good(time.time_ns()):
                return known
            raise
        if bearer is None:
            self._guesses.wrong(origin, account)
            self._forget(digest)
            raise Unauthenticated
        self._remember(digest, bearer)
        try:
            self._access.note_used(bearer.token, time.time_ns())
        except StoreError:
            if not stopping:
                raise
        return bearer

    def again(self, header: str) -> Bearer:
        """Whoever came in by this header as they stand now: for what goes on after its request was let in.

        Raises:
            Unauthenticated: the token is not good any more.
            StoreError: the database does not answer.
        """
        text = header.partition(" ")[2]
        parsed = parse_token(text)
        bearer = _bearer(self._access.token(parsed.token_id if parsed else ""), digest_of(text))
        if bearer is None:
            raise Unauthenticated
        return bearer

    def _remember(self, digest: str, bearer: Bearer) -> None:
        with self._lock:
            self._known[digest] = bearer
            self._known.move_to_end(digest)
            if len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)

    def _forget(self, digest: str) -> None:
        with self._lock:
            self._known.pop(digest, None)


def _bearer(found: tuple[TokenRow, User] | None, digest: str) -> Bearer | None:
    """Compare before anything else, and as long for a token that is not there."""
    same = hmac.compare_digest(found[0].digest if found else _NO_DIGEST, digest)
    if found is None:
        return None
    token, user = found
    if not same or user.disabled or not token.good(time.time_ns()):
        return None
    return Bearer(Principal(user.name, narrowed(user.grants, token.roles, token.environments), token.token_id), token)
