"""How a partition cuts a set of hosts: who is parted from whom, for every shape and any number of hosts."""

import itertools
from typing import get_args

import pytest
from brownout_agent.faults.network_partition import PartitionParameters, Shape
from brownout_controller.planning.partitions import FEWEST, Cut, cut
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

SHAPES: tuple[Shape, ...] = get_args(Shape)
counts = st.integers(min_value=4, max_value=15)
seeds = st.text(max_size=8)


def hosts(count: int) -> list[str]:
    return [f"n-{number:02}" for number in range(count)]


def see(found: Cut, names: list[str]) -> dict[str, set[str]]:
    """Whom each host still sees, itself included."""
    return {name: set(names) - set(found.get(name, ())) for name in names}


@given(shape=st.sampled_from(SHAPES), count=counts, seed=seeds)
def test_who_is_parted_from_another_is_parted_by_it_and_nobody_from_itself(shape: Shape, count: int, seed: str) -> None:
    found = cut(shape, hosts(count), seed)
    assert found
    assert all(others for others in found.values())
    for one, others in found.items():
        assert one not in others
        assert all(one in found[other] for other in others)


@given(shape=st.sampled_from(SHAPES), count=counts, seed=seeds)
def test_the_seed_alone_decides_whatever_the_order_of_the_hosts(shape: Shape, count: int, seed: str) -> None:
    assert cut(shape, hosts(count), seed) == cut(shape, hosts(count)[::-1], seed)


@pytest.mark.parametrize("shape", SHAPES)
def test_different_seeds_cut_elsewhere(shape: Shape) -> None:
    assert len({str(cut(shape, hosts(7), str(seed))) for seed in range(30)}) > 5


@given(count=counts, seed=seeds)
@pytest.mark.parametrize(
    ("shape", "smaller"),
    [("halves", lambda count: count // 2), ("isolate", lambda _: 1), ("majority", lambda count: (count - 1) // 2)],
)
def test_two_sides_see_themselves_whole_and_nothing_of_the_other(shape: Shape, smaller, count: int, seed: str) -> None:  # type: ignore[no-untyped-def]
    sides = {frozenset(seen) for seen in see(cut(shape, hosts(count), seed), hosts(count)).values()}
    few, many = sorted(sides, key=len) if len(sides) == 2 else (set(), set())
    assert (len(few), len(many)) == (smaller(count), count - smaller(count))
    assert not few & many
    assert shape != "majority" or len(many) > count / 2 >= len(few)


@given(count=counts, seed=seeds)
def test_one_host_of_a_bridge_sees_all_and_is_all_that_the_halves_have_in_common(count: int, seed: str) -> None:
    seen = see(cut("bridge", hosts(count), seed), hosts(count))
    (middle,) = [name for name, others in seen.items() if len(others) == count]
    sides = {frozenset(others) for name, others in seen.items() if name != middle}
    assert len(sides) == 2
    assert frozenset.intersection(*sides) == {middle}
    assert sorted(len(side) - 1 for side in sides) == [(count - 1) // 2, count - 1 - (count - 1) // 2]


@given(count=counts, seed=seeds)
def test_in_a_ring_everybody_sees_a_majority_and_no_two_the_same(count: int, seed: str) -> None:
    seen = see(cut("ring", hosts(count), seed), hosts(count))
    assert all(count > len(others) > count / 2 for others in seen.values())
    assert all(one != other for one, other in itertools.combinations(seen.values(), 2))


@pytest.mark.parametrize("shape", ["halves", "isolate", "majority"])
def test_in_one_direction_only_the_smaller_side_has_a_part(shape: Shape) -> None:
    both, one_way = cut(shape, hosts(5), "a"), cut(shape, hosts(5), "a", "ingress")
    assert one_way == {name: both[name] for name in one_way}
    assert 0 < len(one_way) < 5 / 2


@pytest.mark.parametrize("shape", SHAPES)
def test_too_few_hosts_are_refused_and_so_many_are_enough(shape: Shape) -> None:
    assert cut(shape, hosts(FEWEST[shape]), "a")
    with pytest.raises(ValueError, match=f"a {shape} needs {FEWEST[shape]} hosts; there are {FEWEST[shape] - 1}"):
        cut(shape, hosts(FEWEST[shape] - 1), "a")


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ({}, "say from whom"),
        ({"to": "10.0.0.9", "shape": "halves"}, "not both"),
        ({"shape": "thirds"}, "Input should be 'halves'"),
        ({"shape": "ring", "direction": "ingress"}, "a ring is parted both ways"),
        ({"shape": "bridge", "direction": "egress"}, "a bridge is parted both ways"),
    ],
)
def test_a_partition_from_nobody_or_by_halves_is_refused(written: dict[str, str], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        PartitionParameters.model_validate(written)
