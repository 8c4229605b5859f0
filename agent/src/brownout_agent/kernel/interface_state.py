"""What an interface has that the kernel takes from it when it goes down: addresses, routes, permanent neighbours.

Of these the kernel gives back by itself what belongs to IPv4 addresses. IPv6 addresses (but link-local ones), every
route that somebody has added, and neighbours are gone for good, so each is kept as the kernel tells it, which is also
how it takes it.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from brownout_agent.kernel.route_socket import (
    CREATE_NEW,
    GET_ADDRESS,
    GET_NEIGHBOUR,
    GET_NEXTHOP,
    GET_ROUTE,
    NEW_ADDRESS,
    NEW_NEIGHBOUR,
    NEW_ROUTE,
    Attribute,
    RouteSocket,
    pack_attributes,
    parse_attributes,
)

FOR_EVER_S = 2**32 - 1
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_ADDRESS = struct.Struct("=BBBBI")
"""struct ifaddrmsg: family, length of the prefix, flags, scope, interface."""
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_PROTO = 1, 2, 6, 8, 11
_TEMPORARY = 0x01
"""IFA_F_TEMPORARY of an IPv6 address: the kernel makes these itself. Of an IPv4 address it is IFA_F_SECONDARY."""
_SETTABLE = 0x712
"""IFA_F_NODAD, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN; the others are states."""
_LINK_LOCAL_OF_KERNEL = b"\x03"
"""IFAPROT_KERNEL_LL: made anew with the interface. Kernels before 5.18 do not say."""
_LIFETIMES = struct.Struct("=IIII")
"""struct ifa_cacheinfo: preferred and valid, in seconds, and two time stamps."""
_ROUTE = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, two lengths of prefixes, TOS, table, protocol, scope, type, flags."""
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_CACHEINFO, _RTA_VIA = 1, 4, 5, 9, 12, 18
_RTA_EXPIRES, _RTA_NH_ID = 23, 30
_KERNEL, _ADVERTISED, _REDIRECTED = 2, 9, 1
"""RTPROT_KERNEL, RTPROT_RA, RTPROT_REDIRECT."""
_UNICAST = 1
_ONLINK_PERVASIVE = 0x6
"""Of a route's flags those that are not states."""
_NEXTHOP = struct.Struct("=HBBi")
"""struct rtnexthop: length, flags, hops, interface."""
_EXPIRES_AT = struct.Struct("=8xi")
"""In struct rta_cacheinfo, in hundredths of a second (USER_HZ)."""
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
"""struct ndmsg: family, interface, state, flags, type."""
_NDA_CACHEINFO, _NDA_PROBES = 3, 4
_PERMANENT, _PROXY = 0x80, 0x08
_NHA_OIF = 5
_INDEX = struct.Struct("=i")


class NotKept(Exception):
    """The interface has something that cannot be given back as it was; the text says what."""


@dataclass(frozen=True, slots=True)
class Possession:
    """An address, a route or a neighbour: the kernel's message without what changes by itself."""

    message: int
    """NEW_ADDRESS, NEW_NEIGHBOUR or NEW_ROUTE."""
    body: bytes
    lifetimes_s: tuple[int, ...] = ()
    """From when it was read: of an address preferred and valid, of a route when it expires. Empty: for ever."""

    def as_json(self) -> list[object]:
        return [self.message, self.body.hex(), *self.lifetimes_s]

    @classmethod
    def from_json(cls, plain: list[int | str]) -> "Possession":
        message, body, *lifetimes_s = plain
        return cls(int(message), bytes.fromhex(str(body)), tuple(map(int, lifetimes_s)))

    @property
    def key(self) -> tuple[int, bytes]:
        """What tells it from others. An address is there once, whatever its flags."""
        return self.message, _address_of(self.body) if self.message == NEW_ADDRESS else self.body

    @property
    def rank(self) -> int:
        """In which order they are given back: who is reached by a gateway needs the route to it."""
        if self.message != NEW_ROUTE:
            return 0 if self.message == NEW_ADDRESS else 1
        return 3 if _has_gateway(_route_attributes(self.body)) else 2

    def is_over(self, elapsed_s: float) -> bool:
        """Whether it would have ended by itself by now."""
        return bool(self.lifetimes_s) and self.lifetimes_s[-1] != FOR_EVER_S and self.lifetimes_s[-1] <= elapsed_s

    def request(self, elapsed_s: float) -> bytes:
        """The body that gives it back, with what is left of its time."""
        left_s = [one if one == FOR_EVER_S else max(0, one - int(elapsed_s)) for one in self.lifetimes_s]
        if not left_s:
            return self.body
        if self.message == NEW_ROUTE:
            return self.body + pack_attributes([Attribute(_RTA_EXPIRES, struct.pack("=I", left_s[0]))])
        return self.body + pack_attributes([Attribute(_IFA_CACHEINFO, _LIFETIMES.pack(left_s[0], left_s[1], 0, 0))])

    @property
    def text(self) -> str:
        """For people: `route 2001:db8::/32`, `address fd01::1/64`."""
        what = {NEW_ADDRESS: "address", NEW_ROUTE: "route", NEW_NEIGHBOUR: "neighbour"}[self.message]
        if self.message == NEW_NEIGHBOUR:
            return f"{what} {_shown(dict(parse_attributes(self.body[_NEIGHBOUR.size :])).get(1, b''))}"
        if self.message == NEW_ADDRESS:
            return f"{what} {_shown(_address_of(self.body)[2:])}/{self.body[1]}"
        return f"{what} {_shown(dict(_route_attributes(self.body)).get(_RTA_DST, b''))}/{self.body[1]}"


