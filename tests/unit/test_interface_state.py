"""What an interface has, of the kernel's messages, and which interface stands on which. No kernel."""

import ipaddress
import socket
import struct

from brownout_agent.kernel.interface_state import (
    FOR_EVER_S,
    Possession,
    parse_address,
    parse_neighbour,
    parse_route,
)
from brownout_agent.kernel.links import Link, fed_by, standing_on
from brownout_agent.kernel.route_socket import Attribute, pack_attributes, parse_attributes

ETH1, ETH2 = 3, 4
PERMANENT, TENTATIVE, TEMPORARY, NODAD, NOPREFIXROUTE = 0x80, 0x40, 0x01, 0x02, 0x200


def address(flags: int = PERMANENT, index: int = ETH1, valid_s: int = FOR_EVER_S, made_by: bytes = b"") -> bytes:
    attributes = [
        Attribute(1, ipaddress.ip_address("fd01::1").packed),
        Attribute(6, struct.pack("=IIII", min(valid_s, 50), valid_s, 12, 34)),
        Attribute(8, struct.pack("=I", flags)),
        *([Attribute(11, made_by)] if made_by else []),
    ]
    return struct.pack("=BBBBI", socket.AF_INET6, 64, flags & 0xFF, 0, index) + pack_attributes(attributes)


def route(*more: Attribute, protocol: int = 3, kind: int = 1, flags: int = 0, index: int = ETH1) -> bytes:
    attributes = [
        Attribute(1, ipaddress.ip_address("2001:db8::").packed),
        Attribute(4, struct.pack("=i", index)),
        *more,
    ]
    head = struct.pack("=BBBBBBBBI", socket.AF_INET6, 32, 0, 0, 254, protocol, 0, kind, flags)
    return head + pack_attributes(attributes)


def cache(expires_ticks: int) -> Attribute:
    return Attribute(12, struct.pack("=IIiIIIII", 1, 2, expires_ticks, 0, 0, 0, 0, 0))


def test_attributes_come_back_as_they_were_packed() -> None:
    attributes = [Attribute(1, b"abcde"), Attribute(2, b""), Attribute(0x7FF, b"1234")]
    assert parse_attributes(pack_attributes(attributes)) == attributes
    assert parse_attributes(b"\x02\0\1\0rest") == [], "one shorter than its own head ends them"


def test_an_address_is_the_same_in_every_state_it_passes_through() -> None:
    first, later = parse_address(address(PERMANENT | TENTATIVE), ETH1), parse_address(address(PERMANENT), ETH1)
    assert first is not None
    assert first == later
    assert first.text == "address fd01::1/64"
    with_flags = parse_address(address(PERMANENT | NODAD | NOPREFIXROUTE), ETH1)
    assert with_flags is not None
    assert struct.pack("=I", NODAD | NOPREFIXROUTE) in with_flags.body
    assert with_flags.key == first.key, "there is one of its kind"


def test_what_the_kernel_makes_again_or_is_anothers_is_not_kept() -> None:
    assert parse_address(address(index=ETH2), ETH1) is None
    assert parse_address(address(TEMPORARY), ETH1) is None
    assert parse_address(address(made_by=b"\x03"), ETH1) is None, "link-local, by the kernel"
    assert parse_address(address(made_by=b"\x02"), ETH1) is not None, "by a router's advertisement"
    assert parse_route(route(index=ETH2), ETH1) is None
    assert parse_route(route(protocol=9), ETH1) is None, "a router advertises it again"
    assert parse_route(route(protocol=2, kind=2), ETH1) is None, "the kernel's own, of an address"
    assert parse_route(route(protocol=2), ETH1) is not None, "of a prefix: some programs add it so"
    learned = struct.pack("=BxxxiHBB", socket.AF_INET, ETH1, 0x02, 0, 0)
    permanent = struct.pack("=BxxxiHBB", socket.AF_INET, ETH1, 0x80, 0, 0)
    assert parse_neighbour(learned, ETH1) is None
    assert parse_neighbour(permanent, ETH1) is not None
    assert parse_neighbour(permanent, ETH2) is None


def test_a_time_runs_on_while_it_is_away() -> None:
    found = parse_address(address(0, valid_s=100), ETH1)
    assert found is not None
    assert found.lifetimes_s == (50, 100)
    assert (found.is_over(99), found.is_over(100)) == (False, True)
    assert struct.pack("=IIII", 0, 40, 0, 0) in found.request(60)
    way = parse_route(route(cache(7_000)), ETH1)
    assert way is not None
    assert way.lifetimes_s == (70,)
    assert dict(parse_attributes(way.request(30)[12:]))[23] == struct.pack("=I", 40)
    assert way.is_over(70)
    endless = parse_route(route(cache(0)), ETH1)
    assert endless is not None
    assert (endless.lifetimes_s, endless.is_over(1e9), endless.request(5)) == ((), False, endless.body)


def test_a_route_is_the_same_whether_its_link_works_or_not() -> None:
    dead, alive = parse_route(route(flags=0x11), ETH1), parse_route(route(), ETH1)
    assert alive is not None
    assert dead == alive
    assert alive.text == "route 2001:db8::/32"
    hops = [struct.pack("=HBBi", 8, flags, 0, index) for flags, index in ((0x11, ETH2), (0x4, ETH1))]
    several = route(Attribute(9, b"".join(hops)), index=ETH2)
    several = bytes([socket.AF_INET]) + several[1:]
    found = parse_route(several, ETH1)
    assert found is not None, "one of its ways is through the interface"
    assert struct.pack("=HBBi", 8, 0, 0, ETH2) + struct.pack("=HBBi", 8, 0x4, 0, ETH1) in found.body


def test_who_is_reached_by_a_gateway_comes_after_the_way_to_it() -> None:
    by_gateway, direct = parse_route(route(Attribute(5, bytes(16))), ETH1), parse_route(route(), ETH1)
    own = parse_address(address(), ETH1)
    assert by_gateway is not None
    assert direct is not None
    assert own is not None
    assert own.rank < direct.rank < by_gateway.rank


def test_the_journal_keeps_it_whole() -> None:
    for one in (Possession(24, b"\0\1\xff", (70,)), Possession(20, b"abc", (1, FOR_EVER_S)), Possession(28, b"")):
        assert Possession.from_json(one.as_json()) == one  # type: ignore[arg-type]


def test_an_interface_feeds_all_that_is_made_of_it() -> None:
    """bond0 of eth1 and eth2, a VLAN on it, a bridge of that; eth3 for itself."""
    links = {
        link.index: link
        for link in (
            Link(1, "eth1", is_up=True, master=10),
            Link(2, "eth2", is_up=True, master=10),
            Link(3, "eth3", is_up=True),
            Link(10, "bond0", is_up=True),
            Link(11, "bond0.100", is_up=True, below=10, master=12),
            Link(12, "br0", is_up=True),
        )
    }
    assert fed_by(links, 1) == {1, 10, 11, 12}
    assert fed_by(links, 11) == {11, 12}
    assert fed_by(links, 3) == {3}
    assert [link.name for link in standing_on(links.values(), 10)] == ["bond0.100"]
    assert standing_on(links.values(), 1) == []
