"""memory.leak: take more and more memory at a steady rate, as a program does that forgets to free it.

It grows to `size` (or `percent`) and stays there, or is still growing when its time is over. What it has is kept in
RAM, and the reserve is never taken (`memory_keeper.py`): others who need memory push it below its line.
"""

import functools
from typing import ClassVar

from pydantic import Field

from brownout_agent.faults.contract import ByteRate, Capability, Effect, Facts, Hold, Host, Meter, Record
from brownout_agent.faults.memory_keeper import (
    KeeperMeter,
    MemoryParameters,
    apply_keeper,
    detect_available,
    prepare_keeper,
)
from brownout_agent.faults.stressor import Stressor
from brownout_agent.kernel.memory import PAGE_BYTES
from brownout_agent.quantities import format_size

TOLERANCE = 0.01
"""A mean further from the mean of the asked line than this share of it, and what grows in two steps, is not proved."""
_STEP_EVERY_S = 0.1
_MIB = 2**20


class MemoryLeakParameters(MemoryParameters):
    """How fast it grows, how far, and what is never taken."""

    rate: ByteRate = Field(
        ge=PAGE_BYTES, le=4096 * _MIB, description="how fast it grows, like 10MiB/s; 4KiB/s to 4GiB/s"
    )


class MemoryLeak(Stressor[MemoryLeakParameters]):
    kind: ClassVar[str] = "memory.leak"
    summary: ClassVar[str] = "Take more and more memory at a steady rate, up to a size, down to a reserve"
    reverts: ClassVar[str] = "The kernel: the memory is freed when the holder dies, with the injector or by its timer."
    Parameters = MemoryLeakParameters

    def detect(self, host: Host) -> Capability:
        return detect_available()

    def prepare(self, parameters: MemoryLeakParameters, host: Host) -> Facts:
        return {**prepare_keeper(parameters), "rate_bps": parameters.rate}

    def apply(self, parameters: MemoryLeakParameters, facts: Facts, hold: Hold) -> None:
        apply_keeper(facts, hold, functools.partial(asked_bytes, facts), _STEP_EVERY_S)

    def measure(self, record: Record[MemoryLeakParameters], host: Host) -> Meter:
        return LeakMeter(record.facts)


def asked_bytes(facts: Facts, seconds: float) -> int:
    """How much is to be held so many seconds after the beginning, in whole pages: the asked line. Pure."""
    return min(int(facts["rate_bps"] * seconds), int(facts["asked_bytes"])) // PAGE_BYTES * PAGE_BYTES


class LeakMeter(KeeperMeter):
    """Each reading beside the asked line at the same moment."""

    def effect(self) -> Effect:
        rate_bps, most = self.facts["rate_bps"], self.facts["asked_bytes"]
        if not self.readings:
            return Effect(most, None, "bytes", False, f"The holder ended before it could be measured.{self.death()}")
        seconds = [(reading.at_ns - self.facts["began_ns"]) / 1e9 for reading in self.readings]
        asked = [asked_bytes(self.facts, after_s) for after_s in seconds]
        resident = [reading.resident_bytes for reading in self.readings]
        worst = max(abs(got - wanted) for got, wanted in zip(resident, asked, strict=True))
        said = (
            f"{format_size(resident[-1])} of {format_size(asked[-1])} were resident {seconds[-1]:.1f} s after it began "
            f"to grow by {format_size(rate_bps)}/s up to {format_size(most)}, {self.how_kept()}; it was "
            f"{format_size(worst)} off that line at the most, in {len(resident)} looks at /proc/PID/smaps."
        )
        is_on_line = is_near(_mean(resident), _mean(asked), rate_bps)
        if not is_on_line and not self.is_gone:
            said += f" {self.why_less()}"
        return Effect(
            asked=asked[-1],
            achieved=resident[-1],
            unit="bytes",
            proved=is_on_line and not self.is_gone,
            explanation=said + self.death(),
            samples=len(resident),
            lowest=min(resident),
            highest=max(resident),
        )


def is_near(resident: float, asked: float, rate_bps: int) -> bool:
    """Whether the mean of the readings is that of the asked line. It grows in steps, of which two are allowed beside
    the tolerance, but never so much that a process that does not grow would pass. Pure."""
    return abs(resident - asked) < TOLERANCE * asked + min(2 * _STEP_EVERY_S * rate_bps, asked / 2)


def _mean(values: list[int]) -> float:
    return sum(values) / len(values)
