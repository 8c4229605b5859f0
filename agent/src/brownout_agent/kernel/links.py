"""Interfaces of the calling thread's network namespace: which stands on which, up and down, and who goes through which.

By rtnetlink(7). Standard library only, as undoing has it.
"""

import errno
import fcntl
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from brownout_agent.kernel.route_socket import (
    GET_LINK,
    GET_ROUTE,
    NEW_LINK,
    Attribute,
    RouteSocket,
    pack_attributes,
    parse_attributes,
)
from brownout_agent.kernel.tcp_connections import Address

_LINK = struct.Struct("=BxHiII")
"""struct ifinfomsg: family, type, index, flags, which of them change."""
_IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_LINK_NETNSID = 3, 5, 10, 18, 37
_IFLA_INFO_KIND = 1
_ROUTE = struct.Struct("=BBBBBBBBI")
_RTA_DST, _RTA_SRC, _RTA_OIF = 1, 2, 4
_UP = 0x1
_SIOCGIFFLAGS = 0x8913
_COUNTERS = Path("/proc/thread-self/net/dev")


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. `below` is the index of the one that it stands on, as a VLAN does, `master` that of the bond,
    bridge or VRF that it is part of; 0 for none."""

    index: int
    name: str
    is_up: bool
    below: int = 0
    master: int = 0


def read_links(kernel: RouteSocket) -> dict[int, Link]:
    """Every interface by its index. Raises OSError: the kernel does not tell."""
    links = (_parse_link(body) for body in kernel.dump(GET_LINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)))
    return {link.index: link for link in links}


def _parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    attributes = dict(parse_attributes(body[_LINK.size :]))
    kind = dict(parse_attributes(attributes.get(_IFLA_LINKINFO, b""))).get(_IFLA_INFO_KIND, b"").rstrip(b"\0")
    # The two ends of a cable (veth) name each other; what is in another namespace stands on nothing here.
    is_stacked = kind != b"veth" and _IFLA_LINK_NETNSID not in attributes
    below, master = (_number(attributes.get(kind)) for kind in (_IFLA_LINK, _IFLA_MASTER))
    name = attributes[_IFLA_IFNAME].rstrip(b"\0").decode()
    return Link(index, name, bool(flags & _UP), below if is_stacked and below != index else 0, master)


def standing_on(links: Iterable[Link], index: int) -> list[Link]:
    """The interfaces that would go down with this one, as VLANs do. Pure."""
    return [link for link in links if link.below == index]


def fed_by(links: dict[int, Link], index: int) -> set[int]:
    """Every interface that may have its packets through this one: itself, what it is part of, what stands on those.
    Pure."""
    found, new = set(), {index}
    while new:
        found |= new
        above = {link.index for link in links.values() if link.below in new}
        new = (above | {links[one].master for one in new if one in links}) - found - {0}
    return found


def set_up(kernel: RouteSocket, index: int, is_up: bool) -> None:
    """Take an interface up or down. Raises OSError: the kernel refused, ENODEV where it is gone."""
    kernel.change(NEW_LINK, _LINK.pack(socket.AF_UNSPEC, 0, index, _UP if is_up else 0, _UP))


def interface_to(kernel: RouteSocket, remote: Address, local: Address | None = None) -> int:
    """The index of the interface by which packets to there leave now; 0 where no route leads there.

    Raises:
        OSError: the kernel does not tell.
    """
    family = socket.AF_INET if remote.version == 4 else socket.AF_INET6
    size = remote.max_prefixlen
    ends = [Attribute(_RTA_DST, remote.packed), *([Attribute(_RTA_SRC, local.packed)] if local else [])]
    body = _ROUTE.pack(family, size, size if local else 0, 0, 0, 0, 0, 0, 0) + pack_attributes(ends)
    try:
        (answer,) = kernel.ask(GET_ROUTE, body)
    except OSError as error:
        if error.errno not in {errno.ENETUNREACH, errno.EHOSTUNREACH}:
            raise
        return 0
    return _number(dict(parse_attributes(answer[_ROUTE.size :])).get(_RTA_OIF))


def is_up(name: str) -> bool | None:
    """Whether an interface is up, by netdevice(7) and not by rtnetlink; None where there is none of this name."""
    with socket.socket(socket.AF_UNIX) as any_socket:  # where no IP socket is to be had, this one asks as well
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return None
    return bool(struct.unpack_from("16sH", answer)[1] & _UP)


def packets_through(name: str) -> int:
    """How many packets have gone through it in both directions, by the counters of proc(5); 0 where there is none."""
    for line in _COUNTERS.read_text().splitlines()[2:]:
        there, _, counters = line.partition(":")
        if there.strip() == name:
            fields = counters.split()
            return int(fields[1]) + int(fields[9])
    return 0


def _number(value: bytes | None) -> int:
    return int(struct.unpack("=i", value)[0]) if value else 0
