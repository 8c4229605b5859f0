"""`network.loss`: a share of the packets vanishes, each by its own draw, as on a bad cable or a full queue.

Each direction loses `percent` of its packets: with `direction: both` a request and its answer both arrive with
probability (1 - percent/100)^2. The kernel draws (`numgen random`), so a run's seed does not repeat which packets go.
What counts as a packet is what passes the host's input and output hooks: a burst that the network card splits or
merges (TSO, GRO) is one. A packet that leaves is dropped where the kernel tells its own sender: UDP gets EPERM, and
TCP sends again without waiting for a time-out, so a flow is slowed down less than by loss on the wire. Use
`direction: ingress` on the peer for that.
"""

from functools import partial
from typing import Annotated

from pydantic import Field

from brownout_agent.faults.contract import Effect, Host, Meter, Percent, Record
from brownout_agent.faults.network_rules import Treatment, drop
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_share import judge_share
from brownout_agent.faults.network_table import CountMeter, NetworkFault, PacketCounts


class LossParameters(NetworkParameters):
    """How many of which packets vanish."""

    percent: Annotated[Percent, Field(description="share of packets lost, in each direction; above 0 and up to 100")]


class NetworkLoss(NetworkFault[LossParameters]):
    """Drops a share of the packets that are meant."""

    kind = "network.loss"
    summary = "Lose a percentage of the packets to and from peers, ports or everyone."
    Parameters = LossParameters

    def treatment(self, parameters: LossParameters, scope: Scope) -> Treatment:
        return drop(parameters.percent)

    def measure(self, record: Record[LossParameters], host: Host) -> Meter:
        return CountMeter(record, partial(judge_loss, record.parameters.percent))


def judge_loss(percent: float, scope: Scope, counts: dict[str, PacketCounts]) -> Effect:
    """Proved when the share that was asked for explains what was dropped. Pure."""
    seen = sum(count.seen for count in counts.values())
    dropped = sum(count.dropped for count in counts.values())
    return judge_share(percent, scope, seen, dropped, f"the kernel dropped {dropped} of {seen} packets ({scope.text})")
