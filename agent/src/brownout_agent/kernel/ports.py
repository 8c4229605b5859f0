"""Taking a port of this network namespace so that nobody else can bind it, and seeing whether one can be bound."""

import ctypes
import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass

PROTOCOLS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_SO_ATTACH_FILTER = 26
_BPF_RET = 0x06
"""Ends a socket filter with the number of bytes that go on: 0 drops the packet (linux/bpf_common.h)."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """What bind(2) gives to one at a time. Port 0 is any free one."""

    protocol: str
    """`tcp` or `udp`."""
    address: str
    """IPv4 or IPv6; `0.0.0.0` and `::` are every address of their own family."""
    port: int

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.protocol} {address}:{self.port}"


def take(place: Place) -> socket.socket:
    """Bind it, TCP listens as well; nobody else can bind it until the socket is closed. What arrives there is dropped
    before anything of it is kept: who connects has no answer, as from a host that is down.

    Raises:
        OSError: EADDRINUSE, EADDRNOTAVAIL, EACCES, or there is no such family of addresses.
    """
    taken = _new_socket(place)
    try:
        _drop_what_arrives(taken)
        taken.bind((place.address, place.port))
        if place.protocol == "tcp":
            taken.listen(0)
    except OSError:
        taken.close()
        raise
    return taken


def can_bind(place: Place) -> bool:
    """Whether a server could bind it now; by trying, and giving it back at once.

    Raises:
        OSError: it is not to be had for another reason than that somebody has it.
    """
    with _new_socket(place) as trial:
        try:
            trial.bind((place.address, place.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def _new_socket(place: Place) -> socket.socket:
    is_v6 = ipaddress.ip_address(place.address).version == 6
    made = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, PROTOCOLS[place.protocol])
    if is_v6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if place.protocol == "tcp":
        # As servers do: what is left of closed connections (TIME_WAIT) is no obstacle. A listener still is, to everyone
        # (socket(7)), and we become one. UDP has no such state, and the option would let others in beside us.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def _drop_what_arrives(taken: socket.socket) -> None:
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(instruction))  # struct sock_fprog: how many, and where
    taken.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
