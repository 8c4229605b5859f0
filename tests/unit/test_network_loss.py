"""When a loss in bursts is what was asked for. No kernel: chains that are drawn here, and counts that are made up."""

import itertools
import random

import pytest
from brownout_agent.faults.network_loss import LossParameters, drop_in_bursts, judge_bursts
from brownout_agent.faults.network_scope import Scope
from brownout_agent.faults.network_table import PacketCounts
from pydantic import ValidationError

SCOPE = Scope(None, (), "any", "egress", None, False, (), (22,))


def judged(percent: float, burst: float, seen: int, dropped: int, bursts: int) -> tuple[bool, str]:
    effect = judge_bursts(percent, burst, SCOPE, {"egress": PacketCounts(seen, dropped)}, bursts)
    return effect.proved, effect.explanation


def chain(percent: float, burst: float, packets: int, rng: random.Random) -> tuple[int, int]:
    """How many a chain loses, and in how many bursts: drawn as the rules draw."""
    leaves, enters = 1 / burst, percent / (100 - percent) / burst
    states = itertools.accumulate(
        range(packets), lambda bad, _: rng.random() >= leaves if bad else rng.random() < enters, initial=False
    )
    lost = [*states][1:]
    return sum(lost), sum(now and not before for before, now in itertools.pairwise([False, *lost]))


@pytest.mark.parametrize(("percent", "burst"), [(1, 10), (10, 1), (10, 5), (30, 3), (50, 1.2), (50, 200)])
def test_a_true_chain_is_proved_all_but_once_in_a_thousand_and_another_is_not(percent: float, burst: float) -> None:
    rng = random.Random(7)
    right = [judged(percent, burst, 20_000, *chain(percent, burst, 20_000, rng))[0] for _ in range(100)]
    assert sum(right) >= 97, sum(right)
    wrong = [judged(percent, burst, 20_000, *chain(percent, burst * 4, 20_000, rng))[0] for _ in range(20)]
    assert sum(wrong) <= 4, "bursts four times as long"


def test_a_share_that_was_not_asked_for_is_not_proved_and_the_words_say_which() -> None:
    is_proved, words = judged(10, 5, 100_000, 10_000, 2_000)
    assert is_proved
    assert words == (
        "the kernel dropped 10000 of 100000 packets in 2000 bursts (any peer); 10 % lies inside 10 +- 0.93 %, and "
        "bursts of 5 lie inside 5 +- 0.35 packets"
    )
    is_proved, words = judged(10, 5, 100_000, 20_000, 4_000)
    assert not is_proved
    assert "10 % lies outside 20 +- " in words
    is_proved, words = judged(10, 5, 100_000, 10_000, 10_000)
    assert not is_proved
    assert "bursts of 5 lie outside 1 +- " in words


def test_nothing_seen_and_too_few_bursts_prove_nothing() -> None:
    assert judged(10, 5, 0, 0, 0) == (False, "no packet matched: nobody talked to any peer during the fault")
    is_proved, words = judged(10, 5, 400, 40, 9)
    assert not is_proved
    assert words.endswith("too few to prove anything, which takes 10")


def test_a_share_that_bursts_cannot_reach_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"bursts of 4 lose 80 % at most, with one packet between two"):
        LossParameters(percent=81, burst=4)
    LossParameters(percent=80, burst=4)
    for wrong in (0.5, 20_000):
        with pytest.raises(ValidationError):
            LossParameters(percent=1, burst=wrong)


def test_the_rules_leave_the_bad_state_before_they_drop_in_it() -> None:
    _, leave, stay, enter = drop_in_bursts(10, 5).rules("egress")
    assert (
        leave
        == "meta nfproto @bad_egress numgen random mod 1000000 < 200000 delete @bad_egress { meta nfproto } accept"
    )
    assert stay.endswith("counter name egress_dropped drop")
    assert enter.startswith("numgen random mod 1000000 < 22222 ")
