"""disk.inodes without a disk: parameters, how many are taken, who holds how many, and when that is proved."""

import pytest
from brownout_agent.faults.disk_inodes import DiskInodesParameters, InodeTable, is_near, split, to_take
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

TABLE = InodeTable(total=1_000_000, free=400_000)


def parameters(**values: object) -> DiskInodesParameters:
    return DiskInodesParameters.model_validate({"path": "/srv", **values})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "exactly one"),
        ({"count": 5, "leave": 5}, "exactly one"),
        ({"count": 0}, "greater than or equal to 1"),
        ({"count": -1}, "greater than or equal to 1"),
        ({"count": 1.5}, "integer"),
        ({"count": 2**33}, "less than or equal"),
        ({"leave": -1}, "greater than or equal to 0"),
        ({"percent": 0}, "above 0"),
        ({"count": 1, "path": "srv"}, "match pattern"),
        ({"count": 1, "size": "1MiB"}, "Extra inputs"),
    ],
)
def test_wrong_parameters_are_refused_and_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        parameters(**wrong)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [({"count": 7}, 7), ({"leave": 0}, 400_000), ({"leave": 100}, 399_900), ({"percent": 90}, 300_000)],
)
def test_how_many_are_taken(asked: dict[str, object], taken: int) -> None:
    assert to_take(parameters(**asked), TABLE) == taken


@pytest.mark.parametrize("asked", [{"leave": 400_000}, {"leave": 500_000}, {"percent": 60}, {"percent": 1}])
def test_where_enough_are_used_already_none_is_taken(asked: dict[str, object]) -> None:
    assert to_take(parameters(**asked), TABLE) <= 0


@given(count=st.integers(min_value=1, max_value=10_000), most=st.integers(min_value=1, max_value=10_000))
def test_shares_are_the_whole_and_as_few_as_there_can_be(count: int, most: int) -> None:
    shares = split(count, most)
    assert sum(shares) == count
    assert max(shares) <= most
    assert (len(shares) - 1) * most < count


@pytest.mark.parametrize(
    ("achieved", "asked", "near"),
    [
        (1_000_000, 1_000_000, True),
        (1_000_500, 1_000_000, True),
        (990_000, 1_000_000, True),
        (989_999, 1_000_000, False),
        (984, 1_000, True),
        (983, 1_000, False),
        (0, 10, False),
        (0, 1, False),
        (1, 1, True),
    ],
)
def test_a_few_inodes_of_others_are_allowed_but_a_fault_that_holds_none_is_never_near(
    achieved: int, asked: int, near: bool
) -> None:
    assert is_near(achieved, asked) is near
