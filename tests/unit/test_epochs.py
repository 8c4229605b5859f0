"""How far the epoch that a host obeys may rise: never down, and at a step no further than others can follow."""

import pytest
from brownout_agent.epochs import EPOCH_MAX, STEP_MAX, EpochRefused, check_step


@pytest.mark.parametrize(("obeyed", "to"), [(0, 0), (0, 1), (5, 5), (5, 5 + STEP_MAX), (EPOCH_MAX, EPOCH_MAX)])
def test_it_stays_or_rises_by_a_step(obeyed: int, to: int) -> None:
    check_step(obeyed, to)


@pytest.mark.parametrize(
    ("obeyed", "to", "why"),
    [
        (5, 4, "epoch 4 is older than 5"),
        (5, 6 + STEP_MAX, "more than 1000000 beyond 5"),
        (0, 2**64 - 1, "epoch 18446744073709551615 is more than"),
        (EPOCH_MAX, EPOCH_MAX + 1, "more than"),
    ],
)
def test_an_older_one_and_one_that_nobody_comes_to_are_refused(obeyed: int, to: int, why: str) -> None:
    with pytest.raises(EpochRefused, match=why):
        check_step(obeyed, to)


def test_its_limits_are_what_hosts_and_databases_were_promised() -> None:
    assert (STEP_MAX, EPOCH_MAX) == (1_000_000, 4_611_686_018_427_387_904)
