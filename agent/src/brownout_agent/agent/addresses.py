"""Where other hosts reach this one: what a fault means that names this host as a peer.

Read without netlink, which the agent's unit does not allow: IPv4 addresses by netdevice(7), IPv6 ones from /proc.
"""

import array
import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ADDRESSES_MAX = 256
"""So many are told; a host with more tells none, since a part of them would cut a part of its ways."""
_SIOCGIFCONF, _SIOCGIFFLAGS, _IFF_UP = 0x8912, 0x8913, 1
_IFREQ = struct.Struct("16s4x4s16x")
"""struct ifreq with a sockaddr_in: the interface's name, the address."""
_IF_INET6 = Path("/proc/self/net/if_inet6")


def own_addresses() -> tuple[str, ...]:
    """The IPv4 and IPv6 addresses of all interfaces that are up, sorted; without those that no other host can reach it
    by: of the loopback, and local to a link.
    """
    found: list[Address] = [*_read_v4(), *_read_v6()]
    told = sorted({str(address) for address in found if _is_reached(address)})
    return tuple(told) if len(told) <= ADDRESSES_MAX else ()


def _read_v4() -> list[ipaddress.IPv4Address]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        return [
            ipaddress.IPv4Address(address)
            for name, address in _IFREQ.iter_unpack(_interfaces(asking))
            if _is_up(asking, name)
        ]


def _interfaces(asking: socket.socket) -> bytes:
    """A struct ifreq for every address. The kernel fills what room there is, and does not say that it was too small."""
    room = 32 * _IFREQ.size
    while True:
        buffer = array.array("B", bytes(room))
        answer = fcntl.ioctl(asking, _SIOCGIFCONF, struct.pack("iP", room, buffer.buffer_info()[0]))
        (used,) = struct.unpack_from("i", answer)
        if used < room:
            return buffer[:used].tobytes()
        room *= 2


def _is_up(asking: socket.socket, name: bytes) -> bool:
    try:
        answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, struct.pack("16sH14x", name, 0))
    except OSError:  # gone since
        return False
    return bool(struct.unpack_from("16sH", answer)[1] & _IFF_UP)


def _read_v6() -> list[ipaddress.IPv6Address]:
    """An interface that is down has none that is told there."""
    try:
        lines = _IF_INET6.read_text().splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        return []
    return [ipaddress.IPv6Address(bytes.fromhex(line.split()[0])) for line in lines]


def _is_reached(address: Address) -> bool:
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)
