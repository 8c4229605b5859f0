"""Where an agent's clock stands against ours, by four time stamps, as NTP has it (RFC 5905, section 8).

    we send at t0, it receives at t1, it answers at t2, we receive at t3
    offset = ((t1 - t0) + (t2 - t3)) / 2        true to +- ((t3 - t0) - (t2 - t1)) / 2

The exchange with the shortest round trip is the best one. Drift is bounded by forgetting exchanges that are old, and
an error grows with the time between exchange and stamp, into the past as well as into the future. It is rounded up.

The offset was true at some instant from t0 to t3; so it is true at t3 to that error and what drifts in (t3 - t0). What
was stamped a distance d from t3, measured with that same offset, happened within d + E of it, where E is the error in
question: E <= error + drift * (d + E), hence E <= (error + drift * d) / (1 - drift).
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
    round_trip = max(0, (t3_ns - t0_ns) - (t2_ns - t1_ns))
    return Exchange(t3_ns, offset, _rounded_up(round_trip, 2) + _rounded_up((t3_ns - t0_ns) * DRIFT_PPM, 10**6))


class ClockEstimate:
    """The best of the latest exchanges with one agent."""

    def __init__(self) -> None:
        self._exchanges: deque[Exchange] = deque(maxlen=KEPT)

    def add(self, exchange: Exchange) -> None:
        """Take one measurement into account."""
        self._exchanges.append(exchange)

    def best(self, now_ns: int) -> Exchange | None:
        """The exchange with the least error as of now, drift included; None before the first one."""
        return _best([(exchange, abs(now_ns - exchange.at_ns)) for exchange in self._exchanges])

    def best_for(self, stamp_ns: int) -> Exchange:
        """The best exchange for a stamp of the agent's clock, which may be long past: a lost stream delivers late.

        Raises:
            LookupError: nothing was measured yet.
        """
        found = _best([(one, abs(stamp_ns - one.offset_ns - one.at_ns)) for one in self._exchanges])
        if found is None:
            raise LookupError("the clock was not measured yet")
        return found


def _best(exchanges: list[tuple[Exchange, int]]) -> Exchange | None:
    """Of exchanges and how far each is away, in ns: the one whose error is the least by now, with that error."""
    if not exchanges:
        return None
    reach_ns = max(FORGET_AFTER_NS, min(away_ns for _, away_ns in exchanges))
    aged = [replace(one, error_ns=_aged(one.error_ns, away_ns)) for one, away_ns in exchanges if away_ns <= reach_ns]
    return min(aged, key=lambda exchange: exchange.error_ns)


def _aged(error_ns: int, away_ns: int) -> int:
    return _rounded_up(error_ns * 10**6 + away_ns * DRIFT_PPM, 10**6 - DRIFT_PPM)


def _rounded_up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
