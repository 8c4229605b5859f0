"""Which controller this agent speaks to: those that it was told of, in turn, with back-off between the tries.

The one that it spoke to last comes first: a run's controller is not left for a short break. Where the agent joined
stays known whatever it is told later, and may be a DNS name that leads to several.
"""

import asyncio
import logging
import random
import socket
from collections import deque

from brownout_agent.agent.identity import Membership

BACK_OFF_S = (0.5, 10.0)
"""Full jitter below a bound that doubles with every round from the first of these to the second: when a controller
dies, its agents do not come to the next one all at once, and the first try of each is soon. The second bound leaves
time for several tries before a controller that began again gives up on a host (40 s), whose run it would have to end
without knowing how the host is."""
RESOLVE_WITHIN_S = 2.0
CONTROLLERS_MAX = 16
"""More than a cluster has; each is one more address that no fault may cut."""

PORT_MAX = 65_535

Addresses = tuple[tuple[str, int], ...]

log = logging.getLogger(__name__)


class Controllers:
    """Every controller that is known, and whose turn it is."""

    def __init__(self, membership: Membership) -> None:
        """Begin with those that were kept when the agent ended."""
        self._known = membership.in_order
        self._turns: deque[str] = deque()
        self._rounds = 0
        self._resolved: dict[str, Addresses] = {}
        self.changed = asyncio.Event()
        """Set when another one became known."""

    def next(self) -> str:
        """Whose turn it is now, HOST:PORT."""
        if not self._turns:
            self._turns.extend(self._known)
            self._rounds += 1
        return self._turns.popleft()

    def back_off_s(self) -> float:
        """How long to wait before the next try."""
        first_s, most_s = BACK_OFF_S
        return random.uniform(0, min(most_s, first_s * 2 ** max(self._rounds - 1, 0)))  # noqa: S311 - spreads load

    def welcomed(self) -> None:
        """One of them took this agent in; when it goes, the next round begins with it, and soon."""
        self._turns.clear()
        self._rounds = 0

    def told(self, membership: Membership) -> None:
        """There are others now."""
        if membership.in_order != self._known:
            self._known = membership.in_order
            self._turns.clear()
            self.changed.set()

    async def addresses(self) -> Addresses:
        """Address and port of every one of them. For a name that does not resolve now, those that it had last."""
        found = await asyncio.gather(*(_resolve(where) for where in self._known))
        answered = {where: addresses for where, addresses in zip(self._known, found, strict=True) if addresses}
        self._resolved = {where: self._resolved.get(where, ()) for where in self._known} | answered
        return tuple(sorted({peer for addresses in self._resolved.values() for peer in addresses}))


def is_address(where: str) -> bool:
    """Whether this is HOST:PORT."""
    host, _, port = where.rpartition(":")
    return bool(host) and port.isascii() and port.isdecimal() and 0 < int(port[:6]) <= PORT_MAX


async def _resolve(where: str) -> Addresses:
    """Nothing when it cannot be done now."""
    host, _, port = where.rpartition(":")
    looking = asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    try:
        async with asyncio.timeout(RESOLVE_WITHIN_S):
            infos = await looking
    except OSError as error:  # TimeoutError is one
        log.warning("no address of %s is known now: %s", host, error or f"no answer within {RESOLVE_WITHIN_S:g} s")
        return ()
    return tuple(sorted({(str(info[4][0]), int(info[4][1])) for info in infos}))
