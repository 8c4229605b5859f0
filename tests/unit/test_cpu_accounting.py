"""Reading /proc/stat and lists of cores, as plain functions."""

import pytest
from brownout_agent.kernel.cpu import (
    CoreTicks,
    format_core_list,
    parse_core_list,
    parse_core_ticks,
    together,
)
from hypothesis import given
from hypothesis import strategies as st

STAT = """cpu  300 10 60 900 50 4 6 20 7 0
cpu0 100 10 20 400 30 1 2 5 7 0
cpu2 200 0 40 500 20 3 4 15 0 0
intr 99 0 1
ctxt 5
"""


def test_busy_is_everything_but_idle_and_iowait_and_steal_is_busy() -> None:
    assert parse_core_ticks(STAT) == {0: CoreTicks(busy=138, total=568), 2: CoreTicks(busy=262, total=782)}


def test_guest_time_is_not_counted_twice() -> None:
    with_guest = parse_core_ticks("cpu0 100 0 0 100 0 0 0 0 100 0")
    assert with_guest[0] == CoreTicks(busy=100, total=200)


def test_the_share_is_of_the_time_in_between() -> None:
    assert CoreTicks(160, 300).share_since(CoreTicks(100, 200)) == pytest.approx(0.6)


def test_a_counter_that_stands_or_steps_back_gives_no_share() -> None:
    assert CoreTicks(100, 200).share_since(CoreTicks(100, 200)) == 0.0
    assert CoreTicks(99, 210).share_since(CoreTicks(100, 200)) == 0.0


def test_cores_together_weigh_by_their_time() -> None:
    assert together([CoreTicks(10, 100), CoreTicks(90, 100)]) == CoreTicks(100, 200)


@pytest.mark.parametrize(
    ("text", "cores"), [("0", (0,)), ("0-3,5", (0, 1, 2, 3, 5)), ("5, 0-1", (0, 1, 5)), ("2-2,2", (2,))]
)
def test_a_list_of_cores_is_read_as_the_kernel_writes_it(text: str, cores: tuple[int, ...]) -> None:
    assert parse_core_list(text) == cores


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "1,,2", "0-99999999", "1.5", "²"])
def test_what_is_no_list_of_cores_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"0-3,5|more cores than"):
        parse_core_list(text)


@given(st.sets(st.integers(min_value=0, max_value=300), min_size=1))
def test_a_list_of_cores_survives_writing_and_reading(cores: set[int]) -> None:
    assert set(parse_core_list(format_core_list(cores))) == cores
