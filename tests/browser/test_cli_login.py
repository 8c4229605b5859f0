"""`brownout login` with a real browser: what it shows, what a click does, and what no other page can do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

from tests.support.api_server import ApiServer
from tests.support.glewlwyd import Glewlwyd, glewlwyd, goes_on_at
from tests.support.logins import api_with_login
from tests.support.services import free_port

BROWNOUT = Path(sys.executable).parent / "brownout"
CHROMIUM = "/usr/bin/chromium"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@dataclass
class Site:
    """A controller and its provider, each on the port that the other one knows."""

    api: ApiServer
    idp: Glewlwyd


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    port = free_port()
    with (
        glewlwyd(f"https://127.0.0.1:{port}/api/v1/auth/callback") as idp,
        api_with_login(idp, tmp_path, port) as api,
    ):
        yield Site(api, idp)


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser.new_context(ignore_https_errors=True).new_page()  # both certificates are of private authorities
        browser.close()


def test_a_click_lets_the_command_in_that_shows_the_same_code(site: Site, page: Page) -> None:
    mary = site.idp.add_person("sre")
    environment = {
        **os.environ,
        "BROWNOUT_SERVER": site.api.url.removesuffix("/api/v1"),
        "BROWNOUT_SERVER_PIN": site.api.services.controller.authority.pin,
        "BROWNOUT_DATA_DIR": str(site.api.folder / "mary"),
    }
    pipe = subprocess.PIPE
    with subprocess.Popen([BROWNOUT, "login"], env=environment, stdout=pipe, stderr=pipe, text=True) as command:
        try:
            assert command.stdout is not None
            assert command.stderr is not None
            page.goto(command.stdout.readline().strip())
            for name, value in mary.log_in().items():
                page.context.add_cookies([{"name": name, "value": value, "url": site.idp.issuer}])
            page.goto(goes_on_at(page.url))
            assert page.url == f"{site.api.url}/auth/cli"
            assert Axe().run(page).violations_count == 0
            shown = page.locator("strong").inner_text()
            page.get_by_role("button", name="Let it in").click()
            page.wait_for_url("http://127.0.0.1:*/**")
            assert page.inner_text("body").startswith("The command line has it")
            assert command.wait(30) == 0
            said = command.stderr.read()
        finally:
            command.kill()
    assert f"  {shown}\n" in said
    assert f"Logged in as {mary.account} until" in said
    (token,) = site.api.services.access.tokens(mary.account)
    assert token.purpose == "brownout login"
