"""What tests of logins share: a controller that knows a provider, and browsers that come back from there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from brownout_controller.api.oidc import OidcSettings, Provider
from brownout_controller.api.sessions import SESSION_COOKIE
from brownout_controller.audit.entry import Outcome

from tests.support.api_server import ApiServer
from tests.support.glewlwyd import CLIENT, SECRET, Glewlwyd, Person

CALLBACK = "https://127.0.0.1:7780/api/v1/auth/callback"
GROUPS = {"sre": [{"role": "operator", "environments": ["staging"]}]}


def settings_for(issuer: str, callback: str = CALLBACK) -> OidcSettings:
    """As somebody writes them who lets the group sre operate in staging."""
    known = {"client_id": CLIENT, "client_secret": SECRET, "redirect_uri": callback}
    return OidcSettings.model_validate({"issuer": issuer, **known, "groups": GROUPS})


@contextlib.contextmanager
def api_with_login(provider: Glewlwyd, folder: Path, port: int = 0) -> Iterator[ApiServer]:
    """A controller whose people log in by this provider, which it trusts by SSL_CERT_FILE; its clients are closed."""
    (authority := folder / "provider.pem").write_bytes(provider.tls.certificate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority))
        known = Provider(settings_for(provider.issuer, provider.redirect_uri))
    with ApiServer(folder, known, port) as serving, contextlib.ExitStack() as browsers:
        fresh = serving.client

        def client(*arguments: Any, **more: Any) -> httpx.Client:
            made = fresh(*arguments, **more)
            browsers.callback(made.close)
            return made

        serving.client = client  # type: ignore[method-assign]
        yield serving


def come_back(browser: httpx.Client, person: Person, link: str) -> httpx.Response:
    """Open a link of ours, log in at the provider, and come back from there."""
    return browser.get("/auth/callback", params=begin(browser, person, link))


def begin(browser: httpx.Client, person: Person, link: str = "/auth/login") -> dict[str, str]:
    """Go to the provider and log in there; what the browser brings back."""
    answer = browser.get(link)
    assert answer.status_code == 303, answer.text
    back = person.follow(answer.headers["Location"])
    assert back.startswith(CALLBACK), back
    return {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()}


def log_in(api: ApiServer, person: Person, **more: Any) -> httpx.Client:
    """A browser with a session."""
    browser = api.client(**more)
    answer = browser.get("/auth/callback", params=begin(browser, person))
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
