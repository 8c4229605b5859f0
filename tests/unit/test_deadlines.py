"""When a fault has to end, as plain numbers."""

import pytest
from brownout_agent.injector.deadlines import KERNEL_MARGIN_S, Deadlines
from brownout_agent.injector.lifecycle import Cause, End

S = 1_000_000_000


def test_a_lease_starts_anew_with_each_renewal_but_never_after_its_end() -> None:
    deadlines = Deadlines(10.0, 10 * S)
    assert deadlines.renew(9 * S)
    assert deadlines.lease_ends_ns == 19 * S
    assert deadlines.renew(19 * S) is False
    assert deadlines.lease_ends_ns == 19 * S


@pytest.mark.parametrize(
    ("ends_s", "trial_s", "now_s", "cause"),
    [
        (None, None, 9, None),
        (None, None, 10, Cause.LEASE_LOST),
        (5, None, 4, None),
        (5, None, 5, Cause.DURATION),
        (20, 3, 2, None),
        (20, 3, 3, Cause.CONTROL_LOST),
        (20, 3, 10, Cause.LEASE_LOST),
        (2, 3, 3, Cause.DURATION),
    ],
)
def test_the_first_deadline_that_has_passed_is_why_it_ends(
    ends_s: int | None, trial_s: int | None, now_s: int, cause: Cause | None
) -> None:
    deadlines = Deadlines(
        10.0, 10 * S, None if ends_s is None else ends_s * S, None if trial_s is None else trial_s * S
    )
    due = deadlines.due(now_s * S)
    assert (due.cause if due else None) == cause
    earliest_s = min(one for one in (10, ends_s, trial_s) if one is not None)
    assert deadlines.earliest_ns == earliest_s * S
    assert (due is None) == (now_s < earliest_s)


def test_what_is_told_says_how_long_nobody_renewed_or_confirmed() -> None:
    deadlines = Deadlines(1.5, 10 * S, trial_ends_ns=3 * S)
    assert deadlines.due(3 * S) == End(
        Cause.CONTROL_LOST, "within 3 s nobody confirmed that the agent still reaches its controller"
    )
    assert deadlines.due(10 * S) == End(Cause.LEASE_LOST, "nobody renewed the lease of 1.5 s")


def test_the_kernel_ends_half_a_second_later_what_the_injector_did_not() -> None:
    assert KERNEL_MARGIN_S == 0.5, "the bounds in docs/lifetimes.md count on it"
