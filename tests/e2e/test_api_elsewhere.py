"""A run that another controller carries, followed here to its end: one exit code, the one that is kept."""

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import typer
from brownout_controller.access.decisions import Grant, Place
from brownout_controller.access.permissions import Role
from brownout_controller.cli.remote import Remote, Server
from brownout_controller.cli.remote_runs import _conclude, _follow
from brownout_controller.record import Event, EventKind
from brownout_controller.store.owners import Owners
from brownout_controller.store.store import Carrier

from tests.support.api_server import ApiServer


@pytest.fixture(name="api")
def _api() -> Iterator[ApiServer]:
    with tempfile.TemporaryDirectory(prefix="bo-") as folder, ApiServer(Path(folder)) as serving:
        yield serving


@pytest.mark.parametrize("code", [1, 13])
def test_a_run_that_goes_on_elsewhere_is_followed_until_it_is_closed_there(
    api: ApiServer, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    store, token = api.services.store, api.token(api.user("vic", Grant(Role.VIEWER)))
    with Owners(store.database).life() as other, ThreadPoolExecutor(1) as pool, api.client(token) as client:
        carrier = Carrier(other, f"key-{code}", ("pause",), {"app-1": "agent-1"})
        number = store.begin_run("busy", "mary", "d" * 64, time.time_ns(), carrier)
        api.services.run_access.note_place(number, Place("staging"))
        client.base_url = client.base_url.copy_with(path="/")
        server = Server(str(client.base_url))
        following = pool.submit(_follow, server, Remote(server, client), number)
        store.append_events(number, 0, [Event(1, EventKind.RUN_STARTED, "run", "", "begun there")], other)
        with pytest.raises(TimeoutError):
            following.result(2.5)  # it has looked more than once, and the run goes on
        store.finish_run(number, None, "errored", code, "its controller died in mid-run", other)
        following.result(20)
        with pytest.raises((SystemExit, typer.Exit)) as ended:
            _conclude(Remote(server, client), number, Path(), ())
    assert getattr(ended.value, "exit_code", getattr(ended.value, "code", None)) == code
    assert "its controller died in mid-run" in capsys.readouterr().err
