"""IP packets that carry UDP or TCP, read from bytes and made of values (RFC 791, 8200, 768, 9293). Pure.

Read strictly: what is not whole, is a fragment or has IPv6 extension headers is not read at all. The length and the
flow of a packet are told of any.
"""

import struct
from dataclasses import dataclass

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
_TCP, _UDP = 6, 17
_FRAGMENT = 0x3FFF
"""More fragments, and the offset. "Don't fragment" is the bit above."""
_IPV6_HEADER = 40
LENGTH_WITHIN_BYTES, FLOW_WITHIN_BYTES = 6, _IPV6_HEADER + 4
"""The flow: up to the two ports behind an IPv6 header."""
_WITH_PORTS = frozenset({bytes([_TCP]), bytes([_UDP])})
_HOPS = 64
_WINDOW = 65_535
_TIMESTAMPS, _TIMESTAMPS_BYTES, _END, _NO_OPERATION = 8, 10, 0, 1
_SEQUENCES = 2**32


@dataclass(frozen=True, slots=True)
class Ends:
    """From where to where: packed addresses of 4 or 16 bytes, and ports."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int

    @property
    def reverse(self) -> "Ends":
        """The way back."""
        return Ends(self.destination, self.destination_port, self.source, self.source_port)

    @property
    def stays_here(self) -> bool:
        """Whether a packet that this host sends is for itself: to a loopback address, or to the one it comes from."""
        loopback = self.destination[0] == 127 if len(self.destination) == 4 else self.destination == bytes(15) + b"\1"
        return loopback or self.destination == self.source


@dataclass(frozen=True, slots=True)
class Datagram:
    """UDP."""

    ends: Ends
    payload: bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """TCP. `timestamps` are the value and the echo of RFC 7323, None without."""

    ends: Ends
    sequence: int
    acknowledged: int
    flags: int
    payload: bytes = b""
    timestamps: tuple[int, int] | None = None

    @property
    def next_sequence(self) -> int:
        """The sequence number behind this segment."""
        return (self.sequence + len(self.payload) + bool(self.flags & FIN)) % _SEQUENCES


def length_of(start: bytes) -> int:
    """How many bytes an IP packet has, of its first LENGTH_WITHIN_BYTES."""
    if start[:1] >= b"\x60":
        return _IPV6_HEADER + int.from_bytes(start[4:6])
    return int.from_bytes(start[2:4])


def flow_of(start: bytes) -> bytes:
    """Addresses, protocol and ports of a packet, of its first FLOW_WITHIN_BYTES. Where there are no ports it is by
    addresses only: of fragments, and behind options and extension headers, two flows may be taken for one, or one for
    two.
    """
    is_v6 = start[:1] >= b"\x60"
    protocol, addresses, ports = (6, 8, 40) if is_v6 else (9, 12, 20)
    has_ports = start[protocol : protocol + 1] in _WITH_PORTS
    return start[protocol : protocol + 1] + start[addresses : ports + (4 if has_ports else 0)]


def read(packet: bytes) -> Datagram | Segment | None:
    """What an IP packet carries; None when it is broken, cut, a fragment, or neither UDP nor TCP."""
    found = _read_ip(packet)
    if found is None:
        return None
    source, destination, protocol, body = found
    if protocol == _UDP and len(body) >= 8:
        ports, length = struct.unpack_from("!HH", body), struct.unpack_from("!H", body, 4)[0]
        ends = Ends(source, ports[0], destination, ports[1])
        return Datagram(ends, body[8:length]) if 8 <= length <= len(body) else None
    if protocol == _TCP and len(body) >= 20:
        return _read_segment(source, destination, body)
    return None


def write_datagram(datagram: Datagram) -> bytes:
    """The IP packet."""
    ends, length = datagram.ends, 8 + len(datagram.payload)
    header = struct.pack("!HHHH", ends.source_port, ends.destination_port, length, 0)
    checksum = _transport_checksum(ends, _UDP, header + datagram.payload) or 0xFFFF  # 0 would say that there is none
    return _write_ip(ends, _UDP, header[:6] + struct.pack("!H", checksum) + datagram.payload)


def write_segment(segment: Segment) -> bytes:
    """The IP packet, with a window as large as it gets without scaling."""
    ends, options = segment.ends, b""
    if segment.timestamps is not None:
        options = struct.pack(
            "!BBBBII", _NO_OPERATION, _NO_OPERATION, _TIMESTAMPS, _TIMESTAMPS_BYTES, *segment.timestamps
        )
    offset_and_flags = (5 + len(options) // 4) << 12 | segment.flags
    ports, numbers = (ends.source_port, ends.destination_port), (segment.sequence, segment.acknowledged)
    header = struct.pack("!HHIIHHHH", *ports, *numbers, offset_and_flags, _WINDOW, 0, 0) + options
    checksum = _transport_checksum(ends, _TCP, header + segment.payload)
    return _write_ip(ends, _TCP, header[:16] + struct.pack("!H", checksum) + header[18:] + segment.payload)


def _read_ip(packet: bytes) -> tuple[bytes, bytes, int, bytes] | None:
    """(source, destination, protocol, what follows the header)."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        header, (total, _, fragment) = (packet[0] & 15) * 4, struct.unpack_from("!HHH", packet, 2)
        if header < 20 or not header <= total <= len(packet) or fragment & _FRAGMENT:
            return None
        return packet[12:16], packet[16:20], packet[9], packet[header:total]
    if len(packet) >= _IPV6_HEADER and packet[0] >> 4 == 6:
        end = _IPV6_HEADER + struct.unpack_from("!H", packet, 4)[0]
        return (packet[8:24], packet[24:40], packet[6], packet[_IPV6_HEADER:end]) if end <= len(packet) else None
    return None


def _read_segment(source: bytes, destination: bytes, body: bytes) -> Segment | None:
    source_port, destination_port, sequence, acknowledged, offset_and_flags = struct.unpack_from("!HHIIH", body)
    header = (offset_and_flags >> 12) * 4
    if not 20 <= header <= len(body):
        return None
    ends = Ends(source, source_port, destination, destination_port)
    timestamps = _read_timestamps(body[20:header])
    return Segment(ends, sequence, acknowledged, offset_and_flags & 0x3F, body[header:], timestamps)


def _read_timestamps(options: bytes) -> tuple[int, int] | None:
    at = 0
    while at < len(options) and options[at] != _END:
        if options[at] == _NO_OPERATION:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            return None
        if options[at] == _TIMESTAMPS and length == _TIMESTAMPS_BYTES:
            value, echo = struct.unpack_from("!II", options, at + 2)
            return value, echo
        at += length
    return None


def _write_ip(ends: Ends, protocol: int, body: bytes) -> bytes:
    if len(ends.source) == 16:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, _HOPS) + ends.source + ends.destination + body
    header = (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, _HOPS, protocol, 0) + ends.source + ends.destination
    )
    return header[:10] + struct.pack("!H", _checksum(header)) + header[12:] + body


def _transport_checksum(ends: Ends, protocol: int, body: bytes) -> int:
    """Over the pseudo-header as well (RFC 9293 3.1, RFC 8200 8.1): its sum is the same however wide its fields are."""
    return _checksum(ends.source + ends.destination + struct.pack("!HH", protocol, len(body)) + body)


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
