"""How long packets were held, counted by the holder where the injector can read it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from brownout_agent.kernel.tally import Tally

_RECEIVED, _RELEASED = "received", "released"
_STEP = 1.005
"""Each bucket ends this much later than the one before: half a percent is as fine as a delay is told."""
_SHORTEST_NS, _LONGEST_NS = 1_000, 100_000_000_000
_STEPS_PER_E = 1 / math.log(_STEP)
_BUCKETS = tuple(f"bucket {index}" for index in range(int(math.log(_LONGEST_NS / _SHORTEST_NS) * _STEPS_PER_E) + 1))
HELD_NAMES = (_RECEIVED, _RELEASED, *_BUCKETS)
"""What the holder counts by."""
_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Held:
    """Packets that the holder was handed, those that it let go, and these by how long it had held them."""

    received: int
    released: int
    buckets: tuple[int, ...]

    @classmethod
    def of(cls, noted: Mapping[str, int]) -> "Held":
        """Of what was counted by HELD_NAMES."""
        return cls(noted[_RECEIVED], noted[_RELEASED], tuple(noted[bucket] for bucket in _BUCKETS))

    def quantile_ms(self, share: float) -> float:
        """What this share (0 to 1) of the packets that were let go was held for at most, to half a percent.

        Raises:
            ValueError: none was let go.
        """
        rank = max(1, math.ceil(share * sum(self.buckets)))
        below = 0
        for index, count in enumerate(self.buckets):
            below += count
            if below >= rank:
                return float(_SHORTEST_NS * _STEP ** (index + 0.5) / _NS_PER_MS)
        raise ValueError("no packet was let go")


class HeldTally:
    """The holder's end. Gone with the holder."""

    def __init__(self) -> None:
        """Raises OSError when there is no memory to be had."""
        self._tally = Tally(HELD_NAMES)
        self.descriptor = self._tally.descriptor

    def note_received(self) -> None:
        """A packet has come."""
        self._tally.add(_RECEIVED)

    def note_released(self, held_ns: int) -> None:
        """A packet was let go after so long."""
        index = int(math.log(held_ns / _SHORTEST_NS) * _STEPS_PER_E) if held_ns > _SHORTEST_NS else 0
        self._tally.add(_BUCKETS[min(index, len(_BUCKETS) - 1)])
        self._tally.add(_RELEASED)
