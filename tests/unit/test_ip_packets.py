"""IP packets: what is written is read again, and what is broken is not read. No kernel."""

import socket
import struct

import pytest
from brownout_agent.kernel.ip_packets import (
    ACK,
    FIN,
    PSH,
    Datagram,
    Ends,
    Segment,
    flow_of,
    read,
    write_datagram,
    write_segment,
)
from hypothesis import given
from hypothesis import strategies as st

V4 = Ends(socket.inet_aton("10.0.0.1"), 40_000, socket.inet_aton("10.0.0.53"), 53)
V6 = Ends(socket.inet_pton(socket.AF_INET6, "fd00::1"), 40_000, socket.inet_pton(socket.AF_INET6, "fd00::53"), 53)
both_families = pytest.mark.parametrize("ends", [V4, V6], ids=["IPv4", "IPv6"])


def ones_sum(data: bytes) -> int:
    """0xFFFF over whatever carries a right checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_header(packet: bytes) -> bytes:
    if packet[0] >> 4 == 4:
        return packet[12:20] + struct.pack("!HH", packet[9], len(packet) - 20)
    return packet[8:40] + struct.pack("!IHBB", len(packet) - 40, 0, 0, packet[6])


def sums_are_right(packet: bytes) -> bool:
    at = 20 if packet[0] >> 4 == 4 else 40
    is_head_right = at == 40 or ones_sum(packet[:20]) == 0xFFFF
    return is_head_right and ones_sum(pseudo_header(packet) + packet[at:]) == 0xFFFF


@both_families
@given(payload=st.binary(max_size=600))
def test_a_datagram_is_read_as_it_was_written_with_right_checksums(ends: Ends, payload: bytes) -> None:
    packet = write_datagram(Datagram(ends, payload))
    assert read(packet) == Datagram(ends, payload)
    assert sums_are_right(packet)


numbers = st.integers(0, 2**32 - 1)


@both_families
@given(payload=st.binary(max_size=600), number=numbers, times=st.none() | st.tuples(numbers, numbers))
def test_a_segment_is_read_as_it_was_written(
    ends: Ends, payload: bytes, number: int, times: tuple[int, int] | None
) -> None:
    segment = Segment(ends, number, number ^ 1, PSH | ACK, payload, times)
    packet = write_segment(segment)
    assert read(packet) == segment
    assert sums_are_right(packet)


def test_a_datagram_without_a_sum_would_say_that_there_is_none_so_zero_is_written_as_all_ones() -> None:
    found = next(
        packet
        for number in range(2**16)
        if (packet := write_datagram(Datagram(V4, struct.pack("!H", number))))[26:28] == b"\xff\xff"
    )
    assert sums_are_right(found)


@both_families
def test_what_is_cut_anywhere_is_not_read(ends: Ends) -> None:
    for packet in (write_datagram(Datagram(ends, b"hello")), write_segment(Segment(ends, 1, 2, ACK, b"hello", (1, 2)))):
        assert read(packet) is not None
        assert all(read(packet[:length]) is None for length in range(len(packet)))


@given(st.binary(max_size=120))
def test_any_bytes_are_read_or_left_without_harm(raw: bytes) -> None:
    read(raw)
    read(b"\x45" + raw)
    read(b"\x60" + raw)


@given(st.data())
def test_a_packet_with_any_byte_changed_is_read_or_left_without_harm(data: st.DataObject) -> None:
    packet = bytearray(write_segment(Segment(V4, 1, 2, ACK, b"hello", (1, 2))))
    packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(packet))


def test_fragments_and_extension_headers_are_left_alone() -> None:
    datagram = Datagram(V4, b"hello")
    packet = bytearray(write_datagram(datagram))
    packet[6] = 0x40  # may not be fragmented: it is whole
    assert read(bytes(packet)) == datagram
    packet[6] = 0x20  # more fragments
    assert read(bytes(packet)) is None
    extended = bytearray(write_datagram(Datagram(V6, b"hello")))
    extended[6] = 0  # hop-by-hop options
    assert read(bytes(extended)) is None


def test_a_segments_end_counts_its_fin_and_wraps() -> None:
    assert Segment(V4, 10, 0, PSH | ACK, b"abc").next_sequence == 13
    assert Segment(V4, 10, 0, FIN | ACK, b"abc").next_sequence == 14
    assert Segment(V4, 2**32 - 1, 0, ACK, b"ab").next_sequence == 1


@pytest.mark.parametrize(
    ("source", "destination", "stays"),
    [
        ("127.0.0.1", "127.0.0.53", True),
        ("::1", "::1", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("fd00::1", "fd00::2", False),
    ],
)
def test_what_a_host_sends_to_itself_stays_there(source: str, destination: str, stays: bool) -> None:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    assert Ends(socket.inet_pton(family, source), 1, socket.inet_pton(family, destination), 53).stays_here is stays


# ---- flows ------------------------------------------------------------------------------------------------------

V4_HEADER = bytes.fromhex("45000028000040004006f97d0a0000010a000002")
V6_HEADER = bytes.fromhex("6000000000140640" + "fd" + "00" * 14 + "01" + "fd" + "00" * 14 + "02")


def test_a_flow_is_told_by_addresses_protocol_and_ports_only() -> None:
    ports = bytes.fromhex("c0001538")
    for header in (V4_HEADER, V6_HEADER):
        other_identification = (
            header[:4] + b"\xff\xff" + header[6:] if header is V4_HEADER else header[:1] + b"\x01" + header[2:]
        )
        assert flow_of(header + ports + b"1234") == flow_of(other_identification + ports + b"9999")
        assert flow_of(header + ports) != flow_of(header + bytes.fromhex("c0011538"))
    udp = V4_HEADER[:9] + b"\x11" + V4_HEADER[10:]
    assert flow_of(udp + ports) != flow_of(V4_HEADER + ports)
    ping = V4_HEADER[:9] + b"\x01" + V4_HEADER[10:]
    assert flow_of(ping + b"\x08\x00\x11\x11") == flow_of(ping + b"\x08\x00\x22\x22")


@given(st.binary(max_size=60))
def test_any_bytes_are_of_some_flow(start: bytes) -> None:
    assert isinstance(flow_of(start), bytes)
