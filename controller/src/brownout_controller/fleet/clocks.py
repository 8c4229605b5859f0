"""Where an agent's clock stands against ours, by four time stamps, as NTP has it (RFC 5905, section 8).

    we send at t0, it receives at t1, it answers at t2, we receive at t3
    offset = ((t1 - t0) + (t2 - t3)) / 2        true to +- ((t3 - t0) - (t2 - t1)) / 2

The exchange with the shortest round trip is the best one. Drift is bounded by forgetting exchanges that are old, and
an error grows with the time between exchange and stamp, into the past as well as into the future.
"""

from collections import deque
from dataclasses import dataclass, replace

KEPT = 64
FORGET_AFTER_NS = 120 * 10**9
DRIFT_PPM = 50
"""What a quartz may run off by; an old exchange's error grows by it."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One measurement: offset is the agent's CLOCK_BOOTTIME minus our monotonic clock."""

    at_ns: int
    offset_ns: int
    error_ns: int


def measure(t0_ns: int, t1_ns: int, t2_ns: int, t3_ns: int) -> Exchange:
    """The offset from one exchange; t0 and t3 on our clock, t1 and t2 on the agent's."""
    offset = ((t1_ns - t0_ns) + (t2_ns - t3_ns)) // 2
    return Exchange(t3_ns, offset, max(0, (t3_ns - t0_ns) - (t2_ns - t1_ns)) // 2)


class ClockEstimate:
    """The best of the latest exchanges with one agent."""

    def __init__(self) -> None:
        self._exchanges: deque[Exchange] = deque(maxlen=KEPT)

    def add(self, exchange: Exchange) -> None:
        """Take one measurement into account."""
        self._exchanges.append(exchange)

    def best(self, now_ns: int) -> Exchange | None:
        """The exchange with the least error as of now, drift included; None before the first one."""
        near = [e for e in self._exchanges if abs(now_ns - e.at_ns) <= FORGET_AFTER_NS]
        if not near and self._exchanges:
            near = [min(self._exchanges, key=lambda e: abs(now_ns - e.at_ns))]
        aged = [replace(e, error_ns=e.error_ns + abs(now_ns - e.at_ns) * DRIFT_PPM // 10**6) for e in near]
        return min(aged, key=lambda exchange: exchange.error_ns, default=None)

    def best_for(self, stamp_ns: int) -> Exchange:
        """The best exchange for a stamp of the agent's clock, which may be long past: a lost stream delivers late.

        Raises:
            LookupError: nothing was measured yet.
        """
        if not self._exchanges:
            raise LookupError("the clock was not measured yet")
        best = self.best(stamp_ns - self._exchanges[-1].offset_ns)
        assert best is not None, "there is an exchange"
        return best
