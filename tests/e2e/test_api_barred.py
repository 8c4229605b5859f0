"""A stream of events ends within 2 s for who may read it no more, and for nobody else; as agents' streams do."""

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role
from brownout_controller.api import events
from brownout_controller.api.sessions import SESSION_COOKIE
from brownout_controller.audit.entry import Outcome
from brownout_controller.cli.remote_runs import parse_events
from brownout_controller.record import Event, EventKind
from brownout_controller.running.manager import ActiveRun

from tests.support.api_server import ApiServer
from tests.support.polling import wait_until

WITHIN_S = 2.0
VIEWER = Grant(Role.VIEWER)
EXPERIMENT = """
version: 1
name: watching
probes: {here: {tcp: "127.0.0.1:%s", every: 200ms}}
steady_state: {before: 60s, after: 100ms}
targets: {nobody: {selector: "role=none", if_none: skip}}
faults:
  - {inject: cpu.load, target: nobody, with: {percent: 1}, for: 1s}
"""
pytestmark = pytest.mark.injects


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with tempfile.TemporaryDirectory(prefix="bo-") as folder, ApiServer(Path(folder)) as serving:
        yield serving


@pytest.fixture(scope="module")
def run(api: ApiServer) -> Iterator[ActiveRun]:
    with api.client(api.token(api.user("ana", Grant(Role.AUTHOR)))) as ana:
        port = api.url.split(":")[2].split("/")[0]
        answer = ana.post("/runs", json={"experiment": EXPERIMENT % port})
        assert answer.status_code == 201, answer.text
        going = api.services.runs.active[answer.json()["run"]]
        yield going
        ana.post(f"/runs/{going.number}/halt", json={"wait_s": 30})


def revoked(api: ApiServer, name: str, token: str) -> None:
    api.services.access.revoke_token(api.row(token).token_id)


def disabled(api: ApiServer, name: str, token: str) -> None:
    api.services.access.change_user(name, [VIEWER], True, 1)


def elsewhere_only(api: ApiServer, name: str, token: str) -> None:
    api.services.access.change_user(name, [Grant(Role.VIEWER, frozenset({"elsewhere"}))], False, 1)


def without_the_role(api: ApiServer, name: str, token: str) -> None:
    api.services.access.change_user(name, [Grant(Role.ADMIN)], False, 1)


def follow(client: httpx.Client, number: int) -> Iterator[tuple[float, str]]:
    """When each event came, and its kind; the last when the stream ended."""
    with client.stream("GET", f"/runs/{number}/events") as answer:
        assert answer.status_code == 200
        for _, kind, _ in parse_events(answer.iter_lines()):
            yield time.monotonic(), kind
    yield time.monotonic(), "over"


def check_barred(api: ApiServer, run: ActiveRun, name: str, client: httpx.Client, bar: Callable[[], None]) -> None:
    streaming = follow(client, run.number)
    assert next(streaming)[1] == "event"
    bar()
    barred_s = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, streaming).result(20)
    assert [kind for _, kind in rest if kind != "event"] == [events.BARRED, "over"]
    assert rest[-1][0] - barred_s < WITHIN_S
    refusal = next(entry for entry in reversed(api.audit.refusals("run.read")) if entry.actor == f"user:{name}")
    assert (refusal.outcome, refusal.subject) == (Outcome.REFUSED, f"run {run.number}")
    assert client.get(f"/runs/{run.number}/events").status_code in {401, 403, 404}


@pytest.mark.parametrize("bar", [revoked, disabled, elsewhere_only, without_the_role])
def test_who_may_read_no_more_is_told_so_and_reads_no_more(
    api: ApiServer, run: ActiveRun, bar: Callable[[ApiServer, str, str], None]
) -> None:
    name = f"to-be-{bar.__name__.replace('_', '-')}"
    token = api.token(api.user(name, VIEWER))
    with api.client(api.token(api.user("vic", VIEWER))) as vic, api.client(token) as client:
        other = follow(vic, run.number)
        assert next(other)[1] == "event"
        check_barred(api, run, name, client, lambda: bar(api, name, token))
        assert not run.task.done(), "the run is nobody's but its own"
        assert sum(isinstance(getattr(one, "__self__", None), events.EventStream) for one in run._listeners) == 1


def test_a_session_that_ends_takes_its_streams_along(api: ApiServer, run: ActiveRun) -> None:
    api.user("sam", VIEWER)
    api.services.logins.open("a secret of a browser", "sam")
    with api.client(cookies={SESSION_COOKIE: "a secret of a browser"}) as client:
        check_barred(api, run, "sam", client, lambda: api.services.logins.end("a secret of a browser"))


def test_who_does_not_read_is_cut_off_all_the_same(api: ApiServer, run: ActiveRun) -> None:
    token = api.token(api.user("deaf", VIEWER))
    with api.client(token) as client, client.stream("GET", f"/runs/{run.number}/events") as answer:
        assert answer.status_code == 200

        def streams() -> int:
            return sum(isinstance(getattr(one, "__self__", None), events.EventStream) for one in run._listeners)

        wait_until(lambda: streams() > 0, "it follows", 10)
        before = streams()
        revoked(api, "deaf", token)
        barred_s = time.monotonic()
        wait_until(lambda: streams() < before, "it is cut off", 20)
        assert time.monotonic() - barred_s < WITHIN_S


def test_a_database_that_is_away_bars_nobody(api: ApiServer, run: ActiveRun, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can be turned out without it, and an incident is when people watch."""
    with api.client(api.token(api.user("eva", VIEWER))) as client:
        streaming = follow(client, run.number)
        next(streaming)
        with sqlite3.connect(api.folder / "data/brownout.db") as database:
            database.execute("ALTER TABLE api_token RENAME TO away")
            database.commit()
            try:
                wait_until(lambda: caplog.text.count("whether eva may still see") >= 2, "it was looked twice", 20)
            finally:
                database.execute("ALTER TABLE away RENAME TO api_token")

        async def tell() -> None:
            run.take(Event(1, EventKind.WATCH_CHANGED, "here", message="it goes on"))

        told = len(run.events)
        api.run(tell())
        with ThreadPoolExecutor(1) as pool:
            kinds = pool.submit(lambda: [next(streaming)[1] for _ in range(told)]).result(20)
        assert set(kinds) == {"event"}
