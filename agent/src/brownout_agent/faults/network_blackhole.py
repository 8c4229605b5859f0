"""`network.blackhole`: packets vanish, as if a peer, a link or a rack were gone.

Nothing answers: a TCP connect runs into its time-out, an open connection hangs. One difference to a dead link: a
packet that leaves is dropped in the output hook, where the kernel tells its own sender. A UDP `send` fails with EPERM
then, so a DNS query fails at once instead of timing out; with `direction: ingress` the query goes out and its answer
vanishes, which is silent.
"""

from brownout_agent.faults.contract import Effect
from brownout_agent.faults.network_rules import LOTS, Treatment, drop
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_table import NetworkFault, PacketCounts


class BlackholeParameters(NetworkParameters):
    """Which packets vanish."""


class NetworkBlackhole(NetworkFault[BlackholeParameters]):
    """Drops every packet that is meant."""

    kind = "network.blackhole"
    summary = "Drop all traffic to and from peers, ports or everyone, without an answer."
    Parameters = BlackholeParameters

    def treatment(self, parameters: BlackholeParameters, scope: Scope) -> Treatment:
        return drop(LOTS)

    def judge(self, parameters: BlackholeParameters, scope: Scope, counts: dict[str, PacketCounts]) -> Effect:
        return judge_blackhole(scope, counts)


def judge_blackhole(scope: Scope, counts: dict[str, PacketCounts]) -> Effect:
    """Proved when a packet was dropped: where nobody talks, a blackhole and a healthy network look the same."""
    seen = sum(count.seen for count in counts.values())
    dropped = sum(count.dropped for count in counts.values())
    if not seen:
        return Effect(
            100.0, None, "% of packets", False, f"no packet matched: nobody talked to {scope.text} during the fault"
        )
    each = " and ".join(f"{count.dropped} of {count.seen} {direction}" for direction, count in counts.items())
    return Effect(
        100.0, 100 * dropped / seen, "% of packets", dropped > 0, f"the kernel dropped {each} packets ({scope.text})"
    )
