"""What the page of crash points says, and that a call which is not in it is noticed."""

from tests.support.crash_points import AFTER, BEFORE, INJECTOR, Label, Point, points_of
from tests.support.crash_points_document import document, missing, struck
from tests.support.crash_scenes import Outcome

WRITE: Label = ("injector", "pwrite64", "journal")
FORK: Label = ("holder", "clone", "")
KIND = "cpu.load"
CLEAN = Outcome(is_reached=True, clean_after_s=1.5)
LEFT = Outcome(is_reached=True, trouble="left after 30 s: a group", clean_after_s=31.0)


def strikes_at(*labels: Label) -> list[tuple[Point, Outcome]]:
    return [(point, CLEAN) for point in points_of(KIND, [*labels])]


def test_a_call_that_was_struck_before_and_after_is_covered_and_another_one_is_not() -> None:
    page = document(strikes_at(WRITE, FORK), left=0)
    assert struck(page) == {(KIND, WRITE), (KIND, FORK)}
    assert missing(KIND, [FORK, WRITE, WRITE], page) == []
    assert missing(KIND, [WRITE, ("injector", "unlink", "journal")], page) == [("injector", "unlink", "journal")]
    assert missing("disk.io", [WRITE], page) == [WRITE]


def test_a_call_that_was_struck_on_one_side_alone_or_never_reached_is_not_covered() -> None:
    before, after = (Point(KIND, *WRITE, 1, when, INJECTOR) for when in (BEFORE, AFTER))
    assert missing(KIND, [WRITE], document([(before, CLEAN)], left=1)) == [WRITE]
    assert missing(KIND, [WRITE], document([(before, CLEAN), (after, Outcome(is_reached=False))], left=0)) == [WRITE]


def test_the_page_counts_what_was_struck_and_says_what_is_left() -> None:
    page = document(strikes_at(WRITE, FORK), left=2)
    assert "**6 of 8 points struck: 75.0 %;\n0 with something on" in page
    assert "1.5 s in the median and 1.5 s at most" in page
    assert "6 of 6 points struck: 100 %;" in document(strikes_at(WRITE, FORK), left=0)


def test_what_was_bad_once_stays_in_the_page() -> None:
    point = points_of(KIND, [WRITE])[0]
    bad = document([(point, LEFT)], left=0)
    assert "1 with something on without a record, or left.**" in bad
    assert f"- {point}: {LEFT.trouble}\n" in bad
    again = document([(point, LEFT), (point, CLEAN)], left=0)
    assert "0 with something on without a record, or left.**" in again
    assert f"- {point}: {LEFT.trouble} (struck again later: clean)\n" in again
