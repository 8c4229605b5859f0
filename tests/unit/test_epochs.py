"""How far the epoch that a host obeys may rise: never down, and within a day no further than others can follow."""

import pytest
from brownout_agent.epochs import A_DAY_MAX, DAY_NS, EPOCH_MAX, Epoch, EpochRefused

NOW_NS = 1_800_000_000 * 10**9


def test_a_new_host_has_obeyed_nobody_and_its_limits_are_what_is_promised() -> None:
    assert Epoch() == Epoch(0, 0, 0)
    assert (A_DAY_MAX, EPOCH_MAX, DAY_NS) == (1_000_000, 4_611_686_018_427_387_904, 86_400_000_000_000)


def test_it_rises_or_stays_and_an_older_one_is_refused_by_both_numbers() -> None:
    epoch = Epoch().raised(5, NOW_NS)
    assert epoch == Epoch(5, 0, NOW_NS)
    assert epoch.raised(5, NOW_NS + 1) is epoch
    with pytest.raises(EpochRefused, match="epoch 4 is older than 5"):
        epoch.raised(4, NOW_NS + 1)


def test_within_a_day_it_rises_by_so_much_and_not_by_one_more_in_however_many_steps() -> None:
    epoch = Epoch().raised(10, NOW_NS).raised(A_DAY_MAX - 1, NOW_NS + DAY_NS - 2)
    assert epoch.raised(A_DAY_MAX, NOW_NS + DAY_NS - 1).number == A_DAY_MAX
    for too_far in (A_DAY_MAX + 1, 2**64 - 1):
        with pytest.raises(EpochRefused, match="more than 1000000 above 0"):
            epoch.raised(too_far, NOW_NS + DAY_NS - 1)


@pytest.mark.parametrize("later_ns", [DAY_NS, 100 * DAY_NS, -1])
def test_the_next_day_begins_where_this_one_ended_also_by_a_clock_that_was_set_back(later_ns: int) -> None:
    epoch = Epoch().raised(A_DAY_MAX, NOW_NS).raised(2 * A_DAY_MAX, NOW_NS + later_ns)
    assert epoch == Epoch(2 * A_DAY_MAX, A_DAY_MAX, NOW_NS + later_ns)
    with pytest.raises(EpochRefused):
        epoch.raised(2 * A_DAY_MAX + 1, NOW_NS + later_ns)


def test_at_the_very_end_it_rises_no_more() -> None:
    with pytest.raises(EpochRefused):
        Epoch(EPOCH_MAX).raised(EPOCH_MAX + 1, NOW_NS)
