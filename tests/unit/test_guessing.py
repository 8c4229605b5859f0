"""Who guesses at tokens: how many guesses are free, who waits, for how long, and that nobody fills the memory."""

from types import SimpleNamespace

import pytest
from brownout_controller.access import guessing
from brownout_controller.access.guessing import Guesses


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The one source of time, moved by hand: a minute is what is tested."""
    now = SimpleNamespace(s=1_000.0)
    monkeypatch.setattr(guessing, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


def test_thirty_guesses_a_minute_are_free_for_an_address_and_ten_for_an_account(clock: SimpleNamespace) -> None:
    guesses = Guesses()
    for number in range(30):
        assert guesses.wait_s("10.0.0.1", "") == 0.0
        guesses.wrong("10.0.0.1", f"account-{number}")
    assert guesses.wait_s("10.0.0.1", "") == 60.0
    for number in range(10):
        assert guesses.wait_s("10.0.0.9", "ann") == 0.0
        guesses.wrong(f"10.0.1.{number}", "ann")
    assert guesses.wait_s("10.0.0.9", "ann") == 60.0
    assert guesses.wait_s("10.0.0.9", "bob") == 0.0
    assert guesses.wait_s("10.0.0.1", "bob") == 60.0, "another account from the same address waits as well"


def test_all_of_an_ipv6_64_is_one_guesser_and_a_mapped_address_is_its_ipv4_one(clock: SimpleNamespace) -> None:
    guesses = Guesses()
    for number in range(30):
        guesses.wrong(f"2001:db8:1:2:{number:x}::7", "")
        guesses.wrong(f"{'::ffff:' if number % 2 else ''}10.0.0.1", "")
    assert guesses.wait_s("2001:db8:1:2:ffff::1", "") == 60.0
    assert guesses.wait_s("2001:db8:1:3::1", "") == 0.0
    assert guesses.wait_s("::ffff:10.0.0.1", "") == guesses.wait_s("10.0.0.1", "") == 60.0
    assert guesses.wait_s("10.0.0.2", "") == guesses.wait_s("::1", "") == 0.0


def test_the_wait_ends_a_minute_after_the_oldest_guess_that_counts(clock: SimpleNamespace) -> None:
    guesses = Guesses()
    for _ in range(11):
        guesses.wrong("", "ann")
        clock.s += 1.0
    # Of eleven guesses, at 1000 .. 1010, the last ten count; it is 1011 now.
    assert guesses.wait_s("", "ann") == 50.0
    clock.s += 49.5
    assert guesses.wait_s("", "ann") == 0.5
    clock.s += 1.0
    assert guesses.wait_s("", "ann") == 0.0
    guesses.wrong("", "ann")
    assert guesses.wait_s("", "ann") == 0.5, "the guess at 1002 is the oldest of ten now"


def test_a_guess_that_names_no_account_counts_for_none(clock: SimpleNamespace) -> None:
    guesses = Guesses()
    for number in range(40):
        guesses.wrong(f"10.0.0.{number}", "")
    assert guesses.wait_s("10.0.1.1", "") == 0.0


def test_an_address_is_no_account_of_the_same_name(clock: SimpleNamespace) -> None:
    guesses = Guesses()
    for number in range(10):
        guesses.wrong(f"10.0.0.{number}", "ann")
    assert guesses.wait_s("ann", "") == 0.0
    for _ in range(30):
        guesses.wrong("bob", "")
    assert guesses.wait_s("", "bob") == 0.0


def test_ten_thousand_names_are_remembered_and_the_one_that_was_quiet_longest_is_forgotten(
    clock: SimpleNamespace,
) -> None:
    guesses = Guesses()
    for origin in ("busy", "quiet"):
        for _ in range(30):
            guesses.wrong(origin, "")
    for number in range(9_998):
        guesses.wrong(f"other-{number}", "")
    assert guesses.wait_s("quiet", "") == 60.0
    guesses.wrong("busy", "")
    guesses.wrong("one more", "")
    assert guesses.wait_s("quiet", "") == 0.0
    assert guesses.wait_s("busy", "") == 60.0
