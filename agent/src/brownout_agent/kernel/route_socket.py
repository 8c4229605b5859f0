"""Requests and dumps of rtnetlink(7), as bytes: what the kernel tells is what it takes back, as `ip route save` has it.

Standard library only, since undoing must cost the watchdog little (rtnetlink.py, which decodes, costs 27 MiB).
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

NEW_LINK, GET_LINK = 16, 18
NEW_ADDRESS, GET_ADDRESS = 20, 22
NEW_ROUTE, GET_ROUTE = 24, 26
NEW_NEIGHBOUR, GET_NEIGHBOUR = 28, 30
GET_NEXTHOP = 106
CREATE_NEW = 0x400 | 0x200
"""NLM_F_CREATE | NLM_F_EXCL: what is there already is an error and stays as it is."""
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _INTERRUPTED, _DUMP = 0x1, 0x4, 0x10, 0x300
_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr."""
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
_TYPE_MASK = 0x3FFF
"""Without NLA_F_NESTED and NLA_F_NET_BYTEORDER."""
_RECEIVE_BYTES = 2**18
_ANSWER_WITHIN_S = 5.0
_TRIES = 10


class Attribute(NamedTuple):
    """One attribute of a message: its type, with its flags, and its value."""

    type: int
    value: bytes


def parse_attributes(data: bytes) -> list[Attribute]:
    """The attributes that a message, or an attribute that nests, has. Pure."""
    found, at = [], 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found.append(Attribute(kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]))
        at += length + -length % 4
    return found


def pack_attributes(attributes: list[Attribute]) -> bytes:
    """The bytes of attributes, each padded to a multiple of four. Pure."""
    packed = b""
    for kind, value in attributes:
        length = _ATTRIBUTE.size + len(value)
        packed += _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)
    return packed


class RouteSocket:
    """A connection to the kernel's routing of the calling thread's network namespace, or to another part of it that
    lists what it has in the same way. For one thread.
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        """Raises OSError: no netlink socket is to be had."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(_ANSWER_WITHIN_S)
        self._number = 0

    def __enter__(self) -> "RouteSocket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def change(self, message: int, body: bytes, flags: int = 0) -> None:
        """Raises OSError: the kernel refused, with its errno."""
        self._send(message, _REQUEST | _ACK | flags, body)
        list(self._answers())

    def ask(self, message: int, body: bytes) -> list[bytes]:
        """The body of the answer to a question about one thing. Raises OSError as `change`."""
        self._send(message, _REQUEST | _ACK, body)
        return list(self._answers())

    def dump(self, message: int, body: bytes) -> list[bytes]:
        """The bodies of all there is of a kind. Raises OSError: the kernel refused, or it changed all the time."""
        for _ in range(_TRIES):
            self._send(message, _REQUEST | _DUMP, body)
            try:
                return list(self._answers())
            except InterruptedError:
                continue
        raise OSError(errno.EAGAIN, "what the kernel was asked to list kept changing")

    def _send(self, message: int, flags: int, body: bytes) -> None:
        self._number += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), message, flags, self._number, 0) + body)

    def _answers(self) -> Iterator[bytes]:
        """Until the kernel says that these were all, which it says of a single request by acknowledging it."""
        was_interrupted = False
        while True:
            data, at = self._socket.recv(_RECEIVE_BYTES), 0
            while at + _HEADER.size <= len(data):
                length, kind, flags, number, _ = _HEADER.unpack_from(data, at)
                body = data[at + _HEADER.size : at + length]
                at += length + -length % 4
                if number != self._number:
                    continue  # of a request that we gave up
                was_interrupted |= bool(flags & _INTERRUPTED)
                if kind in {_ERROR, _DONE}:
                    _raise(body)
                    if was_interrupted:
                        raise InterruptedError(errno.EINTR, "changed while it was listed")
                    return
                yield body


def _raise(body: bytes) -> None:
    """What an NLMSG_ERROR or NLMSG_DONE says; nothing where it says 0."""
    number = -_ERRNO.unpack_from(body)[0] if len(body) >= _ERRNO.size else 0
    if number:
        raise OSError(number, os.strerror(number))
