"""Selectors and picks: what is read, and which hosts are meant."""

import pytest
from brownout_controller.language.selectors import Pick, Requirement, Selector
from hypothesis import given
from hypothesis import strategies as st

HOSTS = {
    "db-1": {"host": "db-1", "app": "postgres", "role": "primary", "zone": "a"},
    "db-2": {"host": "db-2", "app": "postgres", "role": "replica", "zone": "b"},
    "edge": {"host": "edge", "app": "haproxy", "zone": "a", "canary": ""},
}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("app=postgres", ["db-1", "db-2"]),
        ("app==postgres, role = primary", ["db-1"]),
        ("role!=replica", ["db-1", "edge"]),
        ("zone in (a,c)", ["db-1", "edge"]),
        ("zone notin (a)", ["db-2"]),
        ("role notin (primary, replica)", ["edge"]),
        ("canary", ["edge"]),
        ("!canary,zone=a", ["db-1"]),
        ("host=db-2", ["db-2"]),
        ("app=postgres,zone=c", []),
    ],
)
def test_a_selector_chooses_hosts_as_kubectl_does(text: str, chosen: list[str]) -> None:
    selector = Selector.parse(text)
    assert [name for name, labels in HOSTS.items() if selector.matches(labels)] == chosen


@pytest.mark.parametrize(
    "text", ["", "  ", ",", "a=b,", "a=b,,c=d", "a=", "=b", "a=b=c", "a in b", "a in (b,)", "a in ()", "a;b", "a = b c"]
)
def test_what_is_not_a_selector_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"role=app|zone in"):
        Selector.parse(text)


def test_a_selector_of_any_length_is_judged_quickly_or_refused() -> None:
    with pytest.raises(ValueError, match="500 characters"):
        Selector.parse("a=b," * 10_000)


names = st.from_regex(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,20}[A-Za-z0-9])?", fullmatch=True)
requirements = st.builds(
    Requirement, names, st.sampled_from(["in", "notin"]), st.lists(names, min_size=1, max_size=3).map(tuple)
) | st.builds(Requirement, names, st.sampled_from(["exists", "absent"]))


@given(st.lists(requirements, min_size=1, max_size=4).map(tuple))
def test_a_selector_reads_what_it_writes(parts: tuple[Requirement, ...]) -> None:
    assert Selector.parse(str(Selector(parts))) == Selector(parts)


@given(st.text(max_size=60))
def test_no_text_raises_anything_but_a_value_error(text: str) -> None:
    try:
        selector = Selector.parse(text)
    except ValueError:
        return
    assert Selector.parse(str(selector)) == selector


@pytest.mark.parametrize(
    ("value", "matching", "picked"),
    [
        (1, 5, 1),
        (3, 2, 2),
        ("all", 5, 5),
        ("50%", 5, 3),
        ("1%", 5, 1),
        ("100%", 5, 5),
        ("33.3%", 3, 1),
        ("50%", 0, 0),
        (1, 0, 0),
    ],
)
def test_a_pick_rounds_percentages_up_and_never_exceeds_what_matches(value: object, matching: int, picked: int) -> None:
    assert Pick.parse(value).of(matching) == picked


@pytest.mark.parametrize("value", [0, -1, True, 1.5, None, "0%", "101%", "half", "5", "-5%", "1e2%", [1]])
def test_what_is_not_a_pick_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="write 1, all or 50%"):
        Pick.parse(value)


@pytest.mark.parametrize("value", [1, 7, "all", "50%", "12.5%"])
def test_a_pick_reads_what_it_writes(value: object) -> None:
    text = str(Pick.parse(value))
    assert Pick.parse(int(text) if text.isdigit() else text) == Pick.parse(value)
