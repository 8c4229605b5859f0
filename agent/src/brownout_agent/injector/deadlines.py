"""Until when a fault may go on, and what is to be said of it when that time has come. Pure: no clock is read here.

All times are CLOCK_BOOTTIME in nanoseconds. The injector watches them, and tells the holder the earliest of them, so
that the kernel ends the fault KERNEL_MARGIN_S later where the injector did not.
"""

from dataclasses import dataclass

from brownout_agent.faults.contract import TRIAL_S
from brownout_agent.injector.lifecycle import Cause, End

KERNEL_MARGIN_S = 0.5
"""The kernel's timer fires this much after the injector's, so that the orderly way is the usual one."""


@dataclass(slots=True)
class Deadlines:
    """The ends that one fault can come to by time alone."""

    lease_s: float
    lease_ends_ns: int
    ends_ns: int | None = None
    """When its time is up; None until it is in effect."""
    trial_ends_ns: int | None = None
    """Until when it must be confirmed; None for one that is or need not be."""

    def renew(self, now_ns: int) -> bool:
        """Start the lease anew. False where it had run out: such a renewal waited for a frozen injector."""
        if now_ns >= self.lease_ends_ns:
            return False
        self.lease_ends_ns = now_ns + int(self.lease_s * 1e9)
        return True

    @property
    def earliest_ns(self) -> int:
        """The first of them."""
        return min(end for end in (self.lease_ends_ns, self.ends_ns, self.trial_ends_ns) if end is not None)

    def due(self, now_ns: int) -> End | None:
        """Why the fault has to end by now; None while it may go on."""
        if self.ends_ns is not None and now_ns >= self.ends_ns:
            return End(Cause.DURATION)
        if now_ns >= self.lease_ends_ns:
            return End(Cause.LEASE_LOST, f"nobody renewed the lease of {self.lease_s:g} s")
        if self.trial_ends_ns is not None and now_ns >= self.trial_ends_ns:
            reason = f"within {TRIAL_S:g} s nobody confirmed that the agent still reaches its controller"
            return End(Cause.CONTROL_LOST, reason)
        return None
