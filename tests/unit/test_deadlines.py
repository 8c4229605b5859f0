"""When a fault has to end, as plain numbers."""

import pytest
from brownout_agent.injector.deadlines import Deadlines
from brownout_agent.injector.lifecycle import Cause

S = 1_000_000_000


def test_a_lease_starts_anew_with_each_renewal_but_never_after_its_end() -> None:
    deadlines = Deadlines(10.0, 10 * S)
    assert deadlines.renew(9 * S)
    assert deadlines.lease_ends_ns == 19 * S
    assert not deadlines.renew(19 * S)
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
