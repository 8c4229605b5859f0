"""The owner epoch that a host obeys: it only rises, and by a bounded amount a day.

Whoever may speak as a controller may raise it. Without a bound one message could raise it so high that no other
controller can follow, and the host would obey nobody else for good. A controller that is told of a larger epoch than it
knows of goes beyond it, so within the bound no host is lost.
"""

from dataclasses import dataclass

A_DAY_MAX = 1_000_000
"""Far more hand-overs than a host has in a day; at this pace EPOCH_MAX is twelve billion years away."""
EPOCH_MAX = 2**62
"""What fits every database that keeps it, with room above."""
DAY_NS = 24 * 3600 * 10**9


class EpochRefused(Exception):
    """An epoch that this host does not obey; the text says which it does."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The largest epoch that was obeyed, and where it stood when the present 24 hours began."""

    number: int = 0
    day_first: int = 0
    day_began_ns: int = 0
    """By the wall clock. One that was set back begins a day anew."""

    def raised(self, to: int, now_ns: int) -> "Epoch":
        """This epoch once `to` is obeyed.

        Raises:
            EpochRefused: it is older, or more than A_DAY_MAX beyond where the day began.
        """
        if to < self.number:
            raise EpochRefused(f"epoch {to} is older than {self.number}, which this host obeys")
        if to == self.number:
            return self
        is_same_day = 0 <= now_ns - self.day_began_ns < DAY_NS
        first, began_ns = (self.day_first, self.day_began_ns) if is_same_day else (self.number, now_ns)
        if to > min(first + A_DAY_MAX, EPOCH_MAX):
            raise EpochRefused(
                f"epoch {to} is more than {A_DAY_MAX} above {first}, where this host stood when its day began: no "
                "controller in its right mind goes so far"
            )
        return Epoch(to, first, began_ns)
