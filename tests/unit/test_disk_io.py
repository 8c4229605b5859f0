"""disk.io without a disk: parameters, the size of a request, and when each is due."""

import pytest
from brownout_agent.faults.disk_io import DiskIoParameters, block_bytes, is_near, next_due_s
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

MIB = 2**20


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "`read`, `write` or both"),
        ({"write": "20MiB"}, "20MiB/s"),
        ({"write": 20}, "not a rate"),
        ({"write": "0MiB/s"}, "greater than 0"),
        ({"write": "-1MiB/s"}, "not a size"),
        ({"write": "1MiB/s", "path": "data"}, "not an absolute path"),
        ({"write": "1MiB/s", "block": "1KiB"}, "greater than or equal"),
        ({"write": "1MiB/s", "block": "5000B"}, "multiple of 4KiB"),
        ({"write": "1MiB/s", "block": "2MiB", "file_size": "1MiB"}, "larger than `file_size`"),
        ({"write": "1MiB/s", "file_size": "1TiB"}, "less than or equal"),
        ({"write": "1MiB/s", "rate": "1MiB/s"}, "Extra inputs"),
    ],
)
def test_wrong_parameters_are_refused_and_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DiskIoParameters.model_validate(wrong)


@pytest.mark.parametrize(
    ("rate_bps", "block"), [(900 * MIB, MIB), (20 * MIB, MIB), (MIB, 48 * 1024), (100 * 1024, 4096), (1024, 4096)]
)
def test_a_request_is_of_a_size_for_twenty_a_second_within_4_kib_and_1_mib(rate_bps: int, block: int) -> None:
    assert block_bytes(DiskIoParameters.model_validate({"write": "1MiB/s"}), rate_bps) == block


def test_a_request_is_of_the_size_that_was_asked() -> None:
    assert block_bytes(DiskIoParameters.model_validate({"write": "1GiB/s", "block": "8KiB"}), 2**30) == 8192


@given(
    took_s=st.lists(st.floats(min_value=0, max_value=0.049), min_size=1, max_size=200),
)
def test_a_disk_that_keeps_up_is_asked_at_exact_times_however_its_answers_jitter(took_s: list[float]) -> None:
    due_s = 100.0
    for took in took_s:
        due_s = next_due_s(due_s, 0.05, due_s + took)
    assert due_s == pytest.approx(100.0 + 0.05 * len(took_s))


def test_a_late_block_is_made_up_for() -> None:
    assert next_due_s(10.0, 0.05, now_s=10.3) == pytest.approx(10.05)


def test_a_disk_that_hung_owes_half_a_second_and_no_more() -> None:
    assert next_due_s(10.0, 0.05, now_s=70.0) == pytest.approx(69.5)


@pytest.mark.parametrize(
    ("rate_bps", "asked_bps", "block", "seconds", "near"),
    [
        (19.1 * MIB, 20 * MIB, MIB, 100.0, True),
        (18.9 * MIB, 20 * MIB, MIB, 100.0, False),
        (21.2 * MIB, 20 * MIB, MIB, 100.0, False),
        (18.0 * MIB, 20 * MIB, MIB, 1.0, True),
        (0, 1024, 4096, 2.0, False),
    ],
)
def test_a_rate_is_near_within_five_percent_and_a_block_but_a_disk_at_rest_never_is(
    rate_bps: float, asked_bps: int, block: int, seconds: float, near: bool
) -> None:
    assert is_near(rate_bps, asked_bps, block, seconds) is near
