"""Who is held back by network.reorder and who is overtaken: draws, gaps, and the judgement. No kernel, no clock."""

import itertools
import random
import re
from collections import Counter
from typing import Any

import pytest
from brownout_agent.faults.network_queue import RECEIVED, judge_passed
from brownout_agent.faults.network_reorder import ReorderParameters, Shuffle, judge_reorder
from brownout_agent.faults.network_scope import Scope
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

MS = 1_000_000
EVERYONE = Scope(None, (), "any", "ingress", None, False, (), (22,))


def shuffle(counts: Counter[str], seed: int = 1, **parameters: Any) -> Shuffle:
    return Shuffle(
        ReorderParameters.model_validate(parameters), random.Random(seed), lambda name: counts.update([name])
    )


Arrivals = st.lists(st.tuples(st.integers(0, 8 * MS), st.sampled_from([b"a", b"b"])), min_size=1, max_size=80)


@given(Arrivals, st.integers(0, 2**32), st.floats(1, 99), st.integers(1, 5))
def test_those_that_are_counted_as_overtaken_left_behind_a_later_one_of_their_flow(
    arrivals: list[tuple[int, bytes]], seed: int, percent: float, gap: int
) -> None:
    counts: Counter[str] = Counter()
    line = shuffle(counts, seed, percent=percent, delay="10ms", gap=gap)
    now_ns, left, held = 0, list[int](), list[int]()
    for number, (gap_ns, flow) in enumerate(arrivals):
        now_ns += gap_ns
        left += [waiting.number for waiting in line.take_due(now_ns)]
        if line.take(number, flow, now_ns):
            left.append(number)
        else:
            held.append(number)
    assert line.next_due_ns() is None or line.next_due_ns() <= now_ns + 10 * MS  # type: ignore[operator]
    left += [waiting.number for waiting in line.take_due(now_ns + 10 * MS)]
    assert sorted(left) == [*range(len(arrivals))]
    assert line.next_due_ns() is None
    behind = {
        number
        for at, number in enumerate(left)
        if any(later > number and arrivals[later][1] == arrivals[number][1] for later in left[:at])
    }
    assert behind <= {*held}
    assert (counts["held"], counts["overtaken"]) == (len(held), len(behind))
    assert all(after - before >= gap for before, after in itertools.pairwise(held))


def test_the_share_is_of_the_packets_that_are_drawn_for() -> None:
    for gap in (1, 4):
        counts: Counter[str] = Counter()
        line = shuffle(counts, percent=30, delay="1s", gap=gap)
        for number in range(20_000):
            line.take(number, b"", number)
        assert counts["held"] / counts["drawn"] == pytest.approx(0.3, abs=0.02)
        assert counts["drawn"] + (gap - 1) * counts["held"] == pytest.approx(20_000, abs=gap)


def test_one_that_is_due_is_overtaken_no_more_and_leaves_nothing_behind() -> None:
    counts: Counter[str] = Counter()
    line = shuffle(counts, percent=100, gap=2, delay="10ms")
    assert not line.take(1, b"a", 0)
    assert line.next_due_ns() == 10 * MS
    assert line.take_due(10 * MS - 1) == []
    assert [waiting.number for waiting in line.take_due(10 * MS)] == [1]
    assert line.take(2, b"a", 10 * MS)
    assert counts["overtaken"] == 0
    assert line._behind == {}


@pytest.mark.parametrize(
    ("given_parameters", "why"),
    [
        ({}, "percent"),
        ({"percent": 100}, "so that none overtakes"),
        ({"percent": 20, "delay": "0ms"}, "greater than 0"),
        ({"percent": 20, "delay": "31s"}, "less than or equal to 30000"),
        ({"percent": 20, "delay": 10}, "has no unit"),
        ({"percent": 20, "gap": 0}, "greater than or equal to 1"),
        ({"percent": 20, "gap": 1.5}, "valid integer"),
    ],
)
def test_bad_parameters_are_refused_with_what_is_wrong(given_parameters: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(why)):
        ReorderParameters.model_validate(given_parameters)


@pytest.mark.parametrize(
    ("drawn", "held", "overtaken", "proved", "achieved", "said"),
    [
        (0, 0, 0, False, None, "nobody talked to any peer"),
        (1_000, 200, 190, True, 19, "190 of them were overtaken"),
        (1_000, 200, 100, True, 10, "100 of them were overtaken"),
        (1_000, 200, 99, False, 9.9, "99 of them were overtaken, the others only late"),
        (1_000, 300, 300, False, 30, "20 % lies outside"),
        (10, 2, 2, False, 20, "too few to prove 20 %"),
    ],
)
def test_it_is_proved_by_the_share_that_was_held_and_by_those_that_were_overtaken(
    drawn: int, held: int, overtaken: int, proved: bool, achieved: float | None, said: str
) -> None:
    parameters = ReorderParameters.model_validate({"percent": 20})
    noted = {"drawn": drawn, "held": held, "overtaken": overtaken, "released": held, "held_us": held * 10_000}
    effect = judge_reorder(parameters, EVERYONE, {RECEIVED: drawn, **noted})
    assert effect.proved is proved
    assert effect.achieved == (pytest.approx(achieved) if achieved is not None else None)
    assert said in effect.explanation
    if held:
        assert "for 10 ms on average" in effect.explanation
    if proved:
        assert judge_passed(effect, 1_000, 10).proved
        assert not judge_passed(effect, 1_000, 11).proved
