"""disk.io without a disk: parameters, the size of a request, where each goes, and when it is due."""

import itertools

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Refusal
from brownout_agent.faults.disk_io import DiskIoParameters, block_bytes, is_near, next_due_s, offsets
from brownout_agent.injector.ceilings import check_ceilings
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
        ({"write": "1MiB/s", "pattern": "zigzag"}, "'sequential' or 'random'"),
        ({"read": "1MiB/s", "fsync": True}, "`fsync` is about writes"),
        ({"write_iops": 500}, "`write_iops` needs the size of a request, like `block: 4KiB`"),
        ({"write": "1MiB/s", "write_iops": 500, "block": "4KiB"}, "`write` or `write_iops`, not both"),
        ({"write_iops": 0, "block": "4KiB"}, "greater than or equal to 1"),
        ({"write_iops": 2e6, "block": "4KiB"}, "less than or equal"),
        ({"write_iops": float("inf"), "block": "4KiB"}, "finite"),
        ({"write_iops": float("nan"), "block": "4KiB"}, "finite"),
        ({"write_iops": "500", "block": "4KiB"}, "write it like 500"),
        ({"write_iops": True, "block": "4KiB"}, "write it like 500"),
        ({"write_iops": 500, "block": 4096}, "is not a size|no unit"),
        ({"write_iops": 500, "block": "5000B"}, "multiple of 4KiB"),
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


def test_requests_a_second_are_a_rate_in_bytes_as_well_to_which_a_ceiling_of_bytes_holds() -> None:
    parameters = DiskIoParameters.model_validate({"read": "1MiB/s", "write_iops": 500.0, "block": "4KiB"})
    assert parameters.rates() == {"read": MIB, "write": 500 * 4096}
    fault = catalogue()["disk.io"]
    check_ceilings(fault, parameters, {"write": "2MiB/s"}, {})
    with pytest.raises(Refusal, match=r"disk\.io with write .*; this host allows at most 1MiB/s"):
        check_ceilings(fault, parameters, {"write": "1MiB/s"}, {})
    with pytest.raises(Refusal, match=r"disk\.io with write_iops 500; this host allows at most 499"):
        check_ceilings(fault, parameters, {"write_iops": 499}, {"write_iops": 500})


def test_sequential_blocks_follow_one_another_and_begin_again_at_the_end_of_the_last_whole_one() -> None:
    found = list(itertools.islice(offsets("sequential", 10 * 4096 + 1, 3 * 4096, "seed"), 7))
    assert found == [0, 12288, 24576, 0, 12288, 24576, 0]


@given(seed=st.text(max_size=8), blocks=st.integers(min_value=2, max_value=100))
def test_random_blocks_lie_within_the_file_on_whole_blocks_and_a_seed_gives_one_order(seed: str, blocks: int) -> None:
    def first(count: int) -> list[int]:
        return list(itertools.islice(offsets("random", blocks * 8192, 8192, seed), count))

    found = first(20 * blocks)
    assert found == first(20 * blocks)
    assert all(place % 8192 == 0 and 0 <= place <= (blocks - 1) * 8192 for place in found)
    assert len({*found}) > blocks / 2
    follows = sum(after == before + 8192 for before, after in itertools.pairwise(found))
    assert follows < len(found) * 0.75


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
