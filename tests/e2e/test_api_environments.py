"""Who has one environment learns nothing of the hosts of another one by planning, and plans nothing on them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role

from tests.support.api_server import ApiServer

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: policies of two environments"),
]
STAGING, PROD = frozenset({"staging"}), frozenset({"prod"})
EXPERIMENT = """
version: 1
name: busy
environment: staging
targets: {some: {selector: "%s", pick: "100%%", if_none: %s, resolve: %s}}
probes: {here: {tcp: "127.0.0.1:9", from: "%s"}}
faults:
  - {inject: cpu.load, target: some, with: {percent: 1, of: own, cores: 0}, for: 1s}
"""


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with tempfile.TemporaryDirectory(prefix="bo-") as folder, ExitStack() as stack:
        serving = stack.enter_context(ApiServer(Path(folder)))
        stack.enter_context(serving.add_host("app-1", "staging"))
        stack.enter_context(serving.add_host("app-2", "prod"))
        yield serving


def experiment(selector: str, vantage: str = "controller", if_none: str = "fail", resolve: str = "at_start") -> str:
    return EXPERIMENT % (selector, if_none, resolve, vantage)


def planned(api: ApiServer, text: str, *grants: Grant) -> httpx.Response:
    name = f"u{len(api.services.access.users())}"
    with api.client(api.token(api.user(name, *grants))) as client:
        return client.post("/plans", json={"experiment": text, "seed": 1})


def refusal(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 409, answer.text
    found: dict[str, Any] = answer.json()
    return found


AUTHOR = Grant(Role.AUTHOR, STAGING)
ELSEWHERE = {
    "a target": lambda host: experiment(f"host={host}"),
    "a target at injection": lambda host: experiment(f"host={host}", resolve="at_injection"),
    "a vantage": lambda host: experiment("role=app", f"host={host}"),
}


@pytest.mark.parametrize("text", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_host_of_another_environment_is_to_them_as_one_that_is_not_there(api: ApiServer, text: Any) -> None:
    there, absent = planned(api, text("app-2"), AUTHOR), planned(api, text("app-9"), AUTHOR)
    refusal(there)
    assert there.text.replace("app-2", "app-9") == absent.text
    assert "prod" not in there.text


@pytest.mark.parametrize("resolve", ["at_start", "at_injection"])
def test_what_matches_everywhere_means_the_hosts_of_the_experiments_environment(api: ApiServer, resolve: str) -> None:
    for grants in ([AUTHOR], [Grant(Role.AUTHOR)], [AUTHOR, Grant(Role.VIEWER)]):
        answer = planned(api, experiment("role=app", "role=app", resolve=resolve), *grants)
        assert answer.status_code == 201, answer.text
        made = answer.json()
        assert made["faults"][0]["matched"] == ["app-1"]
        assert [host["name"] for host in made["hosts"]] == ["app-1"]


@pytest.mark.parametrize("text", ELSEWHERE.values(), ids=ELSEWHERE)
def test_who_may_see_a_host_of_another_environment_may_not_use_it_and_is_told_why(api: ApiServer, text: Any) -> None:
    found = refusal(planned(api, text("app-2"), AUTHOR, Grant(Role.VIEWER, PROD)))
    assert [one["code"] for one in found["findings"]] == ["wrong-environment"]
    assert "app-2 (`prod`)" in found["findings"][0]["why"]


def test_nobody_runs_probes_on_a_host_of_no_known_environment_who_may_not_plan_everywhere(api: ApiServer) -> None:
    with api.add_host("client-1", ""):
        text = experiment("host=app-1", "host=client-1")
        assert planned(api, text, Grant(Role.AUTHOR)).status_code == 201
        for seen_by in (Grant(Role.VIEWER), Grant(Role.VIEWER, STAGING)):
            answer = planned(api, text, AUTHOR, seen_by)
            assert answer.status_code in {403, 409}, answer.text
        assert planned(api, text, AUTHOR, Grant(Role.VIEWER)).json()["code"] == "not-permitted"
