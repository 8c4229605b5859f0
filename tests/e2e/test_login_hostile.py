"""A hostile OpenID provider: no ID token that it may think of lets anybody in."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.support.api_server import ApiServer
from tests.support.glewlwyd import CLIENT, Person
from tests.support.hostile_provider import HostileProvider, Mint, any_use, hostile_provider, signed
from tests.support.logins import CALLBACK, api_with_login, begin, log_in, refused

ADDRESSES = (f"127.0.{n // 250}.{n % 250 + 1}" for n in range(250, 60_000))


@pytest.fixture(scope="module")
def shared() -> Iterator[HostileProvider]:
    with hostile_provider(CALLBACK) as serving:
        yield serving


@pytest.fixture
def idp(shared: HostileProvider) -> Iterator[HostileProvider]:
    yield shared
    shared.honest()


@pytest.fixture
def api(idp: HostileProvider, tmp_path: Path) -> Iterator[ApiServer]:
    with api_with_login(idp.real, tmp_path) as serving:
        yield serving


@pytest.fixture
def mary(idp: HostileProvider) -> Person:
    return idp.real.add_person("sre")


def _part(document: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def _alg_none(_: HostileProvider, claims: dict[str, Any]) -> str:
    return f"{_part({'alg': 'none'})}.{_part(claims)}."


def _hmac_with_the_public_key(idp: HostileProvider, claims: dict[str, Any]) -> str:
    text = f"{_part({'alg': 'HS256', 'kid': '1'})}.{_part(claims)}"
    mac = hmac.new(idp.real.key.as_pem(private=False), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def _crit(idp: HostileProvider, claims: dict[str, Any]) -> str:
    text = f"{_part({'alg': 'RS256', 'kid': '1', 'crit': ['x'], 'x': 1})}.{_part(claims)}"
    private: Any = idp.real.key.private_key
    signature = private.sign(text.encode(), PKCS1v15(), hashes.SHA256())
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _strangers_key(_: HostileProvider, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "RS256", "kid": "1"}, claims, RSAKey.generate_key(2048))


def _embedded_key(_: HostileProvider, claims: dict[str, Any]) -> str:
    key = RSAKey.generate_key(2048)
    return jwt.encode({"alg": "RS256", "jwk": key.as_dict(private=False)}, claims, key)


def _ps256(idp: HostileProvider, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "PS256", "kid": "1"}, claims, any_use(idp.real.key), algorithms=["PS256"])


def _but(**changed: Any) -> Mint:
    """Right in everything but these claims; None leaves one out."""
    return lambda idp, claims: signed(
        idp, {name: value for name, value in {**claims, **changed}.items() if value is not None}
    )


NOW = int(time.time())
BAD_TOKENS: dict[str, Mint] = {
    "alg none": _alg_none,
    "HS256 with the public key": _hmac_with_the_public_key,
    "unknown crit": _crit,
    "a stranger's key": _strangers_key,
    "a key that the token brings along": _embedded_key,
    "an algorithm that is not allowed here": _ps256,
    "another issuer": _but(iss="https://evil.example"),
    "no issuer": _but(iss=None),
    "another audience": _but(aud="grafana"),
    "no audience": _but(aud=None),
    "several audiences, for nobody": _but(aud=[CLIENT, "grafana"], azp=None),
    "issued to another client": _but(aud=[CLIENT, "grafana"], azp="grafana"),
    "another azp": _but(azp="grafana"),
    "another nonce": _but(nonce="x" * 43),
    "no nonce": _but(nonce=None),
    "expired": _but(exp=NOW - 3_600),
    "no expiry": _but(exp=None),
    "not yet issued": _but(iat=NOW + 3_600, exp=NOW + 7_200),
    "issued long ago": _but(iat=NOW - 7_200, exp=NOW + 7_200),
    "not yet good": _but(nbf=NOW + 3_600),
    "no subject": _but(sub=None),
    "a subject that is none": _but(sub=["0042"]),
    "no name": _but(preferred_username=None),
    "a name with markup": _but(preferred_username="<script>"),
    "groups that are none": _but(groups={"sre": True}),
    "not a token": lambda _, __: "a.b.c",
    "an empty one": lambda _, __: "",
    "letters beyond ASCII": lambda _, __: "é.é.é",
    "cut off": lambda idp, claims: signed(idp, claims)[:-20],
    "another signature": lambda idp, claims: signed(idp, claims)[:-40] + "A" * 40,
}  # fmt: skip


def test_no_bad_id_token_lets_anybody_in(api: ApiServer, idp: HostileProvider, mary: Person) -> None:
    for name, mint in BAD_TOKENS.items():
        idp.mint = mint
        browser = api.client(address=next(ADDRESSES))
        answer = browser.get("/auth/callback", params=begin(browser, mary))
        assert answer.status_code == 401, f"{name}: {answer.status_code} {answer.text}"
        refused(api, answer, "its ID token")
    assert api.services.access.user(mary.account) is None, "nobody was made"
    idp.mint = signed
    log_in(api, mary)


def test_a_provider_that_calls_itself_otherwise_is_not_asked(
    api: ApiServer, idp: HostileProvider, mary: Person
) -> None:
    idp.published = {"issuer": "https://evil.example"}
    answer = api.client().get("/auth/login")
    assert answer.status_code == 503
    assert "another issuer" in answer.json()["detail"]
    idp.published = {"token_endpoint": "http://evil.example/token"}
    browser = api.client()
    answer = browser.get("/auth/callback", params=begin(browser, mary))
    assert answer.status_code == 503
    assert "not https" in answer.json()["detail"]
