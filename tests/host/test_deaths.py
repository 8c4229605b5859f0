"""A fault always ends: SIGKILL of agent, injector, both, controller in the middle of each of the seven faults."""

import asyncio
import os

import pytest

from tests.support.deaths import DEATHS, FAULTS, DeathCase, die

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
]


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: death.name)
def test_every_fault_is_gone_in_time_and_leaves_nothing_when_killed(death: DeathCase) -> None:
    async def all_faults() -> list[object]:
        return await asyncio.gather(*(die(fault, death) for fault in FAULTS))

    outcomes = asyncio.run(all_faults())
    assert [outcome for outcome in outcomes if not outcome.good] == []
