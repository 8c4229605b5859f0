"""Runs by the API: once per key, followed and resumed, dropped when nobody reads, halted without a database; and what
may never happen: a route that declares nothing, a token that begets a better one, an answer that is a server's error.
"""

import contextlib
import json
import os
import sqlite3
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import requests
import schemathesis
from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Permission, Role
from brownout_controller.api import events, routes, server
from brownout_controller.api.app import UndeclaredRoute, create_app
from brownout_controller.api.bounded import HEADERS_MAX_BYTES
from brownout_controller.api.events import EventStream
from brownout_controller.api.gate import Caller, needs
from brownout_controller.api.routes.common import router
from brownout_controller.audit.entry import AuditEntry, Outcome
from brownout_controller.cli.remote_runs import parse_events
from brownout_controller.record import Event, EventKind
from brownout_controller.running.manager import ActiveRun
from brownout_controller.store.database import StoreError
from fastapi import APIRouter
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from tests.support.api_server import ApiServer, raw
from tests.support.polling import wait_until

AUTHOR = Grant(Role.AUTHOR)
EXAMPLES = int(os.environ.get("BROWNOUT_API_EXAMPLES", "10"))
"""Of each route, when its description is fuzzed."""
EXPERIMENT = """
version: 1
name: watching
probes: {here: {tcp: "127.0.0.1:%d", every: 200ms}}
steady_state: {before: %s, after: 100ms}
targets: {nobody: {selector: "role=none", if_none: skip}}
faults:
  - {inject: cpu.load, target: nobody, with: {percent: 1}, for: 1s}
"""
"""A real run that needs no host: it only watches."""
pytestmark = pytest.mark.injects


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with tempfile.TemporaryDirectory(prefix="bo-") as folder, ApiServer(Path(folder)) as serving:
        serving.user("ana", AUTHOR, Grant(Role.OPERATOR))
        serving.user("everybody", *(Grant(role) for role in Role if role is not Role.HALTER))
        yield serving


@pytest.fixture(scope="module")
def ana(api: ApiServer) -> Iterator[httpx.Client]:
    with api.client(api.token("ana")) as client:
        yield client


def experiment(api: ApiServer, before: str = "200ms") -> dict[str, Any]:
    return {"experiment": EXPERIMENT % (int(api.url.split(":")[2].split("/")[0]), before), "seed": 1}


def begun(api: ApiServer, client: httpx.Client, before: str = "60s") -> ActiveRun:
    answer = client.post("/runs", json=experiment(api, before))
    assert answer.status_code == 201, answer.text
    return api.services.runs.active[answer.json()["run"]]


def over(api: ApiServer, number: int) -> None:
    wait_until(lambda: number not in api.services.runs.active, f"run {number} is over", 60)


# ---- once --------------------------------------------------------------------------------------------------------


def test_the_same_key_starts_one_run_however_often_it_is_sent_and_another_body_is_refused(
    api: ApiServer, ana: httpx.Client
) -> None:
    body, key = experiment(api), {"Idempotency-Key": "once"}
    first = ana.post("/runs", json=body, headers=key)
    again = [ana.post("/runs", json=body, headers=key) for _ in range(3)]
    assert [answer.status_code for answer in (first, *again)] == [201] * 4
    assert {answer.json()["run"] for answer in again} == {first.json()["run"]}
    other = ana.post("/runs", json={**body, "seed": 2}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "key-reused")
    with api.client(api.token("everybody")) as somebody:
        theirs = somebody.post("/runs", json=body, headers=key)
    assert theirs.json()["run"] != first.json()["run"], "a key is its user's own"
    for number in (first.json()["run"], theirs.json()["run"]):
        over(api, number)


def test_many_that_send_one_key_at_once_start_one_run(api: ApiServer) -> None:
    answers: list[httpx.Response] = []

    def send() -> None:
        with api.client(api.token("ana")) as client:
            answers.append(client.post("/runs", json=experiment(api), headers={"Idempotency-Key": "race"}))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started = {answer.json()["run"] for answer in answers if answer.status_code == 201}
    assert len(started) == 1
    assert {answer.status_code for answer in answers} <= {201, 409}
    over(api, started.pop())


