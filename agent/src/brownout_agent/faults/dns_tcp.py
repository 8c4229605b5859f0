"""A DNS answer of ours in a TCP connection between a client of this host and a server, without a socket of ours. Pure.

A query's segment is turned round: it becomes the server's answer to it, and the server's FIN, since no more can come of
this connection (RFC 7766 lets a server close whenever it likes). The server never had the query. So the client's next
segment becomes a RST to the server, at the number that it waits for, and the client's own FIN is acknowledged.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

from brownout_agent.kernel.ip_packets import ACK, FIN, PSH, RST, SYN, Ends, Segment

_KEPT = 4_096
"""Connections that are remembered; the rest of an older one is no more answered, and its client's kernel gives up."""


@dataclass(slots=True)
class _Takeover:
    answer: Segment
    server_waits_for: int
    is_server_free: bool = False
    """It has had its RST."""


class Takeovers:
    """The connections whose server's part has been taken over."""

    def __init__(self) -> None:
        self._taken: OrderedDict[Ends, _Takeover] = OrderedDict()

    def begin(self, query: Segment, payload: bytes) -> Segment:
        """The answer to this segment."""
        times = query.timestamps and (query.timestamps[1], query.timestamps[0])  # the server's last one, and its echo
        answer = Segment(query.ends.reverse, query.acknowledged, query.next_sequence, FIN | PSH | ACK, payload, times)
        self._taken[query.ends] = _Takeover(answer, query.sequence)
        while len(self._taken) > _KEPT:
            self._taken.popitem(last=False)
        return answer

    def has(self, segment: Segment) -> bool:
        """Whether this client's segment belongs to one of them, and not to a new connection with the same ends."""
        if segment.flags & SYN:
            self._taken.pop(segment.ends, None)
        return segment.ends in self._taken

    def follow(self, segment: Segment) -> Segment | None:
        """What becomes of a client's further segment; None: nothing."""
        taken = self._taken[segment.ends]
        if segment.payload and segment.sequence == taken.server_waits_for:
            return replace(taken.answer, timestamps=_echo(segment, taken))  # it asks again: the answer was lost
        if not taken.is_server_free:
            taken.is_server_free = True
            return Segment(segment.ends, taken.server_waits_for, 0, RST)
        if segment.flags & FIN:
            back = segment.ends.reverse
            return Segment(back, taken.answer.next_sequence, segment.next_sequence, ACK, b"", _echo(segment, taken))
        return None


def _echo(segment: Segment, taken: _Takeover) -> tuple[int, int] | None:
    """The server's clock stands still in what we say; the client's is told back."""
    if segment.timestamps is None or taken.answer.timestamps is None:
        return None
    return taken.answer.timestamps[0], segment.timestamps[0]
