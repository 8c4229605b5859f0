"""A fault always ends: SIGKILL of agent, injector, both, controller while all seven faults are on.

One fault at a time, many times over: `python -m tests.bench.deaths`.
"""

import asyncio
import os

import pytest

from tests.support.deaths import DEATHS, FAULTS, Death, die_together

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
]


@pytest.fixture(scope="module")
def outcomes() -> list[Death]:
    """All deaths side by side, each on a host of its own: they mostly wait."""

    async def all_deaths() -> list[Death]:
        of_each = await asyncio.gather(*(die_together(FAULTS, death) for death in DEATHS))
        return [outcome for outcomes in of_each for outcome in outcomes]

    return asyncio.run(all_deaths())


@pytest.mark.parametrize("death", [death.name for death in DEATHS])
@pytest.mark.parametrize("fault", [fault.kind for fault in FAULTS])
def test_every_fault_is_gone_in_time_and_leaves_nothing_when_killed(
    outcomes: list[Death], fault: str, death: str
) -> None:
    (outcome,) = [one for one in outcomes if (one.fault, one.death) == (fault, death)]
    assert outcome.gone_after_s is not None
    assert outcome.gone_after_s <= outcome.bound_s
    assert outcome.leftovers == ()
