"""Datagrams with numbers, from one namespace to a socket in another: who gets them sees what became of each."""

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.host.network_pair import inside

PORT = 7300
PATIENCE_S = 2.0
"""So long one that has not come yet is waited for."""
QUIET_S = 0.1
"""Nothing for so long, and all have come."""
_NUMBER = struct.Struct("!I")
_AT_ONCE = 64
"""In small groups, so that no queue overflows and what is lost is lost by a fault alone."""


@contextmanager
def listening(namespace: str, address: str) -> Iterator[socket.socket]:
    """A UDP socket in this namespace that answers nothing."""
    with inside(namespace):
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
        listener.bind((address, PORT))
        yield listener


def sent(namespace: str, to: socket.socket, datagrams: int, *, size: int = 16, mark: int = 0) -> list[int]:
    """Send so many from this namespace, numbered from 0; the numbers of those that came, as they came."""
    came: list[int] = []
    missing = set(range(datagrams))

    def receive(patience_s: float) -> bool:
        if not select.select([to], [], [], patience_s)[0]:
            return False
        came.extend(_NUMBER.unpack_from(to.recv(2**16)))
        missing.discard(came[-1])
        return True

    with inside(namespace), socket.socket(to.family, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        client.connect(to.getsockname())
        for number in range(datagrams):
            client.send(_NUMBER.pack(number).ljust(size, b"."))
            while number % _AT_ONCE == _AT_ONCE - 1 and receive(0.005):
                pass
    while receive(PATIENCE_S if missing else QUIET_S):
        pass
    return came
