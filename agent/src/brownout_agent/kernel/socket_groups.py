"""TCP connections by the control group of their socket, as sock_diag(7) lists them (linux/inet_diag.h).

A socket has the group in which its maker was when it was made, and keeps it: who moves into a group later takes none
along. One that a listening socket makes has the group of that.
"""

import ipaddress
import os
import socket
import struct
from collections.abc import Set
from pathlib import Path

from brownout_agent.kernel.route_socket import RouteSocket, parse_attributes
from brownout_agent.kernel.tcp_connections import OPEN, Address, Connection

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_CGROUP_ID = 21
_REQUEST = struct.Struct("=BBBxI48x")
"""struct inet_diag_req_v2: family, protocol, extensions, states as a set of bits; any address."""
_MESSAGE_BYTES = 72
"""struct inet_diag_msg."""
_PORTS_AT, _SOURCE_AT, _DESTINATION_AT = 4, 8, 24
_STATES = sum(1 << int(state, 16) for state in OPEN)


def id_of(group: Path) -> int | None:
    """The kernel's number of a group of version 2, never given twice; None where there is no such group now."""
    try:
        return group.stat().st_ino
    except FileNotFoundError:
        return None


def ids_below(group: Path) -> set[int]:
    """The numbers of a group and of all groups below it, as far as they are there."""
    found = {id_of(Path(folder)) for folder, _, _ in os.walk(group)}
    return {number for number in found if number is not None}


def read_open_in(groups: Set[int]) -> set[Connection]:
    """As `read_open` of tcp_connections.py, those of sockets in the groups of these numbers.

    Raises:
        OSError: the kernel does not list them.
    """
    with RouteSocket(_NETLINK_SOCK_DIAG) as diag:
        listed = [
            message
            for family in (socket.AF_INET, socket.AF_INET6)
            for message in diag.dump(_SOCK_DIAG_BY_FAMILY, _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _STATES))
        ]
    return {_connection(message) for message in listed if _group(message) in groups}


def _group(message: bytes) -> int:
    attributes = dict(parse_attributes(message[_MESSAGE_BYTES:]))
    return struct.unpack("=Q", attributes[_CGROUP_ID])[0] if _CGROUP_ID in attributes else 0


def _connection(message: bytes) -> Connection:
    own_port, peer_port = struct.unpack_from(">HH", message, _PORTS_AT)
    own, peer = (_address(message[0], message[at : at + 16]) for at in (_SOURCE_AT, _DESTINATION_AT))
    return Connection(own, own_port, peer, peer_port)


def _address(family: int, packed: bytes) -> Address:
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(packed[:4])
    address = ipaddress.IPv6Address(packed)
    return address.ipv4_mapped or address
