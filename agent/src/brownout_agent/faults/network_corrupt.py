"""`network.corrupt`: one bit of a packet is wrong, as from a bad cable, port or memory module on the way.

The checksums stay those of the packet as it was, so the kernel that gets it drops it: TCP sends it again, and a UDP
datagram is lost without a word. What programs see is loss; counters tell the difference (`nstat`: TcpInCsumErrors,
UdpInCsumErrors), and a packet that leaves is lost on its way, not under its sender's hands as by network.loss. What has
no checksum (UDP over IPv4 may leave it out) arrives with its wrong bit. So it is with netem's `corrupt`, which chooses
among all bits of a packet, those of its addresses too.

The kernel draws (`numgen random`), and only those that are drawn are handed to the holder, which chooses the bit:
behind the IP header, so that the packet still comes to where it was going, and behind the ports where there is more.
Which bits these are the seed says, in the order in which packets came. What counts as a packet is what passes the
host's input and output hooks: a burst that the network card splits or merges (TSO, GRO) is one, and all of its packets
are corrupted.

What carries this, what it is limited to and what happens when the holder dies: network_queue.py.
"""

import random
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from brownout_agent.faults.contract import Effect, Host, Meter, Percent, Record
from brownout_agent.faults.network_queue import RECEIVED, QueueFault, QueueMeter, judge_passed
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_share import judge_share
from brownout_agent.kernel.ip_packets import length_of
from brownout_agent.kernel.packet_queue import LARGEST_BYTES, Packet, PacketQueue
from brownout_agent.kernel.tally import Tally

_CORRUPTED = "corrupted"
_NAMES = (RECEIVED, _CORRUPTED)
_IPV6_HEADER = 40
_PORTS_AND_CHECKSUM = 8
"""The header of UDP. A wrong bit in its checksum could make it none, one in its length another datagram's."""
_SOURCE_PORT = 2


class CorruptParameters(NetworkParameters):
    """How many of which packets have a wrong bit."""

    percent: Annotated[
        Percent, Field(description="share of packets with a wrong bit, in each direction; above 0 and up to 100")
    ]


class NetworkCorrupt(QueueFault[CorruptParameters]):
    """Turns a bit round."""

    kind = "network.corrupt"
    summary = "Let a percentage of the packets to and from peers, ports or everyone have a wrong bit, which drops them."
    Parameters = CorruptParameters
    is_whole = False

    def percent(self, parameters: CorruptParameters) -> float:
        return parameters.percent

    def start_bytes(self, parameters: CorruptParameters) -> int:
        return LARGEST_BYTES

    def handler(self, parameters: CorruptParameters, queue: PacketQueue, rng: random.Random) -> "_Corrupting":
        return _Corrupting(queue, rng)

    def measure(self, record: Record[CorruptParameters], host: Host) -> Meter:
        return _CorruptMeter(record)


class _Corrupting:
    """Lets each packet go at once, with a wrong bit."""

    def __init__(self, queue: PacketQueue, rng: random.Random) -> None:
        self._queue = queue
        self._rng = rng
        self._counts = Tally(_NAMES)
        self.tally = self._counts.descriptor

    def take(self, packet: Packet, now_ns: int) -> None:
        self._counts.add(RECEIVED)
        corrupted = flip(packet.start, self._rng)
        if corrupted == packet.start:
            self._queue.accept([packet.number])
            return
        self._queue.replace(packet.number, corrupted)
        self._counts.add(_CORRUPTED)

    def let_go(self, now_ns: int) -> None:
        """Nothing waits."""

    def next_due_ns(self) -> None:
        """Nothing waits."""


def flip(packet: bytes, rng: random.Random) -> bytes:
    """The IP packet with one bit turned round, behind its IP header. As it is when there is nothing, and when it is not
    whole, as the largest of the loopback interface.
    """
    if length_of(packet) > len(packet):
        return packet
    header = _IPV6_HEADER if packet[:1] >= b"\x60" else (packet[0] & 15) * 4
    body = len(packet) - header
    if body > _PORTS_AND_CHECKSUM:
        at = rng.randrange(header + _PORTS_AND_CHECKSUM, len(packet))
    elif body > 0:
        at = rng.randrange(header, header + min(body, _SOURCE_PORT))
    else:
        return packet
    return packet[:at] + bytes([packet[at] ^ 1 << rng.randrange(8)]) + packet[at + 1 :]


class _CorruptMeter(QueueMeter):
    """Whom the kernel drew, and whom the holder says that it corrupted."""

    def __init__(self, record: Record[CorruptParameters]) -> None:
        super().__init__(record, _NAMES)
        self._percent = record.parameters.percent

    def judged(self) -> Effect:
        judged = judge_corrupt(self._percent, self.scope, self.seen, self.meant, self.noted)
        return judge_passed(judged, self.seen, self.passed)


def judge_corrupt(percent: float, scope: Scope, seen: int, drawn: int, noted: Mapping[str, int]) -> Effect:
    """Proved when the share that was asked for explains how many were drawn, and these were corrupted. Pure."""
    corrupted = noted[_CORRUPTED]
    counted = f"the kernel drew {drawn} of {seen} packets ({scope.text}), the holder sent {corrupted} with a wrong bit"
    return judge_share(percent, scope, seen, min(drawn, corrupted), counted)