def refuse_unkept(kernel: RouteSocket, index: int) -> None:
    """Raises NotKept: the interface has what could not be given back. OSError: the kernel does not tell."""
    _refuse_nexthops(kernel, index)
    for body in _dump_routes(kernel):
        attributes = dict(_route_attributes(body))
        if index in _interfaces_of(attributes):
            _refuse_unkept_route(body, attributes)


def read_possessions(kernel: RouteSocket, index: int) -> list[Possession]:
    """What this interface has that can be given back, in an order in which it can.

    Raises:
        OSError: the kernel does not tell.
    """
    addresses = [
        found
        for family in _FAMILIES
        for body in _oldest_first(family, kernel.dump(GET_ADDRESS, _ADDRESS.pack(family, 0, 0, 0, 0)))
        if (found := parse_address(body, index))
    ]
    neighbours = [
        found
        for flags in (0, _PROXY)
        for body in kernel.dump(GET_NEIGHBOUR, _NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, flags, 0))
        if (found := parse_neighbour(body, index))
    ]
    routes = [found for body in _dump_routes(kernel) if (found := parse_route(body, index))]
    return sorted([*addresses, *neighbours, *routes], key=lambda one: one.rank)


def parse_address(body: bytes, index: int) -> Possession | None:
    """None where the address is another interface's, or the kernel makes it again itself. Pure."""
    family, length, low_flags, scope, on = _ADDRESS.unpack_from(body)
    attributes = dict(parse_attributes(body[_ADDRESS.size :]))
    flags = struct.unpack("=I", attributes.get(_IFA_FLAGS, struct.pack("=I", low_flags)))[0]
    is_made_anew = family == socket.AF_INET6 and (
        flags & _TEMPORARY or attributes.get(_IFA_PROTO) == _LINK_LOCAL_OF_KERNEL
    )
    if on != index or is_made_anew:
        return None
    preferred_s, valid_s, _, _ = _LIFETIMES.unpack(attributes.pop(_IFA_CACHEINFO))
    attributes[_IFA_FLAGS] = struct.pack("=I", flags & _SETTABLE)
    kept = _ADDRESS.pack(family, length, 0, scope, on) + _packed(attributes.items())
    endless = preferred_s == valid_s == FOR_EVER_S
    return Possession(NEW_ADDRESS, kept, () if endless else (preferred_s, valid_s))


def parse_neighbour(body: bytes, index: int) -> Possession | None:
    """None where it is another interface's, or one that the kernel has learned. Pure."""
    family, on, state, flags, _ = _NEIGHBOUR.unpack_from(body)
    if on != index or family not in _FAMILIES or not (state & _PERMANENT or flags & _PROXY):
        return None
    attributes = dict(parse_attributes(body[_NEIGHBOUR.size :]))
    kept = ((kind, value) for kind, value in attributes.items() if kind not in {_NDA_CACHEINFO, _NDA_PROBES})
    return Possession(NEW_NEIGHBOUR, _NEIGHBOUR.pack(family, on, state, flags, 0) + _packed(kept))


