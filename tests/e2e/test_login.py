"""Login by an OpenID provider, over real HTTP: who is let in, and everything that is not."""

import base64
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from brownout_controller.access.decisions import Grant
from brownout_controller.access.guessing import PER_ORIGIN
from brownout_controller.access.permissions import Role
from brownout_controller.api.oidc import OidcSettings, Provider, read_settings
from brownout_controller.api.sessions import LOGIN_COOKIE, SESSION_COOKIE
from brownout_controller.audit.entry import Outcome
from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.support.api_server import ApiServer
from tests.support.oidc_provider import CLIENT, SECRET, Mint, OidcProvider, signed

CALLBACK = "https://127.0.0.1:7780/api/v1/auth/callback"
ADDRESSES = (f"127.0.{n // 250}.{n % 250 + 1}" for n in range(250, 60_000))


@pytest.fixture
def idp() -> Iterator[OidcProvider]:
    with OidcProvider() as serving:
        yield serving


@pytest.fixture
def api(idp: OidcProvider, tmp_path: Path) -> Iterator[ApiServer]:
    groups = {"sre": [{"role": "operator", "environments": ["staging"]}]}
    settings = OidcSettings.model_validate(
        {"issuer": idp.issuer, "client_id": CLIENT, "client_secret": SECRET, "redirect_uri": CALLBACK, "groups": groups}
    )
    with ApiServer(tmp_path, Provider(settings)) as serving, contextlib.ExitStack() as browsers:
        fresh = serving.client

        def client(*arguments: Any, **more: Any) -> httpx.Client:
            made = fresh(*arguments, **more)
            browsers.callback(made.close)
            return made

        serving.client = client  # type: ignore[method-assign]
        yield serving


def begin(browser: httpx.Client) -> dict[str, str]:
    """Go to the provider and log in there; what the browser brings back."""
    there = browser.get("/auth/login").headers["Location"]
    back = httpx.get(there).headers["Location"]
    assert back.startswith(CALLBACK)
    return {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()}


def log_in(api: ApiServer) -> httpx.Client:
    browser = api.client()
    answer = browser.get("/auth/callback", params=begin(browser))
    assert answer.status_code == 303, answer.text
    return browser


def refused(api: ApiServer, answer: httpx.Response, why: str) -> None:
    """401, no session, and audited with the reason."""
    assert answer.status_code == 401, answer.text
    assert SESSION_COOKIE not in answer.headers.get("set-cookie", "")
    entry = api.audit.entries[-1]
    assert (entry.action, entry.actor, entry.outcome) == ("user.login", "unknown", Outcome.REFUSED)
    assert why in entry.reason
    assert entry.origin


def test_whoever_the_provider_names_comes_in_with_the_roles_of_their_groups(api: ApiServer) -> None:
    browser = log_in(api)
    me = browser.get("/whoami").json()
    assert me["user"] == "mary"
    assert me["grants"] == [{"role": "operator", "environments": ["staging"], "hosts": None}]
    assert 11.9 * 3600 < me["token_expires_ns"] / 1e9 - time.time() <= 12 * 3600
    (entry,) = [one for one in api.audit.entries if one.action == "user.login"]
    assert (entry.actor, entry.outcome) == ("user:mary", Outcome.ALLOWED)
    assert entry.detail["subject"] == "0042"


def test_the_cookie_is_bound_to_this_host_and_no_script_reads_it(api: ApiServer) -> None:
    browser = api.client()
    answer = browser.get("/auth/callback", params=begin(browser))
    (cookie,) = [one for one in answer.headers.get_list("set-cookie") if one.startswith(f"{SESSION_COOKIE}=")]
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"secure", "httponly", "samesite=lax", "path=/", "max-age=43200"} <= parts
    assert not any(part.startswith("domain") for part in parts)


