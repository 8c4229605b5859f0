"""Who guesses at tokens is slowed down: by address, and by account."""

import ipaddress
import time
from collections import OrderedDict, deque
from threading import Lock

WINDOW_S = 60.0
PER_ORIGIN = 30
PER_ACCOUNT = 10
_REMEMBERED = 10_000


class Guesses:
    """Wrong tokens of the last minute. Safe for several threads."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = Lock()

    def wait_s(self, origin: str, account: str) -> float:
        """How many seconds nothing from this address, or for this account, is looked at; 0 when it is."""
        with self._lock:
            by_origin = self._left_s(f"origin {_one_host(origin)}", PER_ORIGIN)
            return max(by_origin, self._left_s(f"account {account}", PER_ACCOUNT))

    def wrong(self, origin: str, account: str) -> None:
        """A token was wrong; its account is "" where it named none."""
        with self._lock:
            self._note(f"origin {_one_host(origin)}", PER_ORIGIN)
            if account:
                self._note(f"account {account}", PER_ACCOUNT)

    def _note(self, key: str, most: int) -> None:
        self._wrong.setdefault(key, deque(maxlen=most)).append(time.monotonic())
        self._wrong.move_to_end(key)
        if len(self._wrong) > _REMEMBERED:
            self._wrong.popitem(last=False)

    def _left_s(self, key: str, most: int) -> float:
        times = self._wrong.get(key)
        if times is None or len(times) < most:
            return 0.0
        return max(0.0, times[0] + WINDOW_S - time.monotonic())


def _one_host(origin: str) -> str:
    """What one host can speak from: its IPv4 address, or any of an IPv6 /64 (RFC 4291, 2.5.4)."""
    try:
        address = ipaddress.ip_address(origin)
    except ValueError:
        return origin
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address), 64), strict=False))
