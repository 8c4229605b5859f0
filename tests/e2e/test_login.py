"""Login by a real OpenID provider: who is let in, with which roles, and for how long."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from brownout_controller.access.decisions import Grant
from brownout_controller.access.guessing import PER_ORIGIN
from brownout_controller.access.permissions import Role
from brownout_controller.api.oidc import OidcSettings, Provider, ProviderAway, read_settings
from brownout_controller.api.sessions import LOGIN_COOKIE, SESSION_COOKIE
from brownout_controller.audit.entry import NOBODY, Outcome
from brownout_controller.store.schema.logins import attempts
from sqlalchemy import func, select

from tests.support.api_server import ApiServer
from tests.support.glewlwyd import Glewlwyd, Person, glewlwyd
from tests.support.logins import CALLBACK, api_with_login, begin, log_in, refused, settings_for

ADDRESSES = (f"127.0.{n // 250}.{n % 250 + 1}" for n in range(250, 60_000))


@pytest.fixture(scope="module")
def idp() -> Iterator[Glewlwyd]:
    with glewlwyd(CALLBACK) as serving:
        yield serving


@pytest.fixture
def api(idp: Glewlwyd, tmp_path: Path) -> Iterator[ApiServer]:
    with api_with_login(idp, tmp_path) as serving:
        yield serving


@pytest.fixture
def mary(idp: Glewlwyd) -> Person:
    return idp.add_person("sre", "everybody")


def test_whoever_the_provider_names_comes_in_with_the_roles_of_their_groups(api: ApiServer, mary: Person) -> None:
    browser = log_in(api, mary)
    me = browser.get("/whoami").json()
    assert me["user"] == mary.account
    assert me["grants"] == [{"role": "operator", "environments": ["staging"], "hosts": None}]
    assert 11.9 * 3600 < me["token_expires_ns"] / 1e9 - time.time() <= 12 * 3600
    (entry,) = [one for one in api.audit.entries if one.action == "user.login"]
    assert (entry.actor, entry.outcome) == (f"user:{mary.account}", Outcome.ALLOWED)
    assert re.fullmatch(r"\w{32}", entry.detail["subject"]), "the provider's own name of her, not the one she prefers"


def test_nobody_comes_in_with_a_wrong_password_or_is_sent_elsewhere_than_was_agreed(
    api: ApiServer, idp: Glewlwyd, mary: Person
) -> None:
    there = api.client().get("/auth/login").headers["Location"]
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        mary.follow(there, "not her password")
    where = urlsplit(there)
    asked = {**parse_qs(where.query), "redirect_uri": ["https://evil.example/callback"]}
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        mary.follow(where._replace(query=urlencode(asked, doseq=True)).geturl())


def test_a_provider_that_this_machine_does_not_trust_is_not_asked(idp: Glewlwyd) -> None:
    with pytest.raises(ProviderAway, match="CERTIFICATE_VERIFY_FAILED"):
        Provider(settings_for(idp.issuer)).begin()


def test_the_cookie_is_bound_to_this_host_and_no_script_reads_it(api: ApiServer, mary: Person) -> None:
    browser = api.client()
    answer = browser.get("/auth/callback", params=begin(browser, mary))
    (cookie,) = [one for one in answer.headers.get_list("set-cookie") if one.startswith(f"{SESSION_COOKIE}=")]
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"secure", "httponly", "samesite=lax", "path=/", "max-age=43200"} <= parts
    assert not any(part.startswith("domain") for part in parts)


def test_a_session_ends_by_logout_by_a_new_login_and_with_the_user(api: ApiServer, mary: Person) -> None:
    browser = log_in(api, mary)
    first = browser.cookies[SESSION_COOKIE]
    assert browser.get("/auth/callback", params=begin(browser, mary)).status_code == 303
    assert browser.cookies[SESSION_COOKIE] != first, "rotated at login"
    with api.client() as stale:
        assert stale.get("/whoami", headers={"Cookie": f"{SESSION_COOKIE}={first}"}).status_code == 401
    assert browser.post("/auth/logout").status_code == 403, "neither Sec-Fetch-Site nor Origin"
    kept = browser.cookies[SESSION_COOKIE]
    assert browser.post("/auth/logout", headers={"Sec-Fetch-Site": "same-origin"}).json()["ended"] is True
    with api.client() as stale:
        assert stale.get("/whoami", headers={"Cookie": f"{SESSION_COOKIE}={kept}"}).status_code == 401
    again = log_in(api, mary)
    user = api.services.access.user(mary.account)
    assert user is not None
    api.services.access.change_user(user.name, user.grants, True, user.version)
    assert again.get("/whoami").status_code == 401
    refused(api, (browser := api.client()).get("/auth/callback", params=begin(browser, mary)), "disabled")


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}]
)
def test_another_sites_page_does_nothing_with_a_session(api: ApiServer, mary: Person, headers: dict[str, str]) -> None:
    browser = log_in(api, mary)
    assert browser.post("/tokens", json={}, headers=headers).status_code == 403
    assert browser.post("/tokens", json={}, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 201


def test_roles_follow_the_groups_at_each_login_and_admin_comes_by_hand_only(
    api: ApiServer, idp: Glewlwyd, mary: Person
) -> None:
    log_in(api, mary)
    user = api.services.access.user(mary.account)
    assert user is not None
    api.services.access.change_user(user.name, [*user.grants, Grant(Role.ADMIN)], False, user.version)
    idp.change_person(mary, groups=["admins", "admin"])
    assert [grant["role"] for grant in log_in(api, mary).get("/whoami").json()["grants"]] == ["admin"]
    with pytest.raises(ValueError, match="no group makes admins"):
        OidcSettings.model_validate({**settings_for(idp.issuer).model_dump(), "groups": {"x": [{"role": "admin"}]}})


def test_a_name_that_somebody_has_is_not_taken_over(api: ApiServer, idp: Glewlwyd, mary: Person) -> None:
    api.user("root", Grant(Role.ADMIN))
    log_in(api, mary)
    for name in ("root", mary.account):
        somebody, browser = idp.add_person("sre", preferred_username=name), api.client()
        refused(api, browser.get("/auth/callback", params=begin(browser, somebody)), "belongs to somebody")


def test_somebody_whose_name_changes_at_the_provider_stays_who_they_are(
    api: ApiServer, idp: Glewlwyd, mary: Person
) -> None:
    log_in(api, mary)
    api.user("root", Grant(Role.ADMIN))
    idp.change_person(mary, preferred_username="root")
    assert log_in(api, mary).get("/whoami").json()["user"] == mary.account


def test_two_first_logins_of_one_person_at_once_both_come_in(api: ApiServer, idp: Glewlwyd) -> None:
    for _ in range(2):
        anna = idp.add_person("sre")
        browsers = [api.client(address=next(ADDRESSES)) for _ in range(4)]
        brought = [begin(browser, anna) for browser in browsers]
        with ThreadPoolExecutor(len(browsers)) as pool:
            answers = list(pool.map(lambda one, back: one.get("/auth/callback", params=back), browsers, brought))
        assert [answer.status_code for answer in answers] == [303] * 4, [answer.text for answer in answers]


def test_a_code_is_good_once_and_only_with_the_verifier_of_its_login(api: ApiServer, mary: Person) -> None:
    browser = api.client()
    brought = begin(browser, mary)
    assert browser.get("/auth/callback", params=brought).status_code == 303
    browser.cookies.set(LOGIN_COOKIE, brought["state"], domain="127.0.0.1")
    refused(api, browser.get("/auth/callback", params=brought), "is over")
    stolen, thief = begin(api.client(), mary), api.client()
    own = begin(thief, mary)
    refused(api, thief.get("/auth/callback", params={**own, "code": stolen["code"]}), "refuses the code")


def test_a_login_that_another_browser_has_begun_is_refused(api: ApiServer, mary: Person) -> None:
    brought = begin(api.client(), mary)
    refused(api, api.client().get("/auth/callback", params=brought), "not begun this login")
    browser = api.client()
    begin(browser, mary)
    refused(api, browser.get("/auth/callback", params=brought), "not begun this login")
    own = begin(browser, mary)
    refused(api, browser.get("/auth/callback", params={**own, "state": ""}), "not begun this login")
    refused(api, browser.get("/auth/callback", params={**own, "iss": "https://evil.example"}), "another provider")
    own = begin(browser, mary)
    refused(api, browser.get("/auth/callback", params={"state": own["state"], "error": "access_denied"}), "no code")


def test_a_key_that_the_provider_has_just_made_is_fetched(api: ApiServer, idp: Glewlwyd, mary: Person) -> None:
    log_in(api, mary)
    idp.rotate_key()
    assert api.provider is not None
    api.provider._keys_read_s -= 60  # the keys were read a minute ago
    log_in(api, mary)


def test_logins_that_come_to_nothing_are_slowed_down(api: ApiServer) -> None:
    browser = api.client(address=next(ADDRESSES))
    for _ in range(PER_ORIGIN):
        assert browser.get("/auth/callback", params={"state": "x", "code": "y"}).status_code == 401
    slowed_down(api, browser.get("/auth/callback", params={"state": "x", "code": "y"}), "came to nothing")


def test_nobody_begins_more_logins_than_a_person_would_and_who_is_on_the_way_back_still_comes_in(
    api: ApiServer, mary: Person
) -> None:
    address = next(ADDRESSES)
    browser = api.client(address=address)
    brought = begin(browser, mary)
    with api.client(address=address) as flood:
        for _ in range(PER_ORIGIN - 1):
            assert flood.get("/auth/login").status_code == 303
        slowed_down(api, flood.get("/auth/login"), "were begun")
    assert kept_attempts(api) == PER_ORIGIN, "those that were turned away cost no row"
    assert browser.get("/auth/callback", params=brought).status_code == 303
    assert api.client(address=next(ADDRESSES)).get("/auth/login").status_code == 303, "another address is not blocked"


def slowed_down(api: ApiServer, answer: httpx.Response, why: str) -> None:
    """429 with when to come again, audited as what is folded."""
    assert answer.status_code == 429, answer.text
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert why in answer.json()["title"]
    entry = api.audit.entries[-1]
    assert (entry.action, entry.subject, entry.actor, entry.outcome) == (
        "user.login", "session", NOBODY, Outcome.REFUSED
    )  # fmt: skip


def kept_attempts(api: ApiServer) -> int:
    with api.services.store.database.reading() as connection:
        return connection.execute(select(func.count()).select_from(attempts)).scalar_one()


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
