"""What a controller shows of itself: its key and certificate, made anew in time."""

import datetime
import threading
from collections.abc import Callable, Iterable

from brownout_controller.fleet.authority import SERVER_LIFE, Authority, KeyPair

RENEW_AFTER = SERVER_LIFE * 2 / 3


class OwnPair:
    """This controller's key and certificate. Another pair whenever the authority has gone to another phase, or the
    certificate has lived two thirds of its life. Safe for several threads.
    """

    def __init__(self, authority: Authority, names: Callable[[], Iterable[str]] = tuple) -> None:
        """`names`: the host names and addresses by which it is reached at the time."""
        self._authority = authority
        self._names = names
        self._lock = threading.Lock()
        self._make()

    def __call__(self) -> KeyPair:
        """The pair that is to be shown now; the same object as long as it is the same pair."""
        with self._lock:
            if self._authority.rotation != self._rotation or _now() >= self._renew_at:
                self._make()
            return self._pair

    def _make(self) -> None:
        self._rotation = self._authority.rotation
        self._renew_at = _now() + RENEW_AFTER
        self._pair = self._authority.server_pair(self._names())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