def test_a_session_ends_by_logout_by_a_new_login_and_with_the_user(api: ApiServer) -> None:
    browser = log_in(api)
    first = browser.cookies[SESSION_COOKIE]
    assert browser.get("/auth/callback", params=begin(browser)).status_code == 303
    assert browser.cookies[SESSION_COOKIE] != first, "rotated at login"
    with api.client() as stale:
        assert stale.get("/whoami", headers={"Cookie": f"{SESSION_COOKIE}={first}"}).status_code == 401
    assert browser.post("/auth/logout").status_code == 403, "neither Sec-Fetch-Site nor Origin"
    kept = browser.cookies[SESSION_COOKIE]
    assert browser.post("/auth/logout", headers={"Sec-Fetch-Site": "same-origin"}).json()["ended"] is True
    with api.client() as stale:
        assert stale.get("/whoami", headers={"Cookie": f"{SESSION_COOKIE}={kept}"}).status_code == 401
    again = log_in(api)
    mary = api.services.access.user("mary")
    assert mary is not None
    api.services.access.change_user("mary", mary.grants, True, mary.version)
    assert again.get("/whoami").status_code == 401
    refused(api, (browser := api.client()).get("/auth/callback", params=begin(browser)), "disabled")


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}]
)
def test_another_sites_page_does_nothing_with_a_session(api: ApiServer, headers: dict[str, str]) -> None:
    browser = log_in(api)
    assert browser.post("/tokens", json={}, headers=headers).status_code == 403
    assert browser.post("/tokens", json={}, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 201


def test_roles_follow_the_groups_at_each_login_and_admin_comes_by_hand_only(api: ApiServer, idp: OidcProvider) -> None:
    log_in(api)
    mary = api.services.access.user("mary")
    assert mary is not None
    api.services.access.change_user("mary", [*mary.grants, Grant(Role.ADMIN)], False, mary.version)
    idp.person["groups"] = ["admins", "admin"]
    assert [grant["role"] for grant in log_in(api).get("/whoami").json()["grants"]] == ["admin"]
    with pytest.raises(ValueError, match="no group makes admins"):
        OidcSettings.model_validate(
            {"issuer": idp.issuer, "client_id": CLIENT, "redirect_uri": CALLBACK, "groups": {"x": [{"role": "admin"}]}}
        )


def test_a_name_that_somebody_has_is_not_taken_over(api: ApiServer, idp: OidcProvider) -> None:
    api.user("root", Grant(Role.ADMIN))
    idp.person["preferred_username"] = "root"
    browser = api.client()
    refused(api, browser.get("/auth/callback", params=begin(browser)), "belongs to somebody")
    idp.person = {"sub": "0042", "preferred_username": "mary"}
    log_in(api)
    idp.person["sub"] = "0043"
    browser = api.client()
    refused(api, browser.get("/auth/callback", params=begin(browser)), "belongs to somebody")


def _part(document: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def _alg_none(_: OidcProvider, claims: dict[str, Any]) -> str:
    return f"{_part({'alg': 'none'})}.{_part(claims)}."


def _hmac_with_the_public_key(idp: OidcProvider, claims: dict[str, Any]) -> str:
    text = f"{_part({'alg': 'HS256', 'kid': '1'})}.{_part(claims)}"
    mac = hmac.new(idp.key.as_pem(private=False), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def _crit(idp: OidcProvider, claims: dict[str, Any]) -> str:
    text = f"{_part({'alg': 'RS256', 'kid': '1', 'crit': ['x'], 'x': 1})}.{_part(claims)}"
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

    private: Any = idp.key.private_key
    signature = private.sign(text.encode(), PKCS1v15(), hashes.SHA256())
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _strangers_key(_: OidcProvider, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "RS256", "kid": "1"}, claims, RSAKey.generate_key(2048))


def _embedded_key(_: OidcProvider, claims: dict[str, Any]) -> str:
    key = RSAKey.generate_key(2048)
    return jwt.encode({"alg": "RS256", "jwk": key.as_dict(private=False)}, claims, key)


def _ps256(idp: OidcProvider, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "PS256", "kid": "1"}, claims, idp.key, algorithms=["PS256"])


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
    "several audiences, for nobody": _but(aud=[CLIENT, "grafana"]),
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


def test_no_bad_id_token_lets_anybody_in(api: ApiServer, idp: OidcProvider) -> None:
    for name, mint in BAD_TOKENS.items():
        idp.mint = mint
        browser = api.client(address=next(ADDRESSES))
        answer = browser.get("/auth/callback", params=begin(browser))
        assert answer.status_code == 401, f"{name}: {answer.status_code} {answer.text}"
        refused(api, answer, "its ID token")
    assert api.services.access.user("mary") is None, "nobody was made"
    idp.mint = signed
    log_in(api)


def test_a_code_is_good_once_and_only_with_the_verifier_of_its_login(api: ApiServer, idp: OidcProvider) -> None:
    browser = api.client()
    brought = begin(browser)
    assert browser.get("/auth/callback", params=brought).status_code == 303
    assert idp.asked[-1]["code_verifier"]
    browser.cookies.set(LOGIN_COOKIE, brought["state"], domain="127.0.0.1")
    refused(api, browser.get("/auth/callback", params=brought), "is over")
    stolen, thief = begin(api.client()), api.client()
    own = begin(thief)
    refused(api, thief.get("/auth/callback", params={**own, "code": stolen["code"]}), "refuses the code")


def test_a_login_that_another_browser_has_begun_is_refused(api: ApiServer) -> None:
    brought = begin(api.client())
    refused(api, api.client().get("/auth/callback", params=brought), "not begun this login")
    browser = api.client()
    begin(browser)
    refused(api, browser.get("/auth/callback", params=brought), "not begun this login")
    own = begin(browser)
    refused(api, browser.get("/auth/callback", params={**own, "state": ""}), "not begun this login")
    refused(api, browser.get("/auth/callback", params={**own, "iss": "https://evil.example"}), "another provider")
    own = begin(browser)
    refused(api, browser.get("/auth/callback", params={"state": own["state"], "error": "access_denied"}), "no code")


def test_a_provider_that_calls_itself_otherwise_is_not_asked(api: ApiServer, idp: OidcProvider) -> None:
    idp.published = {"issuer": "https://evil.example"}
    answer = api.client().get("/auth/login")
    assert answer.status_code == 503
    assert "another issuer" in answer.json()["detail"]
    idp.published = {"token_endpoint": "http://evil.example/token"}
    browser = api.client()
    answer = browser.get("/auth/callback", params=begin(browser))
    assert answer.status_code == 503
    assert "not https" in answer.json()["detail"]


def test_a_key_that_the_provider_has_just_made_is_fetched(api: ApiServer, idp: OidcProvider) -> None:
    log_in(api)
    idp.key = RSAKey.generate_key(2048, parameters={"kid": "2", "use": "sig"})
    idp.mint = lambda provider, claims: jwt.encode({"alg": "RS256", "kid": "2"}, claims, provider.key)
    assert api.provider is not None
    api.provider._keys_read_s -= 60  # the keys were read a minute ago
    log_in(api)


def test_logins_that_come_to_nothing_are_slowed_down(api: ApiServer) -> None:
    browser = api.client(address=next(ADDRESSES))
    for _ in range(PER_ORIGIN):
        assert browser.get("/auth/callback", params={"state": "x", "code": "y"}).status_code == 401
    assert browser.get("/auth/callback", params={"state": "x", "code": "y"}).status_code == 429


def test_settings_are_the_owners_alone_and_need_tls(tmp_path: Path) -> None:
    file = tmp_path / "oidc.yaml"
    file.write_text("issuer: http://id.example\nclient_id: brownout\nredirect_uri: https://b/api/v1/auth/callback\n")
    file.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        read_settings(file)
    file.chmod(0o600)
    with pytest.raises(ValueError, match="is not https"):
        read_settings(file)
    file.write_text(file.read_text().replace("http://", "https://"))
    assert read_settings(file).algorithms == ("RS256",)
