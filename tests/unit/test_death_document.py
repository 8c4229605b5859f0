"""The death matrix's page says of its outcomes what is true."""

from dataclasses import replace

import pytest

from tests.support.deaths import Outcome, Phase
from tests.support.deaths_document import document, percentile

_GOOD = Outcome(
    "injector KILL", Phase.HOLD, "cpu.load", 7, was_there=True, gone_after_s=0.25, bound_s=5, commit="c0ffee"
)


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed() -> None:
    hundred = [float(value) for value in range(1, 101)]
    assert [percentile(hundred, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([3.0], 0.99) == 3
    assert percentile([], 0.5) is None


@pytest.mark.parametrize(
    ("change", "judgement"),
    [
        ({}, "good"),
        ({"gone_after_s": 5.1}, "late"),
        ({"gone_after_s": None}, "late"),
        ({"leftovers": ("a table",)}, "left"),
        ({"censored": "it never came about", "gone_after_s": None}, "censored"),
    ],
)
def test_an_outcome_is_judged_by_its_bound_and_by_what_is_left(change: dict[str, object], judgement: str) -> None:
    outcome = replace(_GOOD, **change)  # type: ignore[arg-type]
    assert outcome.judgement == judgement
    assert Outcome.from_line(outcome.as_line()) == outcome


def test_the_page_counts_cells_and_names_those_that_are_not_good_with_a_seed() -> None:
    late = replace(_GOOD, gone_after_s=9.0, seed=4711)
    censored = replace(_GOOD, gone_after_s=None, censored="no token")
    page = document([_GOOD, late, censored], "Linux 1 with 1 cores", "make it")
    assert "**2 cells, 0 with something left, 1 late**, 1 more that tell nothing (censored)" in page
    assert "| injector KILL | 5 s | 2 | 0 | 1 | 1 | 0.25 s | 9.00 s | 9.00 s |" in page
    assert "| c0ffee | injector KILL | hold | cpu.load | late | 1 | 4711 |" in page


def test_a_fault_that_was_never_on_says_nothing_of_how_long_an_undo_takes() -> None:
    page = document([_GOOD, replace(_GOOD, was_there=False, gone_after_s=0.0)], "a machine", "make it")
    assert "| injector KILL | 5 s | 2 | 0 | 0 | 0 | 0.25 s | 0.25 s | 0.25 s |" in page


def test_a_fault_that_never_went_is_the_slowest_of_all() -> None:
    page = document([_GOOD, replace(_GOOD, gone_after_s=None)], "a machine", "make it")
    assert "| injector KILL | 5 s | 2 | 0 | 1 | 0 | 0.25 s | not gone | not gone |" in page
