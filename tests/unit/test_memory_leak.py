"""memory.leak without taking memory: parameters, the asked line, and when a growth is that line."""

import pytest
from brownout_agent.faults.memory_leak import MemoryLeakParameters, asked_bytes, is_near
from brownout_agent.kernel.memory import PAGE_BYTES
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

MIB = 2**20
GIB = 2**30


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": "1GiB"}, "Field required"),
        ({"rate": "1MiB/s"}, "exactly one"),
        ({"rate": "1MiB/s", "size": "1GiB", "percent": 10}, "exactly one"),
        ({"rate": "1MiB", "size": "1GiB"}, "not a rate"),
        ({"rate": 5, "size": "1GiB"}, "not a rate"),
        ({"rate": "1KiB/s", "size": "1GiB"}, "greater than or equal"),
        ({"rate": "1TiB/s", "size": "1GiB"}, "less than or equal"),
        ({"rate": "1MiB/s", "size": "1GiB", "reserve": "1MiB"}, "greater than or equal"),
        ({"rate": "1MiB/s", "size": "1GiB", "until": "2GiB"}, "Extra inputs"),
    ],
)
def test_wrong_parameters_are_refused_and_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MemoryLeakParameters.model_validate(wrong)


@given(
    rate_bps=st.integers(min_value=PAGE_BYTES, max_value=4 * GIB),
    most=st.integers(min_value=MIB // PAGE_BYTES, max_value=64 * GIB // PAGE_BYTES).map(
        lambda pages: pages * PAGE_BYTES
    ),
    seconds=st.floats(min_value=0, max_value=43_200),
)
def test_the_line_begins_at_nothing_never_falls_and_ends_at_exactly_what_was_asked(
    rate_bps: int, most: int, seconds: float
) -> None:
    facts = {"rate_bps": rate_bps, "asked_bytes": most}
    assert asked_bytes(facts, 0) == 0
    assert 0 <= asked_bytes(facts, seconds) <= asked_bytes(facts, seconds + 1) <= most
    assert asked_bytes(facts, seconds) % PAGE_BYTES == 0
    assert min(rate_bps * seconds, most) - asked_bytes(facts, seconds) < PAGE_BYTES + 1
    assert asked_bytes(facts, most / rate_bps + 1) == most


@pytest.mark.parametrize(
    ("resident", "asked", "rate_bps", "near"),
    [
        (500 * MIB, 500 * MIB, 20 * MIB, True),
        (492 * MIB, 500 * MIB, 20 * MIB, True),
        (490 * MIB, 500 * MIB, 20 * MIB, False),
        (510 * MIB, 500 * MIB, 20 * MIB, False),
        (0, 2 * MIB, 20 * MIB, False),
        (0, 1, 20 * MIB, False),
        (0, 0, 20 * MIB, False),
    ],
)
def test_a_growth_is_near_within_one_percent_and_two_steps_but_no_growth_never_is(
    resident: int, asked: int, rate_bps: int, near: bool
) -> None:
    assert is_near(resident, asked, rate_bps) is near
