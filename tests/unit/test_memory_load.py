"""memory.load without taking memory: parameters, the size to hold next, and reading what the kernel says."""

import pytest
from brownout_agent.faults.memory_load import MemoryLoadParameters
from brownout_agent.faults.memory_room import default_reserve, next_size
from brownout_agent.kernel.memory import PAGE_BYTES, parse_meminfo, parse_smaps
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

MIB = 2**20
GIB = 2**30
PAGES = st.integers(min_value=0, max_value=4 * GIB // PAGE_BYTES).map(lambda count: count * PAGE_BYTES)
SIZES = st.integers(min_value=0, max_value=8 * GIB)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "exactly one"),
        ({"size": "1GiB", "percent": 10}, "exactly one"),
        ({"size": 512}, "did you mean 512MiB"),
        ({"size": "1KiB"}, "greater than or equal"),
        ({"size": "-1GiB"}, "is not a size"),
        ({"size": float("inf")}, "no unit"),
        ({"percent": 0}, "above 0"),
        ({"percent": float("nan")}, "not a percentage"),
        ({"size": "1GiB", "reserve": "1MiB"}, "greater than or equal"),
        ({"size": "1GiB", "reserved": "1GiB"}, "Extra inputs"),
    ],
)
def test_wrong_parameters_are_refused_and_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MemoryLoadParameters.model_validate(wrong)


def test_the_reserve_is_a_twentieth_but_never_less_than_256_mib() -> None:
    assert default_reserve(GIB) == 256 * MIB
    assert default_reserve(100 * GIB) == 5 * GIB


@given(held=PAGES, asked=PAGES, available=SIZES, reserve=SIZES)
def test_the_next_size_never_takes_from_the_reserve_and_gives_back_what_is_missing(
    held: int, asked: int, available: int, reserve: int
) -> None:
    held = min(held, asked)
    following = next_size(held, asked, available, reserve)
    assert 0 <= following <= asked
    assert following % PAGE_BYTES == 0
    left = available - (following - held)
    if available >= reserve:
        assert following >= held
        assert left >= reserve
    else:
        assert following == 0 or left >= reserve
        assert left <= reserve + PAGE_BYTES or following == held == 0


def test_with_room_it_comes_to_exactly_what_was_asked_in_steps() -> None:
    held, steps = 0, []
    while held < GIB:
        following = next_size(held, GIB, 4 * GIB - held, 256 * MIB)
        steps.append(following - held)
        held = following
    assert held == GIB
    assert len(steps) > 1


def test_just_above_the_reserve_it_does_not_swing() -> None:
    assert next_size(300 * MIB, GIB, 256 * MIB + 4096, 256 * MIB) == 300 * MIB


def test_meminfo_is_read_in_bytes_and_counts_without_a_unit_are_left_out() -> None:
    text = "MemTotal:       24684356 kB\nMemAvailable:   24321536 kB\nHugePages_Total:       3\n"
    assert parse_meminfo(text) == {"MemTotal": 24684356 * 1024, "MemAvailable": 24321536 * 1024}


def test_smaps_gives_the_resident_bytes_of_each_mapping() -> None:
    text = """7f00000000-7f00100000 rw-p 00000000 00:00 0 [anon: a b]
Size:               1024 kB
Rss:                 512 kB
Pss:                 512 kB
VmFlags: rd wr mr mw me lo ac
7f00100000-7f00200000 r--p 00000000 fe:00 123  /usr/lib/with blank
Rss:                   4 kB
"""
    assert list(parse_smaps(text)) == [
        (0x7F00000000, 0x7F00100000, 512 * 1024),
        (0x7F00100000, 0x7F00200000, 4096),
    ]