def parse_route(body: bytes, index: int) -> Possession | None:
    """None where it does not lead through the interface, or comes again by itself. Pure."""
    family, to_size, from_size, tos, table, protocol, scope, kind, flags = _ROUTE.unpack_from(body)
    attributes = dict(_route_attributes(body))
    if index not in _interfaces_of(attributes):
        return None
    if protocol in {_ADVERTISED, _REDIRECTED} or (protocol == _KERNEL and kind != _UNICAST):
        return None
    expires = _EXPIRES_AT.unpack_from(attributes.pop(_RTA_CACHEINFO, bytes(_EXPIRES_AT.size)))[0]
    if _RTA_MULTIPATH in attributes:
        attributes[_RTA_MULTIPATH] = b"".join(_without_states(attributes[_RTA_MULTIPATH]))
    head = _ROUTE.pack(family, to_size, from_size, tos, table, protocol, scope, kind, flags & _ONLINK_PERVASIVE)
    return Possession(NEW_ROUTE, head + _packed(attributes.items()), (expires // 100,) if expires > 0 else ())


def give_back(kernel: RouteSocket, possession: Possession, elapsed_s: float) -> str:
    """Add it again. Returns why the kernel does not take it, for people; "" when it is there."""
    try:
        kernel.change(possession.message, possession.request(elapsed_s), CREATE_NEW)
    except OSError as error:
        return "another has its place" if error.errno == errno.EEXIST else str(error.strerror)
    return ""


def _oldest_first(family: int, bodies: list[bytes]) -> list[bytes]:
    """The kernel lists the IPv6 address first that was added last, and prefers it as a source (RFC 6724, rule 8)."""
    return bodies[::-1] if family == socket.AF_INET6 else bodies


def _dump_routes(kernel: RouteSocket) -> Iterator[bytes]:
    for family in _FAMILIES:
        yield from kernel.dump(GET_ROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))


def _refuse_unkept_route(body: bytes, attributes: dict[int, bytes]) -> None:
    where = f"the route to {_shown(attributes.get(_RTA_DST, b''))}/{body[1]}"
    if _RTA_NH_ID in attributes:
        raise NotKept(f"{where} is one of a nexthop object (ip-nexthop(8))")
    if body[0] == socket.AF_INET6 and _RTA_MULTIPATH in attributes:
        raise NotKept(f"{where} has several ways (ECMP), of which the kernel would lose one")


def _refuse_nexthops(kernel: RouteSocket, index: int) -> None:
    try:
        bodies = kernel.dump(GET_NEXTHOP, bytes(8))
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
            raise
        return  # a kernel before 5.3 has none
    for body in bodies:
        if dict(parse_attributes(body[8:])).get(_NHA_OIF) == _INDEX.pack(index):
            raise NotKept("it has a nexthop object (ip-nexthop(8)), which would be lost")


def _interfaces_of(attributes: dict[int, bytes]) -> set[int]:
    found = {_INDEX.unpack(attributes[_RTA_OIF])[0]} if _RTA_OIF in attributes else set()
    return found | {_NEXTHOP.unpack_from(hop)[3] for hop in _hops(attributes.get(_RTA_MULTIPATH, b""))}


def _hops(data: bytes) -> Iterator[bytes]:
    while len(data) >= _NEXTHOP.size:
        length = _NEXTHOP.unpack_from(data)[0]
        if length < _NEXTHOP.size:
            return
        yield data[:length]
        data = data[length + -length % 4 :]


def _without_states(data: bytes) -> Iterator[bytes]:
    for hop in _hops(data):
        length, flags, hops, index = _NEXTHOP.unpack_from(hop)
        yield _NEXTHOP.pack(length, flags & _ONLINK_PERVASIVE, hops, index) + hop[_NEXTHOP.size :]


def _has_gateway(attributes: list[Attribute]) -> bool:
    return bool({_RTA_GATEWAY, _RTA_VIA, _RTA_MULTIPATH} & {kind for kind, _ in attributes})


def _route_attributes(body: bytes) -> list[Attribute]:
    return parse_attributes(body[_ROUTE.size :])


def _address_of(body: bytes) -> bytes:
    """Family, length of the prefix, and the address itself."""
    attributes = dict(parse_attributes(body[_ADDRESS.size :]))
    return body[:2] + (attributes.get(_IFA_LOCAL) or attributes[_IFA_ADDRESS])


def _packed(attributes: Iterable[tuple[int, bytes]]) -> bytes:
    return pack_attributes([Attribute(*one) for one in sorted(attributes)])


def _shown(address: bytes) -> str:
    return str(ipaddress.ip_address(address)) if address else "0"
