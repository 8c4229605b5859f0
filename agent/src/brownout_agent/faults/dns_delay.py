"""`dns.delay`: names resolve late, as with a server that is far away or overloaded.

The query is held and then goes on to its server as it came, so the answer comes as much later. A program that waits for
less asks again meanwhile, and that query is held as well. When the fault ends, what is held goes on at once. Where its
holder was killed it is lost, as a packet may be, and whoever asked asks again; so it is when rules of others with hooks
of their own go meanwhile: the kernel then drops what waits in queues.
"""

from typing import Annotated

from pydantic import Field, model_validator

from brownout_agent.faults.contract import DurationMs, Effect, Facts
from brownout_agent.faults.dns_interception import Delay, Treatment
from brownout_agent.faults.dns_scope import DnsParameters
from brownout_agent.faults.dns_table import DnsFault, judge_share, nobody_asked
from brownout_agent.quantities import format_duration_ms

DELAY_MAX_MS = 60_000.0
"""No client waits for longer."""
_TOLERANCE_MS = 5.0
_TOLERANCE_SHARE = 0.05


class DelayParameters(DnsParameters):
    """Which names are late, and by how much."""

    delay: Annotated[DurationMs, Field(gt=0, le=DELAY_MAX_MS, description="how much later the answer comes, as 300ms")]
    jitter: Annotated[
        DurationMs, Field(ge=0, description="each delay is drawn from delay - jitter to delay + jitter, evenly")
    ] = 0.0

    @model_validator(mode="after")
    def _check_jitter(self) -> "DelayParameters":
        if self.jitter > self.delay:
            raise ValueError(f"a jitter of {self.jitter:g} ms is more than the delay of {self.delay:g} ms")
        return self


class DnsDelay(DnsFault[DelayParameters]):
    """Holds queries."""

    kind = "dns.delay"
    summary = "Let names resolve later than they would, others as always."
    Parameters = DelayParameters

    def treatment(self, parameters: DelayParameters, facts: Facts) -> Treatment:
        return Delay(parameters.delay, parameters.jitter)

    def judge(self, parameters: DelayParameters, counts: dict[str, int]) -> Effect:
        return judge_delay(parameters, counts)


def judge_delay(parameters: DelayParameters, counts: dict[str, int]) -> Effect:
    """Proved when queries were held as long as they should have been, within 5 ms and 5 %, and the share of them that
    was asked for, and when by the rules all of them went on. Pure.
    """
    unit = "ms"
    held = counts["asked"] - counts["passed"]
    if held and not counts["met"]:
        why = f"{held} queries are held; none has been for its whole delay"
        return Effect(parameters.delay, None, unit, False, why)
    if not counts["matched"]:
        return Effect(parameters.delay, None, unit, False, nobody_asked(parameters, counts))
    went_on = counts["passed"]
    share = judge_share(parameters, min(counts["met"], went_on), counts, f"{went_on} queries went on by the rules")
    if not counts["met"]:
        return Effect(parameters.delay, None, unit, False, share.explanation)
    held_ms, due_ms = (counts[name] / counts["met"] / 1_000 for name in ("held_us", "due_us"))
    is_held = abs(held_ms - due_ms) <= _TOLERANCE_MS + _TOLERANCE_SHARE * due_ms
    words = f"held for {format_duration_ms(held_ms)} on average, drawn were {format_duration_ms(due_ms)}"
    return Effect(parameters.delay, held_ms, unit, share.proved and is_held, f"{share.explanation}; {words}")
