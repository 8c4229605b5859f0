"""The grid: every wrong identity at every call of the service, a future one included, is refused and written down."""

import asyncio

import pytest

from tests.support.wrong_identities import CALLS, IDENTITIES, Cell, try_all

Grid = dict[tuple[str, str], Cell | BaseException]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return asyncio.run(try_all(tmp_path_factory.mktemp("grid")))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("identity", IDENTITIES)
def test_a_wrong_identity_is_refused_and_audited(grid: Grid, identity: str, call: str) -> None:
    found = grid[identity, call]
    if isinstance(found, BaseException):
        raise found
    assert found.refused
    assert found.written
