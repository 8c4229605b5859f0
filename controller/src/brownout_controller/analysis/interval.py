"""A measured quantity with its uncertainty, and what may be said when it is held against a limit."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

from brownout_controller.record import Verdict

_ORDERINGS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Interval:
    """The best estimate, and the range that certainly holds the truth. `high` is infinite where nothing bounds it."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Interval":
        """The same quantity in another unit."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)

    def judge(self, comparison: str, limit: float) -> Verdict:
        """HELD if the whole range satisfies `comparison limit`, DEVIATED if none of it does, else INCONCLUSIVE.

        `comparison` is one of `< <= > >= == !=`.
        """
        if comparison in {"==", "!="}:
            return self._judge_equality(comparison, limit)
        satisfies = _ORDERINGS[comparison]
        ends = satisfies(self.low, limit), satisfies(self.high, limit)
        if all(ends):
            return Verdict.HELD
        return Verdict.INCONCLUSIVE if any(ends) else Verdict.DEVIATED

    def _judge_equality(self, comparison: str, limit: float) -> Verdict:
        if self.low == self.high == limit:
            return Verdict.HELD if comparison == "==" else Verdict.DEVIATED
        if self.low <= limit <= self.high:
            return Verdict.INCONCLUSIVE
        return Verdict.DEVIATED if comparison == "==" else Verdict.HELD


def exactly(value: float) -> Interval:
    """A quantity without uncertainty, such as a count."""
    return Interval(value, value, value)


def at_least(value: float) -> Interval:
    """What had not ended when we stopped looking: a bound from below and none from above."""
    return Interval(value, value, math.inf)
