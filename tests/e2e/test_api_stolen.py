"""What a stolen token is good for, and what not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role

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
        assert client.delete(f"/tokens/{api.row(stolen).token_id}").status_code == 204
    with api.client(api.token("oda")) as client:
        assert client.delete(path).status_code == 204


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
