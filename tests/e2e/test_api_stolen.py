"""What a stolen token is good for, and what not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role
from brownout_controller.audit.entry import Outcome

from tests.support.api_server import ApiServer


@pytest.fixture(name="api")
def _api(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path) as serving:
        yield serving


@pytest.mark.parametrize("narrow", [{"roles": frozenset({Role.VIEWER})}, {"environments": frozenset({"staging"})}])
def test_a_limited_token_takes_no_other_from_its_owner(api: ApiServer, narrow: dict[str, Any]) -> None:
    api.user("oda", Grant(Role.OPERATOR), Grant(Role.VIEWER))
    behind_glass, stolen = api.token("oda", roles=frozenset({Role.HALTER})), api.token("oda", **narrow)
    path = f"/tokens/{api.row(behind_glass).token_id}"
    with api.client(stolen) as client:
        refused = client.delete(path)
        assert (refused.status_code, refused.json()["code"]) == (403, "not-permitted")
        assert client.delete(f"/tokens/{api.row(stolen).token_id}").status_code == 200
    with api.client(api.token("oda")) as client:
        assert client.delete(path).status_code == 200


def test_an_admins_limited_token_makes_none_that_is_wider_or_lives_longer(api: ApiServer) -> None:
    api.user("ada", Grant(Role.ADMIN), Grant(Role.OPERATOR))
    stolen = api.token("ada", roles=frozenset({Role.ADMIN}))
    ends_ns = api.row(stolen).expires_ns
    with api.client(stolen) as client:
        made = client.post("/tokens", json={"days": 90}).json()
        assert made["roles"] == ["admin"]
        assert made["expires_ns"] <= ends_ns
        refused = client.post("/tokens", json={"days": 1, "roles": ["operator"]})
        assert (refused.status_code, refused.json()["code"]) == (422, "no-such-role")


def test_what_a_stolen_token_has_made_ends_with_it_however_far_down_and_is_named(api: ApiServer) -> None:
    api.user("ada", Grant(Role.ADMIN))
    api.user("bob", Grant(Role.ADMIN))
    stolen, bobs_own = api.token("ada"), api.token("bob")
    with api.client(stolen) as thief:
        child = thief.post("/tokens", json={"user": "bob", "days": 90}).json()
    with api.client(child["token"]) as thief:
        grandchild = thief.post("/tokens", json={"user": "ada", "purpose": "ci"}).json()
    assert (child["created_by"], child["made_by"]) == ("ada", api.row(stolen).token_id)
    assert (grandchild["created_by"], grandchild["made_by"]) == ("bob", child["id"])
    with api.client(api.token("ada")) as ada:
        answer = ada.delete(f"/tokens/{api.row(stolen).token_id}")
        assert [one["id"] for one in answer.json()["revoked"]] == [
            api.row(stolen).token_id,
            child["id"],
            grandchild["id"],
        ]
    for text in (stolen, child["token"], grandchild["token"]):
        with api.client(text) as thief:
            assert thief.get("/whoami").status_code == 401
    with api.client(bobs_own) as bob:
        assert bob.get("/whoami").status_code == 200
    last = next(one for one in reversed(api.audit.entries) if one.subject == f"token {api.row(stolen).token_id}")
    assert (last.outcome, last.reason) == (
        Outcome.ALLOWED,
        f"with it 2 made by means of it: {child['id']}, {grandchild['id']}",
    )


def test_a_token_that_is_replaced_can_leave_what_it_made_and_a_second_look_can_still_take_it(api: ApiServer) -> None:
    api.user("ada", Grant(Role.ADMIN))
    old = api.token("ada")
    with api.client(old) as client:
        made = client.post("/tokens", json={"purpose": "ci"}).json()
    path = f"/tokens/{api.row(old).token_id}"
    with api.client(api.token("ada")) as client, api.client(made["token"]) as program:
        revoked = client.delete(path, params={"keep_made": True}).json()["revoked"]
        assert [one["id"] for one in revoked] == [api.row(old).token_id]
        assert program.get("/whoami").status_code == 200
        assert [one["id"] for one in client.delete(path).json()["revoked"]] == [made["id"]]
        assert program.get("/whoami").status_code == 401
        assert client.delete(path).json()["code"] == "revoked"
