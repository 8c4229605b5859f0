"""The owner epoch that a host obeys: it only rises, and by a bounded step.

Whoever may speak as a controller may raise it. Without a bound one message could raise it so high that no other
controller can follow, and the host would obey nobody else for good. A controller that is told of a larger epoch than it
knows of goes one beyond it, so within the bound no host is ever lost.
"""

STEP_MAX = 1_000_000
"""More hand-overs than a host misses. Each step is synced to disk: a thousand a second reach EPOCH_MAX in 146 years."""
EPOCH_MAX = 2**62
"""What fits every database that keeps it, with room above."""


class EpochRefused(Exception):
    """An epoch that this host does not obey; the text says which it does."""


def check_step(obeyed: int, to: int) -> None:
    """Let an epoch pass that may follow the largest one that was obeyed, or be it.

    Raises:
        EpochRefused: it is older, or beyond what any controller comes to by hand-overs.
    """
    if to < obeyed:
        raise EpochRefused(f"epoch {to} is older than {obeyed}, which this host obeys")
    if to > min(obeyed + STEP_MAX, EPOCH_MAX):
        raise EpochRefused(
            f"epoch {to} is more than {STEP_MAX} beyond {obeyed}, which this host obeys: no hand-over leads so far"
        )
