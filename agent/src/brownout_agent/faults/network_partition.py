"""`network.partition`: hosts no longer hear each other, as when a switch or a link between two places is gone.

On each host it is what `network.blackhole` is; which hosts are parted from which is worked out by the controller, from
two targets (`to`) or from a shape that cuts one target, so that all of them have their share of one plan.
"""

from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from brownout_agent.faults.contract import Facts, Host, Meter, Record, Refusal
from brownout_agent.faults.network_rules import Treatment, drop
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_table import CountMeter, NetworkFault, judge_all

Shape = Literal["halves", "majority", "isolate", "bridge", "ring"]


class PartitionParameters(NetworkParameters):
    """Who is parted from whom: `to`, or a shape that cuts the fault's own target."""

    shape: Shape | None = Field(
        None,
        description="how the target's own hosts are parted, by the plan's seed: `halves`; `majority`, the largest "
        "minority from the others; `isolate`, one host from the others; `bridge`, two halves that both see one host; "
        "`ring`, each host sees a majority, and no two the same",
    )

    @model_validator(mode="after")
    def _is_from_somebody(self) -> "PartitionParameters":
        if (self.shape is None) == (not self.to):
            raise ValueError("say from whom: `to` (another target, a host or a network) or a `shape`, not both")
        if self.shape in {"bridge", "ring"} and self.direction != "both":
            raise ValueError(f"a {self.shape} is parted both ways: leave out `direction`")
        return self


class NetworkPartition(NetworkFault[PartitionParameters]):
    """Drops every packet from and to the hosts of the other side."""

    kind = "network.partition"
    summary = "Part hosts from each other: two targets, or one target in halves, a minority, a bridge or a ring."
    Parameters = PartitionParameters

    def prepare(self, parameters: PartitionParameters, host: Host) -> Facts:
        if parameters.shape is not None:
            reason = f"a {parameters.shape} is cut by the controller, which names each host's peers; it named none"
            raise Refusal(reason, "give `to`, or use a controller of the agent's version")
        return super().prepare(parameters, host)

    def treatment(self, parameters: PartitionParameters, scope: Scope) -> Treatment:
        return drop(100)

    def measure(self, record: Record[PartitionParameters], host: Host) -> Meter:
        return CountMeter(record, partial(judge_all, "dropped"))
