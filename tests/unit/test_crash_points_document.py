"""What the page of crash points says, and that a call which is not in it is noticed."""

from tests.support.crash_points import Label, Point, points_of
from tests.support.crash_points_document import document, listed, missing
from tests.support.crash_scenes import Outcome

WRITE: Label = ("injector", "pwrite64", "journal")
FORK: Label = ("holder", "clone", "")
KIND = "cpu.load"
CLEAN = Outcome(is_reached=True, clean_after_s=1.5)
LEFT = Outcome(is_reached=True, trouble="left after 30 s: a group", clean_after_s=31.0)


def strikes_at(*labels: Label) -> list[tuple[Point, Outcome]]:
    return [(point, CLEAN) for point in points_of(KIND, [*labels])]


def test_a_call_that_is_not_in_the_page_is_missing_from_it() -> None:
    page = document(strikes_at(WRITE, FORK), left=[])
    assert listed(page) == {(KIND, WRITE), (KIND, FORK)}
    assert missing(KIND, [FORK, WRITE, WRITE], page) == []
    assert missing(KIND, [WRITE, ("injector", "unlink", "journal")], page) == [("injector", "unlink", "journal")]
    assert missing("disk.io", [WRITE], page) == [WRITE]


def test_a_call_that_is_left_to_strike_is_in_the_page_with_no_kill() -> None:
    page = document(strikes_at(WRITE), left=points_of(KIND, [FORK]))
    assert missing(KIND, [FORK, WRITE], page) == []
    assert "| `cpu.load` | holder | `clone` |  | 0 | 0 | 4 | 0 |\n" in page
    assert "| `cpu.load` | injector | `pwrite64` | journal | 1 | 1 | 0 | 0 |\n" in page


def test_a_call_at_which_nobody_was_ever_killed_is_not_in_the_page() -> None:
    never = [(point, Outcome(is_reached=False)) for point in points_of(KIND, [WRITE])]
    page = document(never, left=[])
    assert missing(KIND, [WRITE], page) == [WRITE]
    assert f"- {never[0][0]}\n" in page.partition("## Not there again")[2]


def test_the_page_counts_what_was_struck_and_says_what_is_left() -> None:
    page = document(strikes_at(WRITE, FORK), left=points_of("disk.io", [WRITE]))
    assert "**6 of 8 points struck: 75.0 %;\n0 with something on" in page
    assert "1.5 s in the median and 1.5 s at most" in page
    assert "6 of 6 points struck: 100 %;" in document(strikes_at(WRITE, FORK), left=[])


def test_what_was_bad_once_stays_in_the_page() -> None:
    point = points_of(KIND, [WRITE])[0]
    bad = document([(point, LEFT)], left=[])
    assert "1 with something on without a record, or left.**" in bad
    assert f"- {point}: {LEFT.trouble}\n" in bad
    again = document([(point, LEFT), (point, CLEAN)], left=[])
    assert "0 with something on without a record, or left.**" in again
    assert f"- {point}: {LEFT.trouble} (struck again later: clean)\n" in again
