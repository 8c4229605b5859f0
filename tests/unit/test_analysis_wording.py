"""Times and quantities as people read them."""

import math

import pytest
from brownout_controller.analysis.interval import Interval, at_least, exactly
from brownout_controller.analysis.wording import bounds, clock, counted, duration, estimate, quantity, since

from tests.support.records import START_NS, at


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0.0, "0 s"),
        (0.4, "0.4 ms"),
        (9.94, "9.9 ms"),
        (9.96, "10 ms"),
        (212.4, "212 ms"),
        (999.6, "1.00 s"),
        (6_214.0, "6.21 s"),
        (9_996.0, "10.0 s"),
        (18_400.0, "18.4 s"),
        (59_960.0, "1 min 0 s"),
        (3_600_000.0, "1 h 0 min"),
        (math.inf, "unbounded"),
    ],
)
def test_a_duration_has_three_significant_digits_and_never_sixty_seconds(milliseconds: float, text: str) -> None:
    assert duration(milliseconds) == text


def test_a_clock_is_cut_off_so_that_nothing_stands_later_than_it_was() -> None:
    assert clock(at(31.299)) == "14:02:11.2"
    assert clock(at(31.999), 2) == "14:02:11.99"
    assert clock(at(31.999), 0) == "14:02:11"


def test_time_since_the_start_counts_minutes_and_goes_below_zero() -> None:
    assert [since(at(s), START_NS) for s in (0, 31.2, 59.96, 125.0, -1.0)] == [
        "T+0:00.0", "T+0:31.2", "T+1:00.0", "T+2:05.0", "T-0:01.0",
    ]  # fmt: skip


def test_an_estimate_without_an_upper_bound_says_at_least() -> None:
    assert (estimate(at_least(18_400.0), "ms"), bounds(at_least(18_400.0), "ms")) == (
        "at least 18.4 s",
        "18.4 s or more",
    )
    assert (estimate(exactly(2.0), ""), bounds(exactly(2.0), "")) == ("2", "exact")
    assert bounds(Interval(99.12, 98.0, 99.5), "%") == "98% to 99.5%"


def test_an_availability_short_of_all_is_never_rounded_up_to_all() -> None:
    assert quantity(99.9996, "%") != "100%"
    assert quantity(92.88, "%") == "92.9%"
    assert quantity(100.0, "%") == "100%"


def test_one_is_singular() -> None:
    assert (counted(1, "fault"), counted(0, "fault"), counted(2, "fault")) == ("1 fault", "0 faults", "2 faults")
