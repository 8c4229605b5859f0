"""Login by an OpenID provider: authorization code with PKCE, and an ID token of which nothing is believed unchecked.

OpenID Connect Core 1.0, section 3.1.3.7; RFC 7636 (PKCE, S256 only); RFC 9207 (`iss` in the answer). The provider is
the one of the configuration: what it publishes about itself must name that issuer.
"""

import re
import secrets
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlencode, urlsplit

import httpx
import yaml
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role
from brownout_controller.access.pkce import challenge_of
from brownout_controller.api.shapes import NAME, GrantShape
from brownout_controller.store.logins import Attempt

LEEWAY_S = 60
"""Clocks of two machines differ by so much."""
TOKEN_AGE_MAX_S = 600
_TIMEOUT_S = 10.0
_ANSWER_BYTES_MAX = 256 * 1024
_METADATA_FOR_S = 3_600.0
_KEYS_AGAIN_S = 30.0
_NAME = re.compile(NAME)
_ASYMMETRIC = frozenset({"RSA", "EC", "OKP"})
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class OidcError(Exception):
    """A login that is refused; the text says why. It is for the audit log and for whoever set this up."""


class ProviderAway(Exception):
    """The provider does not answer, or not as it should; nobody is refused by that."""


class OidcSettings(BaseModel):
    """The file of `--oidc`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str
    client_id: Annotated[str, Field(min_length=1)]
    client_secret: str = ""
    redirect_uri: str
    """Of this controller: https://HOST:PORT/api/v1/auth/callback."""
    scopes: tuple[str, ...] = ("openid", "profile")
    user_claim: str = "preferred_username"
    groups_claim: str = "groups"
    algorithms: tuple[Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"], ...] = ("RS256",)
    groups: dict[str, tuple[GrantShape, ...]] = {}

    @field_validator("issuer", "redirect_uri")
    @classmethod
    def _safe(cls, url: str) -> str:
        return check_url(url)

    @field_validator("groups")
    @classmethod
    def _no_admin(cls, groups: dict[str, tuple[GrantShape, ...]]) -> dict[str, tuple[GrantShape, ...]]:
        if any(shape.role is Role.ADMIN for shapes in groups.values() for shape in shapes):
            raise ValueError("no group makes admins; an admin gives that role by hand: brownout users set")
        return groups

    def grants_of(self, groups: list[str]) -> list[Grant]:
        """What somebody of these groups may."""
        return [shape.grant() for name, shapes in self.groups.items() if name in groups for shape in shapes]


def read_settings(path: Path) -> OidcSettings:
    """The settings in a YAML file, which is its owner's alone, since it may hold a secret.

    Raises:
        ValueError: open to others, or not as it should be.
        OSError: it cannot be read.
    """
    if path.stat().st_mode & 0o077:
        raise ValueError(f"{path} is open to others; next: chmod 600 {path}")
    try:
        return OidcSettings.model_validate(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from error


def check_url(url: str) -> str:
    """An address that nobody in between can change: https, or this machine itself.

    Raises:
        ValueError: it is another one.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ValueError(f"{url[:200]} is not https")
    return url


@dataclass(frozen=True, slots=True)
class Proved:
    """Whom the provider has named."""

    issuer: str
    subject: str
    name: str
    groups: list[str]


@dataclass(frozen=True, slots=True)
class _Metadata:
    document: dict[str, Any]
    read_s: float


class Provider:
    """One OpenID provider. Its methods block: not for the event loop."""

    def __init__(self, settings: OidcSettings) -> None:
        self.settings = settings
        self._tls = ssl.create_default_context()
        self._lock = threading.Lock()
        self._metadata: _Metadata | None = None
        self._keys: KeySet | None = None
        self._keys_read_s = 0.0

    def begin(self) -> tuple[str, str, Attempt]:
        """Where to send a browser, with which state, and what must come back with it.

        Raises:
            ProviderAway: it does not answer.
        """
        state, attempt = secrets.token_urlsafe(32), Attempt(secrets.token_urlsafe(32), secrets.token_urlsafe(48))
        asked = {
            "response_type": "code", "client_id": self.settings.client_id, "redirect_uri": self.settings.redirect_uri,
            "scope": " ".join(self.settings.scopes), "state": state, "nonce": attempt.nonce,
            "code_challenge": challenge_of(attempt.code_verifier), "code_challenge_method": "S256",
        }  # fmt: skip
        endpoint = self._endpoint("authorization_endpoint")
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}", state, attempt

    def finish(self, code: str, attempt: Attempt) -> Proved:
        """Whom a code stands for.

        Raises:
            OidcError: the provider refuses the code, or its ID token is not good.
            ProviderAway: it does not answer.
        """
        asked = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": self.settings.redirect_uri,
            "client_id": self.settings.client_id, "code_verifier": attempt.code_verifier,
        }  # fmt: skip
        secret = self.settings.client_secret
        answer = self._ask(
            "POST", self._endpoint("token_endpoint"), data=asked,
            auth=httpx.BasicAuth(self.settings.client_id, secret) if secret else None,
        )  # fmt: skip
        if answer.status_code in {400, 401, 403}:
            raise OidcError(f"the provider refuses the code: {answer.text[:200]}")
        token = _json(answer).get("id_token")
        if not isinstance(token, str):
            raise OidcError("the provider gives no ID token")
        return self._proved(self._claims(token, attempt.nonce))

    # ---- the ID token ------------------------------------------------------------------------------------------------

    def _claims(self, token: str, nonce: str) -> dict[str, Any]:
        settings = self.settings
        try:
            decoded = self._decoded(token)
            wanted = jwt.JWTClaimsRegistry(
                leeway=LEEWAY_S,
                iss={"essential": True, "value": settings.issuer},
                sub={"essential": True},
                aud={"essential": True, "value": settings.client_id},
                exp={"essential": True},
                iat={"essential": True},
                nonce={"essential": True, "value": nonce},
            )
            wanted.validate(decoded.claims)
        except JoseError as error:
            raise OidcError(f"its ID token is not good: {error}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise OidcError(f"its ID token cannot be read: {error}") from error
        claims = dict(decoded.claims)
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if claims.get("azp", settings.client_id) != settings.client_id or (several and "azp" not in claims):
            raise OidcError("its ID token is not good: it was issued to another client (azp)")
        if claims["iat"] < time.time() - TOKEN_AGE_MAX_S - LEEWAY_S:
            raise OidcError("its ID token is not good: it was issued long ago")
        return claims

    def _decoded(self, token: str) -> jwt.Token:
        """Signed by a key that the provider publishes; an unknown key may be one that it has just made."""
        try:
            return jwt.decode(token, self._published_keys(), algorithms=list(self.settings.algorithms))
        except (JoseError, ValueError):
            if time.monotonic() - self._keys_read_s < _KEYS_AGAIN_S:
                raise
        return jwt.decode(token, self._published_keys(again=True), algorithms=list(self.settings.algorithms))

    def _proved(self, claims: dict[str, Any]) -> Proved:
        name, groups = claims.get(self.settings.user_claim), claims.get(self.settings.groups_claim, [])
        if not isinstance(claims["sub"], str) or not 0 < len(claims["sub"]) <= 255:
            raise OidcError("its ID token names no subject")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise OidcError(
                f"its ID token has no name in `{self.settings.user_claim}` that a user may have: {name!r:.80}"
            )
        if isinstance(groups, str):
            groups = [groups]
        if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
            raise OidcError(f"its ID token has no list of names in `{self.settings.groups_claim}`")
        return Proved(self.settings.issuer, claims["sub"], name, groups)

    # ---- what the provider publishes ---------------------------------------------------------------------------------

    def _endpoint(self, name: str) -> str:
        found = self._published().get(name)
        try:
            return check_url(found if isinstance(found, str) else "")
        except ValueError as error:
            raise ProviderAway(f"the provider's {name} cannot be used: {error}") from error

    def _published(self) -> dict[str, Any]:
        with self._lock:
            if self._metadata is not None and time.monotonic() - self._metadata.read_s < _METADATA_FOR_S:
                return self._metadata.document
            where = f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration"
            document = _json(self._ask("GET", where))
            if document.get("issuer") != self.settings.issuer:
                raise ProviderAway(f"{where} is of another issuer, {document.get('issuer')!r:.200}")
            self._metadata = _Metadata(document, time.monotonic())
            return document

    def _published_keys(self, *, again: bool = False) -> KeySet:
        endpoint = self._endpoint("jwks_uri")
        with self._lock:
            stale = time.monotonic() - self._keys_read_s > _METADATA_FOR_S
            if self._keys is None or again or stale:
                keys = _json(self._ask("GET", endpoint)).get("keys")
                usable = [one for one in keys if _verifies(one)] if isinstance(keys, list) else []
                if not usable:
                    raise ProviderAway("the provider publishes no key that signs")
                try:
                    self._keys = KeySet.import_key_set({"keys": usable})
                except (JoseError, ValueError, TypeError) as error:
                    raise ProviderAway(f"the provider's keys cannot be read: {error}") from error
                self._keys_read_s = time.monotonic()
            return self._keys

    def _ask(self, method: str, url: str, **more: Any) -> httpx.Response:
        try:
            with httpx.Client(verify=self._tls, timeout=_TIMEOUT_S, follow_redirects=False) as client:
                answer = client.request(method, url, headers={"Accept": "application/json"}, **more)
        except httpx.HTTPError as error:
            raise ProviderAway(f"{url} does not answer: {error or type(error).__name__}") from error
        if answer.status_code >= 500 or len(answer.content) > _ANSWER_BYTES_MAX:
            raise ProviderAway(f"{url} answers {answer.status_code} with {len(answer.content)} bytes")
        return answer


def _verifies(key: Any) -> bool:
    """A key for signatures, of which everybody may know the public half: never a shared secret."""
    return isinstance(key, dict) and key.get("kty") in _ASYMMETRIC and key.get("use", "sig") == "sig"


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except (ValueError, RecursionError) as error:
        raise ProviderAway(f"{answer.url} answers what is no JSON") from error
    if answer.status_code != 200 or not isinstance(document, dict):
        raise ProviderAway(f"{answer.url} answers {answer.status_code}")
    return document
