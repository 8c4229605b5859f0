"""Which limit leaves how many descriptors. No kernel."""

import pytest
from brownout_agent.kernel.descriptors import free_below, limit_for
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("taken", "leave", "limit"),
    [
        ({0, 1, 2}, 0, 3),
        ({0, 1, 2}, 2, 5),
        ({0, 1, 2, 100}, 0, 3),
        ({0, 2, 3}, 1, 4),
        (set(), 0, 0),
    ],
)
def test_a_limit_is_about_numbers_and_the_lowest_that_is_free_comes_next(
    taken: set[int], leave: int, limit: int
) -> None:
    assert limit_for(taken, leave) == limit


@given(st.sets(st.integers(0, 300)), st.integers(0, 50))
def test_exactly_as_many_are_free_below_it(taken: set[int], leave: int) -> None:
    limit = limit_for(taken, leave)
    assert free_below(limit, taken) == leave
    assert free_below(limit + 1, taken) > leave
