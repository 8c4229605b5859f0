"""Which bit network.corrupt turns round, and the judgement. No kernel."""

import random

import pytest
from brownout_agent.faults.network_corrupt import flip, judge_corrupt
from brownout_agent.faults.network_scope import Scope
from brownout_agent.kernel.ip_packets import Datagram, Ends, Segment, write_datagram, write_segment
from hypothesis import given
from hypothesis import strategies as st

EVERYONE = Scope(None, (), "any", "ingress", None, False, (), (22,))
_PROTOCOL = {4: 9, 6: 6}
_HEADER = {4: 20, 6: 40}


def is_checksum_right(packet: bytes) -> bool:
    """Of UDP and TCP: the sum over pseudo-header and all of them is all ones (RFC 1071)."""
    version = packet[0] >> 4
    body = packet[_HEADER[version] :]
    addresses = packet[12:20] if version == 4 else packet[8:40]
    data = addresses + bytes([0, packet[_PROTOCOL[version]]]) + len(body).to_bytes(2) + body
    words = [int.from_bytes(data[at : at + 2].ljust(2, b"\0")) for at in range(0, len(data), 2)]
    return sum(words) % 0xFFFF == 0


Packets = st.builds(
    lambda write, size, payload, number: write(Ends(b"\x0a" * size, 40_000, b"\x0b" * size, 53), payload, number),
    st.sampled_from(
        [
            lambda ends, payload, _: write_datagram(Datagram(ends, payload)),
            lambda ends, payload, number: write_segment(Segment(ends, number, 7, 0x18, payload)),
        ]
    ),
    st.sampled_from([4, 16]),
    st.binary(max_size=100),
    st.integers(0, 2**32 - 1),
)


@given(Packets, st.integers(0, 2**32))
def test_one_bit_is_wrong_behind_the_addresses_and_the_checksum_tells(packet: bytes, seed: int) -> None:
    assert is_checksum_right(packet)
    corrupted = flip(packet, random.Random(seed))
    assert (int.from_bytes(packet) ^ int.from_bytes(corrupted)).bit_count() == 1
    assert len(corrupted) == len(packet)
    header = _HEADER[packet[0] >> 4]
    assert corrupted[:header] == packet[:header]
    assert not is_checksum_right(corrupted)
    assert corrupted == flip(packet, random.Random(seed))


@given(Packets, st.integers(0, 2**32))
def test_where_there_is_more_than_a_header_the_ports_and_the_length_stay(packet: bytes, seed: int) -> None:
    header = _HEADER[packet[0] >> 4]
    if len(packet) > header + 8:
        assert flip(packet, random.Random(seed))[: header + 8] == packet[: header + 8]


@given(Packets, st.data())
def test_a_packet_that_is_cut_stays_as_it_is(packet: bytes, data: st.DataObject) -> None:
    cut = packet[: data.draw(st.integers(20, len(packet) - 1))]
    assert flip(cut, random.Random(1)) == cut


def test_every_bit_of_a_payload_has_its_turn() -> None:
    packet = write_datagram(Datagram(Ends(b"\x0a" * 4, 1, b"\x0b" * 4, 2), b"abc"))
    rng = random.Random(1)
    turned = {int.from_bytes(packet) ^ int.from_bytes(flip(packet, rng)) for _ in range(500)}
    assert turned == {1 << bit for bit in range(24)}


def test_a_packet_of_nothing_but_a_header_and_one_with_options_are_read_by_their_length() -> None:
    bare = bytes.fromhex("45000014000040004006f97d0a0000010a000002")
    assert flip(bare, random.Random(1)) == bare
    with_options = bytes.fromhex("46000026") + bare[4:] + b"opts" + b"payload of ten"
    for seed in range(50):
        assert flip(with_options, random.Random(seed))[: 24 + 8] == with_options[: 24 + 8]


@pytest.mark.parametrize(
    ("seen", "drawn", "corrupted", "proved"),
    [(0, 0, 0, False), (1_000, 100, 100, True), (1_000, 100, 4_500, True), (1_000, 100, 50, False), (49, 5, 5, False)],
)
def test_it_is_proved_by_those_that_were_drawn_and_corrupted(
    seen: int, drawn: int, corrupted: int, proved: bool
) -> None:
    effect = judge_corrupt(10, EVERYONE, seen, drawn, {"received": corrupted, "corrupted": corrupted})
    assert effect.proved is proved
    assert effect.achieved == (pytest.approx(100 * min(drawn, corrupted) / seen) if seen else None)
