"""How long each packet is held: draws from a distribution, and the line in which packets wait. No clock, no I/O."""

import heapq
import math
import random
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

Distribution = Literal["uniform", "normal", "pareto"]
FARTHEST_JITTERS = 10
"""No packet is held longer than latency and ten times the jitter: a tail ends somewhere, as netem's tables do."""
_PARETO_SHAPE = 3.0
_PARETO_MEAN = _PARETO_SHAPE / (_PARETO_SHAPE - 1)
_PARETO_DEVIATION = math.sqrt(_PARETO_SHAPE / (_PARETO_SHAPE - 2)) / (_PARETO_SHAPE - 1)
_FLOWS_KEPT = 65_536
_STANDARD = NormalDist()
_ALMOST_ONE = 1 - 2**-53
_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Delays:
    """How long packets are held: `latency_ms`, and around it `jitter_ms`.

    uniform: between latency - jitter and latency + jitter. normal: jitter is the standard deviation. pareto: a Pareto
    distribution of shape 3, moved so that latency is its mean and jitter its standard deviation: most packets are
    somewhat early, a few are very late. `correlation` (0 to 1) ties each draw to the one before (a first-order
    autoregression of normal variates, whose quantile is taken), so that the distribution itself stays as it is.
    """

    latency_ms: float
    jitter_ms: float
    distribution: Distribution
    correlation: float

    @property
    def median_ms(self) -> float:
        """Half of the packets are held for no longer than this."""
        return self.quantile_ms(0.5)

    @property
    def longest_ms(self) -> float:
        """No packet is held for longer."""
        widths = 1 if self.distribution == "uniform" else FARTHEST_JITTERS
        return self.latency_ms + self.jitter_ms * widths

    def quantile_ms(self, share: float) -> float:
        """What this share of the packets (above 0 and below 1) is held for at most."""
        match self.distribution:
            case "uniform":
                deviation = 2 * share - 1
            case "normal":
                deviation = _STANDARD.inv_cdf(share)
            case "pareto":
                deviation = ((1 - share) ** (-1 / _PARETO_SHAPE) - _PARETO_MEAN) / _PARETO_DEVIATION
        return min(max(self.latency_ms + self.jitter_ms * deviation, 0.0), self.longest_ms)


class Draws:
    """One delay after the other."""

    def __init__(self, delays: Delays, rng: random.Random) -> None:
        self._delays = delays
        self._rng = rng
        self._last = rng.gauss(0, 1)
        self._fresh = math.sqrt(1 - delays.correlation**2)

    def next_ns(self) -> int:
        """How long the next packet is held."""
        if not self._delays.jitter_ms:
            return round(self._delays.latency_ms * _NS_PER_MS)
        if self._delays.correlation:
            self._last = self._delays.correlation * self._last + self._fresh * self._rng.gauss(0, 1)
            share = _STANDARD.cdf(self._last)
        else:
            share = self._rng.random()
        return round(self._delays.quantile_ms(min(max(share, 1 - _ALMOST_ONE), _ALMOST_ONE)) * _NS_PER_MS)


class Waiting(NamedTuple):
    """A packet in the line; times are of one monotonic clock. Due together, the first to come goes first."""

    due_ns: int
    place: int
    number: int
    since_ns: int


class Line:
    """Packets that wait until they are due. `is_fifo`: all are held for equally long, so that none overtakes another.

    Packets of one flow never overtake one another, unless `reorder`: one that draws a short delay behind one with a
    long delay leaves with it.
    """

    def __init__(self, delays: Delays, rng: random.Random, *, reorder: bool) -> None:
        self.is_fifo = not delays.jitter_ms
        self._draws = Draws(delays, rng)
        self._keeps_order = not reorder and not self.is_fifo
        self._waiting: list[Waiting] = []
        self._arrived = 0
        self._last_due_ns: dict[bytes, int] = {}

    def take(self, number: int, flow: bytes, now_ns: int) -> None:
        """A packet has come. `flow` is what all packets of its flow have in common."""
        due_ns = now_ns + self._draws.next_ns()
        if self._keeps_order:
            due_ns = self._last_due_ns[flow] = max(due_ns, self._last_due_ns.get(flow, 0))
            if len(self._last_due_ns) > _FLOWS_KEPT:
                self._last_due_ns = {one: due for one, due in self._last_due_ns.items() if due > now_ns}
        self._arrived += 1
        heapq.heappush(self._waiting, Waiting(due_ns, self._arrived, number, now_ns))

    def take_due(self, now_ns: int) -> list[Waiting]:
        """Those that are due, the earliest first; they wait no more."""
        due = []
        while self._waiting and self._waiting[0].due_ns <= now_ns:
            due.append(heapq.heappop(self._waiting))
        return due

    def next_due_ns(self) -> int | None:
        """When the next one is due; None when none waits."""
        return self._waiting[0].due_ns if self._waiting else None
