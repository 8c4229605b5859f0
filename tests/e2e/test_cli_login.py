"""`brownout login`: a real command, a real provider, and everything that may come between."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from brownout_controller.access.pkce import challenge_of, new_verifier
from brownout_controller.api.sessions import CLI_COOKIE
from brownout_controller.audit.entry import Outcome
from brownout_controller.cli import login
from brownout_controller.cli.main import app
from typer.testing import CliRunner, Result

from tests.support.api_server import ApiServer
from tests.support.glewlwyd import Glewlwyd, Person, glewlwyd
from tests.support.logins import CALLBACK, api_with_login, come_back, refused
from tests.support.services import free_port

BROWNOUT = Path(sys.executable).parent / "brownout"
DONE, USAGE, REFUSED, UNREACHABLE, NOT_PERMITTED = 0, 2, 4, 5, 6
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}


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
    return idp.add_person("sre")


def environment(api: ApiServer) -> dict[str, str]:
    """Of a user who has named the controller, and has no token."""
    named = {
        "BROWNOUT_SERVER": api.url.removesuffix("/api/v1"),
        "BROWNOUT_SERVER_PIN": api.services.controller.authority.pin,
        "BROWNOUT_DATA_DIR": str(api.folder / "mary"),
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("BROWNOUT_")} | named


def brownout(api: ApiServer, *argv: str) -> Result:
    return CliRunner().invoke(app, [*argv], env=environment(api))


@contextlib.contextmanager
def waiting(api: ApiServer, *argv: str) -> Iterator["subprocess.Popen[str]"]:
    """A `brownout login` that runs, as long as the block lasts."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([BROWNOUT, "login", *argv], env=environment(api), **pipes) as command:
        try:
            yield command
        finally:
            command.kill()


def link_of(command: "subprocess.Popen[str]") -> str:
    """What it tells its user to open."""
    assert command.stdout is not None
    return command.stdout.readline().strip()


def log_in(api: ApiServer, link: str, person: Person) -> httpx.Client:
    """A browser that opened the link, and is asked whether it lets the command line in."""
    browser = api.client()
    answer = come_back(browser, person, link)
    assert (answer.status_code, answer.headers.get("Location")) == (303, "/api/v1/auth/cli"), answer.text
    return browser


def agreed(browser: httpx.Client) -> str:
    """Where the browser is sent with the code."""
    answer = browser.post("/auth/cli", headers=SAME_ORIGIN)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["Location"])


def test_a_login_by_the_browser_lets_commands_in_until_logout(api: ApiServer, mary: Person) -> None:
    with waiting(api) as command:
        link = link_of(command)
        browser = log_in(api, link, mary)
        page = browser.get("/auth/cli")
        assert command.poll() is None, "it waits until somebody agrees"
        assert httpx.get(agreed(browser)).text.startswith("The command line has it")
        command.wait(30)
        assert command.stderr is not None
        said = command.stderr.read()
    assert command.returncode == DONE, said
    assert f"Logged in as {mary.account} until" in said
    (shown,) = re.findall(r"^  ([A-Z2-7]{4}-[A-Z2-7]{4})$", said, re.MULTILINE)
    assert f"<strong>{shown}</strong>" in page.text
    assert mary.account in page.text
    (file,) = (api.folder / "mary/logins").iterdir()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert brownout(api, "whoami", "-o", "name").stdout.strip() == mary.account

    row = api.row(file.read_text())
    session = browser.get("/whoami").json()
    assert (row.user, row.created_by, row.made_by) == (mary.account, mary.account, session["token"])
    assert abs(row.expires_ns - session["token_expires_ns"]) < 2e9, "no longer than the session"
    entry = next(one for one in api.audit.entries if one.subject == f"token {row.token_id}")
    assert (entry.action, entry.actor, entry.outcome) == ("user.login", f"user:{mary.account}", Outcome.ALLOWED)

    text = file.read_text()
    assert brownout(api, "logout").exit_code == DONE
    assert not file.exists()
    assert api.row(text).revoked_ns is not None
    assert brownout(api, "whoami").exit_code == NOT_PERMITTED
    assert "brownout login" in brownout(api, "whoami").stderr
    assert brownout(api, "logout").exit_code == REFUSED

    file.write_text(text)
    file.chmod(0o600)
    over = brownout(api, "logout")
    assert (over.exit_code, "had ended before" in over.stderr) == (DONE, True)
    assert not file.exists()


def test_what_else_knocks_at_the_port_changes_nothing(api: ApiServer, mary: Person) -> None:
    port = free_port()
    with waiting(api, "--port", str(port)) as command:
        link = link_of(command)
        assert f"cli_port={port}&" in link
        for path in ("/favicon.ico", "/", "/?code=", "/?code=<script>", f"/other?code={'x' * 43}"):
            assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 404
        assert httpx.get(agreed(log_in(api, link, mary))).status_code == 200
        assert command.wait(30) == DONE
    with waiting(api, "--port", str(port)) as command:
        link_of(command)
        assert httpx.get(f"http://127.0.0.1:{port}/?code={'x' * 43}").status_code == 200
        assert command.wait(30) == NOT_PERMITTED, "a code that no controller gave"