def test_a_key_whose_request_was_refused_may_be_sent_again(api: ApiServer, ana: httpx.Client) -> None:
    key = {"Idempotency-Key": "again"}
    assert ana.post("/runs", json={"plan": "0" * 64}, headers=key).status_code == 404
    answer = ana.post("/runs", json=experiment(api), headers=key)
    assert answer.status_code == 201
    over(api, answer.json()["run"])


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "\x80"])
def test_a_key_that_is_none_is_400(api: ApiServer, ana: httpx.Client, key: str) -> None:
    answer = ana.post("/runs", json=experiment(api), headers={"Idempotency-Key": key.encode("latin-1")})
    assert answer.status_code == 400


# ---- followed ----------------------------------------------------------------------------------------------------


def test_events_are_followed_to_the_end_and_taken_up_where_they_broke_off(api: ApiServer, ana: httpx.Client) -> None:
    run = begun(api, ana, "300ms")
    with ana.stream("GET", f"/runs/{run.number}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        live = list(parse_events(answer.iter_lines()))
    over(api, run.number)
    kept = list(parse_events(iter(ana.get(f"/runs/{run.number}/events").text.splitlines())))
    assert [position for position, kind, _ in live if kind == "event"] == list(range(len(live) - 1))
    assert live[-1][1] == "end"
    assert live[-1] == kept[-1]
    line = ana.get(f"/runs/{run.number}").json()
    assert live[-1][2] == {name: line[name] for name in ("verdict", "exit_code", "headline")}
    assert line["verdict"] == line["document"]["verdict"]
    without = [{**one, "detail": {}} for _, _, one in live[:-1]]
    assert without == [one for _, _, one in kept[:-1]]
    assert (without[0]["kind"], without[-1]["kind"]) == ("run_started", "run_ended")
    rest = ana.get(f"/runs/{run.number}/events", headers={"Last-Event-ID": "1"}).text
    assert [position for position, _, _ in parse_events(iter(rest.splitlines()))][:-1] == list(range(2, len(live) - 1))
    assert ana.get(f"/runs/{run.number}/events", headers={"Last-Event-ID": "x"}).status_code == 400


def test_who_reads_no_events_is_dropped_and_costs_the_run_nothing(
    api: ApiServer, ana: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STALLED_S", 1.0)
    run = begun(api, ana)
    deaf, token = _deaf(api), api.token("ana")
    try:
        request = f"GET /api/v1/runs/{run.number}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        deaf.sendall(request.encode())
        wait_until(lambda: bool(_listeners(run)), "it follows", 10)
        told = _flood(api, run, 16 * events.BACKLOG_MAX_BYTES)
        wait_until(lambda: not _listeners(run), "it is dropped", 20)
        got = 0
        with pytest.raises((OSError, StopIteration)):
            while chunk := deaf.recv(1 << 20):
                got += len(chunk)
            raise StopIteration
        assert got < told - events.BACKLOG_MAX_BYTES
        with ana.stream(
            "GET", f"/runs/{run.number}/events", headers={"Last-Event-ID": str(len(run.events) - 3)}
        ) as one:
            assert next(parse_events(one.iter_lines()))[0] == len(run.events) - 2, "others are served"
    finally:
        deaf.close()
        api.run(_halt(run))
    over(api, run.number)


def _listeners(run: ActiveRun) -> list[Callable[[], None]]:
    return [one for one in run._listeners if isinstance(getattr(one, "__self__", None), EventStream)]


def _deaf(api: ApiServer) -> ssl.SSLSocket:
    return raw(api, receive_buffer=4096)


def _flood(api: ApiServer, run: ActiveRun, size: int) -> int:
    """Tell a run so many bytes of events, on its loop."""
    text = "x" * 8_000
    told = 0

    async def tell() -> None:
        for _ in range(50):
            run.take(Event(1, EventKind.WATCH_CHANGED, "flood", message=text))

    while told < size:
        api.run(tell())
        told += 50 * len(text)
    return told


async def _halt(run: ActiveRun) -> None:
    run.halt("the test ends")


# ---- stopping waits for nothing ----------------------------------------------------------------------------------


def test_without_a_database_who_was_known_can_still_halt_and_nobody_can_do_anything_else() -> None:
    with tempfile.TemporaryDirectory(prefix="bo-") as folder, ApiServer(Path(folder)) as api:
        token = api.token(api.user("ana", AUTHOR))
        with api.client(token) as ana:
            run = begun(api, ana)
            with sqlite3.connect(Path(folder) / "data/brownout.db") as database:
                database.execute("ALTER TABLE api_token RENAME TO away")
            lost = ana.get("/runs")
            assert (lost.status_code, lost.json()["code"]) == (503, "store")
            assert ana.post("/runs", json=experiment(api)).status_code == 503
            with api.client(token[:-1] + ("0" if token[-1] != "0" else "1")) as wrong:
                assert wrong.post(f"/runs/{run.number}/halt").status_code == 503
            halted = ana.post(f"/runs/{run.number}/halt", json={"reason": "the database is gone", "wait_s": 30})
            assert (halted.status_code, halted.json()["verdict"]) == (200, "halted")
            assert "the database is gone" in run.engine.machine.stop_reason
            assert ana.post("/lever/pull").status_code == 200
            with sqlite3.connect(Path(folder) / "data/brownout.db") as database:
                database.execute("ALTER TABLE away RENAME TO api_token")
            assert ana.get("/lever").json()["pulled"]["by"] == "user:ana"


def test_what_cannot_be_audited_does_not_happen_except_stopping(
    api: ApiServer, ana: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(api, ana)

    def full(_: AuditEntry) -> None:
        raise StoreError("no space for the audit log")

    with monkeypatch.context() as patched:
        patched.setattr(api.audit, "record", full)
        before = set(api.services.runs.active)
        started = ana.post("/runs", json=experiment(api))
        assert (started.status_code, started.json()["title"]) == (503, "no space for the audit log")
        assert set(api.services.runs.active) == before
        assert ana.get("/runs").status_code == 503
        assert ana.post(f"/runs/{run.number}/halt").status_code == 200
    over(api, run.number)


def test_a_halted_run_says_who_halted_it_and_the_auditor_knows(api: ApiServer, ana: httpx.Client) -> None:
    run = begun(api, ana)
    answer = ana.post(f"/runs/{run.number}/halt", json={"reason": "enough"})
    assert answer.json() == {"run": run.number, "halted": True, "verdict": None, "exit_code": None, "headline": None}
    over(api, run.number)
    document = ana.get(f"/runs/{run.number}").json()
    assert (document["verdict"], document["document"]["record"]["stop_reason"]) == ("halted", "halted: by ana: enough")
    entry = next(one for one in reversed(api.audit.entries) if one.action == "run.halt")
    assert (entry.actor, entry.subject, entry.outcome) == ("user:ana", f"run {run.number}", Outcome.ALLOWED)
    assert entry.detail["route"] == f"POST /api/v1/runs/{run.number}/halt"
    assert entry.origin == "127.0.0.1"


# ---- tokens ------------------------------------------------------------------------------------------------------


def test_a_token_begets_none_that_can_do_more_or_lives_longer(api: ApiServer) -> None:
    narrow = {"roles": frozenset({Role.VIEWER, Role.OPERATOR}), "environments": frozenset({"staging"})}
    with api.client(api.token("everybody", ttl_s=3600, **narrow)) as client:
        for wish in ({}, {"days": 90}, {"environments": ["staging", "prod"]}, {"roles": ["viewer", "author", "admin"]}):
            row = api.row(client.post("/tokens", json=wish).json()["token"])
            assert row.roles is not None
            assert row.roles <= narrow["roles"]
            assert row.environments == {"staging"}
            assert row.expires_ns <= time.time_ns() + 3600 * 10**9
        for wish in ({"roles": ["author"]}, {"environments": ["prod"]}):
            assert client.post("/tokens", json=wish).status_code == 422
        halter = client.post("/tokens", json={"roles": ["halter"]}).json()
        assert halter["roles"] == ["halter"]
    with api.client(halter["token"]) as client:
        assert client.get("/whoami").json()["permissions"] == ["lever.pull", "lever.read", "run.halt", "self.read"]
        assert client.post("/tokens", json={}).status_code == 403


@pytest.mark.parametrize("days", [0, 91, 10**9, -1])
def test_no_token_lives_longer_than_90_days(ana: httpx.Client, days: int) -> None:
    assert ana.post("/tokens", json={"days": days}).status_code == 422


def test_a_token_is_kept_as_a_digest_and_its_last_use_is_known(api: ApiServer, ana: httpx.Client) -> None:
    made = ana.post("/tokens", json={"purpose": "ci"}).json()
    assert made["used_ns"] is None
    with api.client(made["token"]) as client:
        assert client.get("/whoami").json()["token"] == made["id"]
    row = next(one for one in ana.get("/tokens").json()["items"] if one["id"] == made["id"])
    assert abs(row["used_ns"] - time.time_ns()) < 60 * 10**9
    assert made["token"] not in json.dumps(ana.get("/tokens").json())


# ---- approvals that do not count any more --------------------------------------------------------------------------


def test_an_approval_counts_no_more_once_its_approver_may_not_approve(api: ApiServer) -> None:
    api.user("yan", Grant(Role.APPROVER))
    api.user("oli", Grant(Role.OPERATOR))
    with api.client(api.token("ana")) as ana, api.client(api.token("yan")) as yan, api.client(api.token("oli")) as oli:
        plan = ana.post("/plans", json=experiment(api)).json()["digest"]
        denied = oli.post("/runs", json={"plan": plan})
        assert (denied.status_code, denied.json()["code"]) == (403, "approval-needed")
        assert yan.post("/approvals", json={"plan": plan}).status_code == 201
        assert oli.get(f"/plans/{plan}").json()["approved"] is True
        started = oli.post("/runs", json={"plan": plan})
        assert started.status_code == 201, started.text
        api.services.access.change_user("yan", [Grant(Role.VIEWER)], False, 1)
        assert oli.get(f"/plans/{plan}").json()["approved"] is False
        assert oli.post("/runs", json={"plan": plan}).status_code == 403
    over(api, started.json()["run"])


# ---- what may never happen -----------------------------------------------------------------------------------------


def _undeclared() -> APIRouter:
    made = router("bad")

    @made.get("/undeclared")
    def undeclared() -> dict[str, str]:
        return {}

    return made


def _unguarded() -> APIRouter:
    made = APIRouter()

    @made.get("/unguarded")
    def unguarded(caller: Annotated[Caller, needs(Permission.SELF_READ)]) -> dict[str, str]:
        return {}

    return made


@pytest.mark.parametrize("made", [_undeclared, _unguarded])
def test_an_app_with_a_route_that_declares_nothing_is_not_built(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch, made: Callable[[], APIRouter]
) -> None:
    create_app(api.services)
    monkeypatch.setattr(routes, "ALL", (*routes.ALL, made()))
    with pytest.raises(UndeclaredRoute, match=made.__name__.strip("_")):
        create_app(api.services)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_that_the_description_allows_or_forbids_is_answered_with_a_server_error(
    api: ApiServer, tmp_path: Path, mode: GenerationMode
) -> None:
    authorities = tmp_path / "authorities.pem"
    authorities.write_bytes(api.services.controller.authority.bundle_pem)
    schema = schemathesis.openapi.from_dict(create_app(api.services).openapi())
    headers = {"Authorization": f"Bearer {api.token('everybody')}"}
    statuses: Counter[int] = Counter()
    with requests.Session() as session:
        for result in schema.get_all_operations():
            operation = result.ok()
            if operation.path == "/api/v1/lever/pull":  # would halt whatever else this file has running
                continue

            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                try:
                    answer = case.call(
                        base_url=api.url.removesuffix("/api/v1"),
                        session=session,
                        headers=headers,
                        verify=str(authorities),
                    )
                except requests.ConnectionError as error:
                    if error.request is None or len(error.request.url or "") <= HEADERS_MAX_BYTES:
                        raise
                    return  # hung up on for its size, while it was still sending
                statuses[answer.status_code] += 1
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)

            with contextlib.suppress(Unsatisfiable):  # a route that takes nothing: nothing of it can be wrong
                ask()
    assert statuses.total() > 100, statuses
    assert {200, 422, 404} <= statuses.keys(), statuses
