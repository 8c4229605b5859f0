"""The API's bounds against the real server over real TLS: too much, too fast, too slow, from elsewhere, not JSON."""

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from brownout_controller.access import guessing, token_form
from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role
from brownout_controller.api import server
from brownout_controller.api.app import HEADERS
from brownout_controller.api.bounded import BODY_MAX_BYTES
from brownout_controller.api.gate import UNAUTHENTICATED_TAKES_S
from brownout_controller.audit.entry import Outcome
from brownout_controller.language.source import LARGEST_BYTES

from tests.support.api_server import ApiServer, raw


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("api")) as serving:
        serving.user("ann", Grant(Role.ADMIN), Grant(Role.AUTHOR), Grant(Role.OPERATOR))
        yield serving


@pytest.fixture(scope="module")
def ann(api: ApiServer) -> Iterator[httpx.Client]:
    with api.client(api.token("ann")) as client:
        yield client


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """What every refusal looks like."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert (found["status"], found["code"], found["type"]) == (status, code, f"urn:brownout:problem:{code}")
    assert found["title"]
    assert "Traceback" not in answer.text
    return found


def post(client: httpx.Client, content: bytes, path: str = "/users", **headers: str) -> httpx.Response:
    return client.post(path, content=content, headers={"Content-Type": "application/json", **headers})


# ---- who comes in ----------------------------------------------------------------------------------------------------


def test_without_a_token_with_a_wrong_one_expired_revoked_or_of_a_disabled_user_nobody_comes_in(api: ApiServer) -> None:
    revoked, disabled = api.token("ann"), api.token(api.user("gone", Grant(Role.ADMIN)))
    api.services.access.revoke_token(api.row(revoked).token_id)
    api.services.access.change_user("gone", [Grant(Role.ADMIN)], True, 1)
    for header in ("", "Bearer", "Bearer x", "Basic YW5uOmFubg==", f"Bearer {revoked}", f"Bearer {disabled}"):
        with api.client(address="127.0.0.11") as client:
            answer = client.get("/whoami", headers={"Authorization": header} if header else {})
        found = problem(answer, 401, "no-token")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert found["detail"] == (
            "the token is not good: unknown, expired or revoked" if header else "there is no token"
        )
    refused = [entry for entry in api.audit.refusals("self.read") if entry.origin == "127.0.0.11"]
    assert [entry.actor for entry in refused] == ["unknown"] * 6


def test_unknown_expired_and_revoked_tokens_are_answered_in_the_same_time(api: ApiServer) -> None:
    took_s: dict[str, list[float]] = {}
    for turn in range(8):
        unknown = api.token("ann")[:-6] + "000000"
        revoked = api.token("ann")
        api.services.access.revoke_token(api.row(revoked).token_id)
        for kind, text in (("unknown", unknown), ("expired", api.token("ann", ttl_s=-1)), ("revoked", revoked)):
            with api.client(text, f"127.0.0.{20 + turn}") as client:
                client.get("/health")  # the handshake is not what is measured
                begun_s = time.perf_counter()
                problem(client.get("/whoami"), 401, "no-token")
                took_s.setdefault(kind, []).append(time.perf_counter() - begun_s)
    fastest = {kind: min(times) for kind, times in took_s.items()}
    assert all(time_s >= UNAUTHENTICATED_TAKES_S for time_s in fastest.values()), fastest
    within_one = max(max(times) - min(times) for times in took_s.values())  # what a busy machine adds
    assert max(fastest.values()) - min(fastest.values()) <= max(0.02, within_one), took_s


def test_whoever_guesses_is_not_looked_at_for_a_while_and_who_was_known_before_still_is(api: ApiServer) -> None:
    known, fresh = api.token("ann"), api.token("ann")
    here = "127.0.0.40"
    with api.client(known, here) as client:
        assert client.get("/whoami").status_code == 200
        for _ in range(guessing.PER_ORIGIN):
            problem(client.get("/whoami", headers={"Authorization": "Bearer bo_guess"}), 401, "no-token")
        blocked = client.get("/whoami", headers={"Authorization": "Bearer bo_guess"})
        problem(blocked, 429, "guessing")
        assert 0 < int(blocked.headers["retry-after"]) <= 60
        problem(client.get("/whoami", headers={"Authorization": f"Bearer {fresh}"}), 429, "guessing")
        assert client.get("/whoami").status_code == 200
    turned_away = [entry for entry in api.audit.refusals("self.read") if entry.origin == here]
    assert [entry.subject for entry in turned_away[guessing.PER_ORIGIN :]] == ["guessing"] * 2, "these are told as well"
    with api.client(fresh, "127.0.0.41") as client:
        assert client.get("/whoami").status_code == 200, "another address is not blocked"


def test_guessing_at_one_account_is_slowed_down_from_however_many_addresses(api: ApiServer) -> None:
    aimed = api.token("ann")
    token_id = api.row(aimed).token_id
    for turn in range(guessing.PER_ACCOUNT):
        with api.client(_guess(token_id), f"127.0.1.{turn + 1}") as client:
            problem(client.get("/whoami"), 401, "no-token")
    with api.client(_guess(token_id), "127.0.1.99") as client:
        problem(client.get("/whoami"), 429, "guessing")


def _guess(token_id: str) -> str:
    """A token of the right form and account with another secret."""
    body = f"bo_{token_id}_{token_form.new_token().text.split('_')[2][:43]}"
    return body + token_form._check(body)


# ---- from where ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Cookie": "session=1"},
    ],
)
def test_a_page_of_another_site_changes_nothing(api: ApiServer, ann: httpx.Client, headers: dict[str, str]) -> None:
    problem(post(ann, b'{"name": "evil", "grants": []}', **headers), 403, "cross-site")
    assert api.services.access.user("evil") is None
    last = api.audit.entries[-1]
    assert (last.actor, last.action, last.outcome) == ("user:ann", "user.manage", Outcome.REFUSED)
    assert ann.get("/users", headers=headers).status_code == 200, "reading changes nothing"


def test_a_page_of_our_own_and_a_program_may(api: ApiServer, ann: httpx.Client) -> None:
    own = api.url.removesuffix("/api/v1")
    cases: list[dict[str, str]] = [{"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": own}, {}]
    for number, headers in enumerate(cases):
        body = json.dumps({"name": f"own-{number}", "grants": []}).encode()
        assert post(ann, body, **headers).status_code == 201


def test_no_other_site_is_told_that_it_may_read_anything(ann: httpx.Client) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (ann.get("/whoami", headers=asked), ann.options("/users", headers=asked)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert ann.options("/users", headers=asked).status_code == 405


def test_every_answer_carries_the_security_headers(api: ApiServer, ann: httpx.Client) -> None:
    with api.client() as nobody:
        answers = [ann.get("/whoami"), ann.get("/nothing"), nobody.get("/whoami"), nobody.get("/health")]
    for answer in [*answers, post(ann, b"{")]:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert "server" not in answer.headers


# ---- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"name": "x", "name": "y", "grants": []}',
        b'{"name": "x", "grants": NaN}',
        b'{"name": "x", "grants": -Infinity}',
        b'{"name": "x", "grants": 1e999}',
        b"[" * 5_000 + b"]" * 5_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b'{"name": "\xff", "grants": []}',
        b'{"name": "\\ud800", "grants": []}',
        b'{"name": ' + b"9" * 10_000 + b"}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
    ],
)
def test_what_is_not_strict_json_is_400(ann: httpx.Client, content: bytes) -> None:
    if content:
        problem(post(ann, content), 400, "not-json")
    else:
        problem(post(ann, content), 422, "invalid")


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", ""],
)
def test_a_body_that_is_not_declared_as_json_is_400(api: ApiServer, ann: httpx.Client, content_type: str) -> None:
    body = b'{"name": "simple", "grants": []}'
    problem(ann.post("/users", content=body, headers={"Content-Type": content_type}), 400, "not-json")
    assert api.services.access.user("simple") is None


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x", "grants": [], "more": 1},
        {"name": "../x", "grants": []},
        {"name": "x\n", "grants": []},
        {"name": "x", "grants": [{"role": "root"}]},
        {"name": "x", "grants": [{"role": "halter"}]},
        {"name": "x", "grants": [{"role": "viewer", "hosts": ""}]},
        {"name": "x", "grants": [{"role": "viewer", "environments": []}]},
        {"name": "x", "grants": [{"role": "viewer"}] * 51},
        {"name": 1, "grants": []},
        [],
        "x",
    ],
)
def test_json_that_does_not_fit_is_422_and_says_where(ann: httpx.Client, body: Any) -> None:
    found = problem(ann.post("/users", json=body), 422, "invalid")
    assert all(finding["where"].startswith("body") for finding in found["findings"])


def test_an_experiment_above_256_kib_is_413_and_so_is_any_body_above_the_limit(ann: httpx.Client) -> None:
    large = "#" * LARGEST_BYTES
    found = problem(ann.post("/plans", json={"experiment": f"{large}#"}), 413, "invalid-experiment")
    assert "256 KiB" in found["detail"]
    problem(ann.post("/plans", json={"experiment": large}), 422, "invalid-experiment")
    problem(post(ann, b"x" * (BODY_MAX_BYTES + 1), "/plans"), 413, "too-large")

    def chunks() -> Iterator[bytes]:
        for _ in range(BODY_MAX_BYTES // 65_536 + 2):
            yield b" " * 65_536

    problem(ann.post("/plans", content=chunks(), headers={"Content-Type": "application/json"}), 413, "too-large")


def test_a_body_is_not_read_for_who_may_not_send_it(api: ApiServer) -> None:
    with api.client(address="127.0.0.12") as nobody:
        problem(post(nobody, b"[" * 100_000), 401, "no-token")
    with api.client(api.token(api.user("eve", Grant(Role.VIEWER)))) as eve:
        problem(post(eve, b"[" * 100_000), 403, "not-permitted")


def test_while_the_largest_experiment_is_parsed_others_are_answered(api: ApiServer, ann: httpx.Client) -> None:
    text = "version: 1\nname: wide\nfaults:\n" + "".join(f"  - {{inject: x{n}}}\n" for n in range(3_300))
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(ann.post("/plans", json={"experiment": text})))
    slowest_s = 0.0
    with api.client() as other:
        other.get("/health")
        started_s = time.perf_counter()
        thread.start()
        while thread.is_alive():
            begun_s = time.perf_counter()
            assert other.get("/health").status_code == 200
            slowest_s = max(slowest_s, time.perf_counter() - begun_s)
        took_s = time.perf_counter() - started_s
    thread.join()
    problem(answers[0], 422, "invalid-experiment")
    assert slowest_s < max(1.5, took_s / 2), (slowest_s, took_s)


# ---- queries and headers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["-1", "0", "201", "1000000000", "9" * 400, "x", "1.5", "NaN", ""])
def test_page_sizes_out_of_bounds_are_400(ann: httpx.Client, limit: str) -> None:
    problem(ann.get("/runs", params={"limit": limit}), 400, "invalid")


def test_thousands_of_parameters_are_400(ann: httpx.Client) -> None:
    query = "&".join(f"a{n}=1" for n in range(51))
    problem(ann.get(f"/runs?{query}"), 400, "too-many-parameters")
    assert ann.get(f"/runs?{'&' * 10_000}").status_code == 400


def test_headers_above_16_kib_are_refused_and_a_range_changes_nothing(api: ApiServer, ann: httpx.Client) -> None:
    problem(ann.get("/whoami", headers={"X-Large": "x" * 20_000}), 431, "large-headers")
    with raw(api) as stream:  # a head that never ends is not waited for either
        stream.sendall(b"GET /api/v1/health HTTP/1.1\r\n" + b"".join(b"X-%d: x\r\n" % n for n in range(3_000)))
        assert stream.recv(100).startswith(b"HTTP/1.1 400")
    ranges = "bytes=" + ",".join(f"{n}-{n}" for n in range(1_000))
    answer = ann.get("/whoami", headers={"Range": ranges})
    assert (answer.status_code, answer.headers.get("content-range")) == (200, None)


@pytest.mark.parametrize("number", ["0", "-1", "2147483648", "9" * 30, "x", "1e3", "%00", "..%2f..", "1;2"])
def test_numbers_that_no_run_has_are_404(ann: httpx.Client, number: str) -> None:
    assert ann.get(f"/runs/{number}").status_code == 404


# ---- slow clients ----------------------------------------------------------------------------------------------------


def until_closed_s(stream: socket.socket) -> float:
    begun_s = time.monotonic()
    try:
        while stream.recv(65_536):
            pass
    except OSError:
        pass
    return time.monotonic() - begun_s


def test_a_client_that_never_finishes_its_headers_is_dropped(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADERS_WITHIN_S", 0.5)
    with raw(api) as silent, raw(api) as dripping, raw(api) as second:
        dripping.sendall(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n")
        second.sendall(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert second.recv(100).startswith(b"HTTP/1.1 200")
        second.sendall(b"GET /api/v1/health")
        for stream in (silent, dripping, second):
            assert until_closed_s(stream) < 5


def test_a_body_that_drips_is_408(api: ApiServer, ann: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brownout_controller.api.bounded.BODY_WITHIN_S", 0.5)

    def drip() -> Iterator[bytes]:
        for _ in range(40):
            yield b" "
            time.sleep(0.1)

    try:
        problem(ann.post("/users", content=drip(), headers={"Content-Type": "application/json"}), 408, "slow-body")
    except httpx.WriteError as error:  # the server has answered and closed while we still sent
        pytest.fail(f"the answer was lost: {error}")


def test_silent_sockets_are_dropped_before_the_handshake_while_others_are_served(api: ApiServer) -> None:
    host, port = api.url.removeprefix("https://").removesuffix("/api/v1").split(":")
    silent = [socket.create_connection((host, int(port)), timeout=30) for _ in range(100)]
    try:
        with api.client() as client:
            assert client.get("/health").status_code == 200
        begun_s = time.monotonic()
        for stream in silent:
            until_closed_s(stream)
        assert time.monotonic() - begun_s < server.HANDSHAKE_WITHIN_S + 5
    finally:
        for stream in silent:
            stream.close()


def test_one_address_without_a_token_cannot_take_every_connection_and_keep_a_halt_out(api: ApiServer) -> None:
    halting = api.token("ann")
    host, port = api.url.removeprefix("https://").removesuffix("/api/v1").split(":")
    with contextlib.ExitStack() as held:
        for _ in range(server.CONNECTIONS_MAX):
            raw = socket.create_connection((host, int(port)), timeout=30, source_address=("127.0.0.66", 0))
            with contextlib.suppress(OSError):  # hung up on
                held.enter_context(api.tls.wrap_socket(raw, server_hostname=host))
        with api.client(halting) as client:
            assert client.post("/lever/pull").status_code == 200
            assert client.post("/lever/release").status_code == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
def test_an_older_tls_is_refused(api: ApiServer, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = version
    host, port = api.url.removeprefix("https://").removesuffix("/api/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)


def test_plain_http_on_the_tls_port_is_closed(api: ApiServer) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(api.url.replace("https:", "http:") + "/health", timeout=10)


# ---- once and only on what was read ----------------------------------------------------------------------------------


def test_a_change_needs_the_version_that_was_read(api: ApiServer, ann: httpx.Client) -> None:
    api.user("bob", Grant(Role.VIEWER))
    body = {"grants": [{"role": "operator"}]}
    tag = ann.get("/users/bob").headers["etag"]
    problem(ann.put("/users/bob", json=body), 428, "if-match-missing")
    changed = ann.put("/users/bob", json=body, headers={"If-Match": tag})
    assert changed.status_code == 200
    problem(ann.put("/users/bob", json=body, headers={"If-Match": tag}), 412, "stale")
    for other in ('"99"', "*", "x", '""'):
        problem(ann.put("/users/bob", json=body, headers={"If-Match": other}), 412, "stale")
    tag = ann.get("/limits/staging").headers["etag"]
    limit = {"hosts": 2, "percent": 50.0}
    assert ann.put("/limits/staging", json=limit, headers={"If-Match": tag}).status_code == 200
    problem(ann.put("/limits/staging", json=limit, headers={"If-Match": tag}), 412, "stale")
    assert ann.get("/limits/staging").json() == {"environment": "staging", **limit}