def test_a_controller_that_cannot_be_trusted_is_told_before_anybody_logs_in(api: ApiServer) -> None:
    wrong = {**environment(api), "BROWNOUT_SERVER_PIN": f"sha256:{'0' * 64}"}
    done = CliRunner().invoke(app, ["login"], env=wrong)
    assert (done.exit_code, done.stdout) == (UNREACHABLE, "")
    assert "not-trusted" in done.stderr


def test_nobody_who_comes_leaves_no_token(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "WITHIN_S", 0.2)
    done = brownout(api, "login")
    assert done.exit_code == NOT_PERMITTED
    assert "nobody logged in within 0.2 s" in done.stderr
    assert not (api.folder / "mary").exists()


def test_a_code_is_good_once_and_only_for_who_made_the_challenge(api: ApiServer, mary: Person) -> None:
    verifier = new_verifier()
    browser = log_in(api, f"/auth/login?cli_port=9&cli_challenge={challenge_of(verifier)}", mary)
    code = agreed(browser).removeprefix("http://127.0.0.1:9/?code=")
    thief, owner = api.client(), api.client()
    stolen = thief.post("/auth/cli/token", json={"code": code, "verifier": new_verifier()})
    refused(api, stolen, "the code is not good")
    refused(api, owner.post("/auth/cli/token", json={"code": code, "verifier": verifier}), "the code is not good")
    assert api.services.access.tokens() == [], "a code that somebody else has shown is good no more"
    browser = log_in(api, f"/auth/login?cli_port=9&cli_challenge={challenge_of(verifier)}", mary)
    code = agreed(browser).removeprefix("http://127.0.0.1:9/?code=")
    assert owner.post("/auth/cli/token", json={"code": code, "verifier": verifier}).status_code == 201
    refused(api, owner.post("/auth/cli/token", json={"code": code, "verifier": verifier}), "the code is not good")


def test_no_other_page_agrees_and_nothing_is_agreed_to_twice(api: ApiServer, mary: Person) -> None:
    browser = log_in(api, f"/auth/login?cli_port=9&cli_challenge={challenge_of(new_verifier())}", mary)
    assert browser.post("/auth/cli", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    page = browser.get("/auth/cli")
    assert page.headers["X-Frame-Options"] == "DENY"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    agreed(browser)
    assert browser.post("/auth/cli", headers=SAME_ORIGIN).status_code == 409
    stranger = api.client()
    stranger.cookies.set(CLI_COOKIE, f"9.{'x' * 43}", domain="127.0.0.1")
    assert stranger.get("/auth/cli").status_code == 401
    assert stranger.post("/auth/cli", headers=SAME_ORIGIN).status_code == 401


def test_a_limited_token_begets_no_full_one_this_way(api: ApiServer, mary: Person) -> None:
    log_in(api, f"/auth/login?cli_port=9&cli_challenge={challenge_of(new_verifier())}", mary)
    limited = api.token(mary.account, environments=frozenset({"staging"}))
    with api.client(limited) as thief:
        thief.cookies.set(CLI_COOKIE, f"9.{challenge_of(new_verifier())}", domain="127.0.0.1")
        assert thief.get("/auth/cli").status_code == 409
        assert thief.post("/auth/cli", headers=SAME_ORIGIN).status_code == 409
    assert "a token logs nobody in" in api.audit.refusals("token.own")[-1].reason


def test_a_login_without_a_command_line_ends_one_that_was_begun_for_one(api: ApiServer, mary: Person) -> None:
    browser = log_in(api, f"/auth/login?cli_port=9&cli_challenge={challenge_of(new_verifier())}", mary)
    assert come_back(browser, mary, "/auth/login").headers["Location"] == "/api/v1/whoami"


def test_a_link_that_no_command_made_is_refused(api: ApiServer) -> None:
    good = f"cli_challenge={'x' * 43}"
    queries = (
        "cli_port=0",
        "cli_port=65536",
        "cli_port=9&cli_challenge=short",
        "cli_port=http://x",
        "cli_port=9",
        good,
    )
    for query in queries:
        assert api.client().get(f"/auth/login?{query}").status_code == 400, query


def test_a_kept_token_that_others_may_read_is_not_used(api: ApiServer) -> None:
    environment(api)
    file = api.folder / "mary/logins" / f"{httpx.URL(api.url).netloc.decode().replace(':', '_')}.token"
    login.keep(file, api.token(api.user("ana")))
    file.chmod(0o640)
    done = brownout(api, "whoami")
    assert (done.exit_code, "chmod 600" in done.stderr) == (USAGE, True)
