"""Every route x everybody x every object, held to the written table; and what lists show to whom."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from brownout_controller.access.permissions import PERMISSIONS, Over, Permission, Role

from tests.support.api_table import OTHER, OWN, TABLE, World, found_in, world_in

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: policies of two environments"),
]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="bo-") as folder, world_in(Path(folder)) as made:
        yield made


def test_every_route_answers_everybody_as_the_written_table_says(world: World) -> None:
    found = found_in(world)
    assert found == TABLE.read_text(), "if this is what was meant: python -m tests.support.api_table"


def test_the_written_table_agrees_with_the_table_of_roles_and_permissions() -> None:
    by_word = {permission.word: permission for permission in Permission}
    checked = 0
    word = ""
    for line in TABLE.read_text().splitlines():
        if line and not line.startswith((" ", "#")):
            word = line.split()[-1]
        elif line.startswith("  ") and word != "open":
            statuses, callers = line.split()[:3], line.split()[3:]
            for caller in callers:
                checked += 1
                _agrees(by_word[word], caller, statuses)
    assert checked > 500


def _agrees(permission: Permission, caller: str, statuses: list[str]) -> None:
    if caller in {"none", "expired", "revoked"}:
        assert statuses == ["401"] * 3
    elif caller == "foreign":
        own = {Over.ANYTHING: {"2"}, Over.SYSTEM: {"4"}, Over.PLACE: {"2", "4"}}[permission.over]
        assert {status[0] for status in statuses} <= own | ({"4"} if permission is Permission.TOKEN_OWN else set())
    else:
        role, _, limited = caller.partition("@")
        has = permission in PERMISSIONS[Role(role)] and not (limited and permission.over is Over.SYSTEM)
        assert (statuses == ["403"] * 3) != has, (permission, caller, statuses)


@pytest.mark.parametrize(
    ("caller", "sees"),
    [("viewer@staging", {OWN}), ("author@staging", {OWN}), ("viewer", {OWN, OTHER}), ("foreign", set())],
)
def test_lists_show_what_one_may_see_and_nothing_else(world: World, caller: str, sees: set[str]) -> None:
    with world.api.client(world.tokens[caller]) as client:
        environments = {host["environment"] for host in client.get("/hosts").json()["items"]}
        names = {run["name"] for run in client.get("/runs", params={"limit": 200}).json()["items"]}
        plans = {one["plan"] for one in client.get("/approvals").json()["items"]}
    assert environments == sees
    assert names == {f"busy-{where}" for where in sees}
    assert plans == {world.plans[where] for where in sees}


def test_a_page_of_runs_ends_with_where_the_next_begins(world: World) -> None:
    with world.api.client(world.tokens["viewer@staging"]) as client:
        everything = [run["run"] for run in client.get("/runs", params={"limit": 200}).json()["items"]]
        found, before = [], 2**31 - 1
        while before:
            page = client.get("/runs", params={"limit": 1, "before": before}).json()
            found += [run["run"] for run in page["items"]]
            before = page["next"]
    assert found == everything == sorted(everything, reverse=True)
    assert world.runs[OWN] in found


def test_what_an_author_may_not_see_is_in_no_plan_and_no_error_of_theirs(world: World) -> None:
    text = 'version: 1\nname: x\nfaults: [{inject: cpu.load, target: "role=app", with: {percent: 1}, for: 1s}]\n'
    with world.api.client(world.tokens["author@staging"]) as client:
        made = client.post("/plans", json={"experiment": text})
        assert made.status_code == 201, made.text
        assert [host["name"] for host in made.json()["hosts"]] == ["app-1"]
        missing = client.post("/plans", json={"experiment": text.replace("role=app", "host=app-2")})
    assert missing.status_code == 409
    assert "closest: app-1 has host=app-1" in missing.text
    assert "prod" not in missing.text


def test_a_plan_and_a_run_tell_of_their_own_hosts_and_of_no_others(world: World) -> None:
    with world.api.client(world.api.token("zed")) as zed:
        assert {host["name"] for host in zed.get("/hosts").json()["items"]} == {"app-1", "app-2"}
        plan = zed.get(f"/plans/{world.plans[OWN]}").json()
        record = zed.get(f"/runs/{world.runs[OWN]}").json()["document"]["record"]
    assert [host["name"] for host in plan["hosts"]] == [host["name"] for host in record["hosts"]] == ["app-1"]
    assert {event["host"] for event in record["events"]} <= {"", "app-1"}
    assert "app-2" not in json.dumps([plan, record])
