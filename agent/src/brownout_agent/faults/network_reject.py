"""`network.reject`: packets are refused, and their sender is told at once, as by a closed port or a firewall.

Who is told is who sent the packet that a rule refuses:

- packets that leave (egress): a program of this host. A new TCP connection fails at once, an open one at its next
  segment. The peer hears nothing.
- packets that arrive (ingress): the peer, in the same way. A program of this host whose question goes out hears
  nothing, since it is the answer that is refused: its `connect` times out.
- both: everybody, each by the first packet of its own.

By `answer`::

    refused              TCP: a reset, ECONNREFUSED for a new connection and ECONNRESET for an open one. Anything else:
                         ICMP port unreachable, ECONNREFUSED for a UDP socket that is connected
    host-unreachable     ICMP to all: EHOSTUNREACH for a new connection
    admin-prohibited     ICMP to all: EHOSTUNREACH (IPv6: EACCES) for a new connection and a connected UDP socket

Linux takes ICMP for no reason to give up an open TCP connection (RFC 1122, 4.2.3.9) nor, with host-unreachable, a UDP
socket: these hang until they time out. A new TCP connection over IPv6 looks at its ICMP only when it tries again, a
second later.

As with every packet that is dropped in the output hook, a UDP `send` itself fails with EPERM; its socket gets the ICMP
too. The kernel answers a peer by no more ICMP errors than net.ipv4.icmp_ratelimit allows, by default six at once and
then one a second; what it refuses beyond that vanishes. It answers by as many resets as there are segments.

Resets and ICMP errors themselves pass: nothing may be answered to them.
"""

from functools import partial
from typing import Literal

from pydantic import Field

from brownout_agent.faults.contract import Host, Meter, Record
from brownout_agent.faults.network_rules import Treatment
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_table import CountMeter, NetworkFault, judge_all

Answer = Literal["refused", "host-unreachable", "admin-prohibited"]
_ICMPX: dict[Answer, str] = {
    "refused": "port-unreachable",
    "host-unreachable": "host-unreachable",
    "admin-prohibited": "admin-prohibited",
}
# What the rules themselves answer passes the output hook as well, and would vanish there.
_UNANSWERABLE = (
    "tcp flags & rst == rst accept",
    "icmp type { destination-unreachable, time-exceeded, parameter-problem } accept",
    "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept",
)


class RejectParameters(NetworkParameters):
    """Which packets are refused, and how."""

    answer: Answer = Field(
        "refused",
        description="what the sender of a refused packet is told: refused is a TCP reset, and ICMP port unreachable "
        "for all else; host-unreachable and admin-prohibited are ICMP for TCP too",
    )


def refuse(answer: Answer) -> Treatment:
    """Answer every packet, and let it no further."""

    def rules(direction: str) -> list[str]:
        counted = f"counter name {direction}_dropped"
        by_reset = [f"meta l4proto tcp {counted} reject with tcp reset"] if answer == "refused" else []
        return [
            *_UNANSWERABLE,
            f"counter name {direction}_seen",
            *by_reset,
            f"{counted} reject with icmpx type {_ICMPX[answer]}",
        ]

    return Treatment(rules)


class NetworkReject(NetworkFault[RejectParameters]):
    """Refuses every packet that is meant."""

    kind = "network.reject"
    summary = "Refuse all traffic to and from peers, ports or everyone, at once: connection refused or unreachable."
    Parameters = RejectParameters

    def tried(self) -> Treatment:
        return refuse("refused")

    def treatment(self, parameters: RejectParameters, scope: Scope) -> Treatment:
        return refuse(parameters.answer)

    def measure(self, record: Record[RejectParameters], host: Host) -> Meter:
        return CountMeter(record, partial(judge_all, "refused"))
