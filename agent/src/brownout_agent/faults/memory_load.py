"""memory.load: take memory and keep it in RAM, without taking the host down (`memory_keeper.py` says how)."""

from typing import ClassVar

from brownout_agent.faults.contract import Capability, Effect, Facts, Hold, Host, Meter, Record
from brownout_agent.faults.memory_keeper import (
    KeeperMeter,
    MemoryParameters,
    apply_keeper,
    detect_available,
    prepare_keeper,
)
from brownout_agent.faults.stressor import Stressor
from brownout_agent.quantities import format_size

TOLERANCE = 0.01
"""A mean further from the asked size than this share of it is not proved."""
_WATCH_EVERY_S = 0.2
"""No event tells that available memory has come to a level of our choice; pressure-stall triggers come after stalls."""


class MemoryLoadParameters(MemoryParameters):
    """How much to take, and what never to."""


class MemoryLoad(Stressor[MemoryLoadParameters]):
    kind: ClassVar[str] = "memory.load"
    summary: ClassVar[str] = "Take memory and keep it in RAM, down to a reserve"
    reverts: ClassVar[str] = "The kernel: the memory is freed when the holder dies, with the injector or by its timer."
    Parameters = MemoryLoadParameters

    def detect(self, host: Host) -> Capability:
        return detect_available()

    def prepare(self, parameters: MemoryLoadParameters, host: Host) -> Facts:
        return prepare_keeper(parameters)

    def apply(self, parameters: MemoryLoadParameters, facts: Facts, hold: Hold) -> None:
        apply_keeper(facts, hold, lambda _: int(facts["asked_bytes"]), _WATCH_EVERY_S)

    def measure(self, record: Record[MemoryLoadParameters], host: Host) -> Meter:
        return _LoadMeter(record.facts)


class _LoadMeter(KeeperMeter):
    """One size, at every reading."""

    def effect(self) -> Effect:
        asked = float(self.facts["asked_bytes"])
        if not self.readings:
            return Effect(asked, None, "bytes", False, f"The holder ended before it could be measured.{self.death()}")
        resident = [reading.resident_bytes for reading in self.readings]
        achieved = sum(resident) / len(resident)
        said = (
            f"{format_size(achieved)} of {format_size(asked)} were resident, {self.how_kept()}, on average of "
            f"{len(resident)} looks at /proc/PID/smaps."
        )
        if achieved < asked * (1 - TOLERANCE) and not self.is_gone:
            said += f" {self.why_less()}"
        return Effect(
            asked=asked,
            achieved=achieved,
            unit="bytes",
            proved=abs(achieved - asked) <= TOLERANCE * asked and not self.is_gone,
            explanation=said + self.death(),
            samples=len(resident),
            lowest=min(resident),
            highest=max(resident),
        )
