"""When packets are through on a slow line, which find no room, and the judgement. No kernel, no clock."""

import re
from collections import Counter
from typing import Any

import pytest
from brownout_agent.faults.network_rate import Link, RateParameters, judge_rate
from brownout_agent.faults.network_scope import Scope
from brownout_agent.kernel.ip_packets import Datagram, Ends, length_of, write_datagram
from brownout_agent.quantities import parse_bit_rate
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

MS, S = 1_000_000, 1_000_000_000
MBIT = 1_000_000
EVERYONE = Scope(None, (), "any", "both", None, False, (), (22,))


def link(counts: Counter[str], rate_bps: float = MBIT, queue_ms: float = 200) -> Link:
    def note(name: str, count: int) -> None:
        counts[name] += count

    return Link(rate_bps, round(queue_ms * MS), note)


Arrivals = st.lists(st.tuples(st.integers(0, 30 * MS), st.integers(20, 1_500)), min_size=1, max_size=100)


@given(Arrivals, st.sampled_from([64_000, MBIT, 100 * MBIT]), st.integers(1, 500))
def test_no_more_gets_through_in_any_time_than_the_rate_and_ten_milliseconds_of_it(
    arrivals: list[tuple[int, int]], rate_bps: int, queue_ms: int
) -> None:
    line, now_ns = link(Counter(), rate_bps, queue_ms), S
    sizes, came_ns, through = dict[int, int](), dict[int, int](), list[tuple[int, int]]()

    def let_go(until_ns: int) -> None:
        while (due_ns := line.next_due_ns()) is not None and due_ns <= until_ns:
            at_ns = max(due_ns, now_ns)
            through.extend((at_ns, number) for number in line.take_due(at_ns))

    for number, (gap_ns, size_bytes) in enumerate(arrivals):
        let_go(now_ns + gap_ns)
        now_ns += gap_ns
        if line.take(number, size_bytes, now_ns):
            sizes[number], came_ns[number] = size_bytes, now_ns
    let_go(now_ns + 1_000 * S)
    assert [number for _, number in through] == [*sizes]
    for at, (begins_ns, _) in enumerate(through):
        bits = 0
        for ends_ns, number in through[at:]:
            bits += sizes[number] * 8
            # The first of them may have begun its turn before.
            allowed = (ends_ns - begins_ns + 10 * MS) * rate_bps / S + 1_500 * 8
            assert bits <= allowed + 1
    for at_ns, number in through:
        turn_ns = sizes[number] * 8 * S / rate_bps
        assert at_ns - came_ns[number] <= queue_ms * MS + turn_ns + 1


def test_a_packet_that_would_wait_for_too_long_finds_no_room_until_the_queue_is_shorter() -> None:
    line = link(Counter(), MBIT, queue_ms=20)
    # Each of 1250 bytes takes 10 ms; the first had its turn in the pause before.
    assert [line.take(number, 1_250, S) for number in range(5)] == [True, True, True, True, False]
    assert line.take_due(S) == [0]
    assert line.next_due_ns() == S + 10 * MS
    assert line.take_due(S + 10 * MS) == [1]
    assert line.take(5, 1_250, S + 10 * MS)


def test_what_is_measured_is_time_in_which_the_next_one_waited() -> None:
    counts: Counter[str] = Counter()
    line = link(counts)
    for number in range(4):
        line.take(number, 1_250, S)
    for late_ns in (0, 1, 2, 3):
        line.take_due(S + late_ns * 10 * MS)
    assert counts == {"bits": 2 * 10_000, "busy_ns": 20 * MS}  # from the second, the first that waited, to the fourth
    line.take(4, 1_250, 2 * S)  # after a pause: this one does not wait, and the next is the first that does
    line.take(5, 1_250, 2 * S)
    line.take_due(2 * S + 10 * MS)
    assert counts["busy_ns"] == 20 * MS


def test_a_sender_that_waits_for_each_packet_to_be_through_is_measured_as_well() -> None:
    """TCP small queues: the next packet comes when the last one has gone, a little late."""
    counts: Counter[str] = Counter()
    line, now_ns = link(counts), S
    line.take(0, 2_500, now_ns)
    for number in range(1, 101):
        now_ns = (line.next_due_ns() or now_ns) + MS // 10
        assert line.take_due(now_ns)
        line.take(number, 1_250, now_ns)
    assert counts["bits"] * S / counts["busy_ns"] == pytest.approx(MBIT, rel=0.02)


@pytest.mark.parametrize("size", [4, 16])
def test_the_length_of_a_packet_is_in_its_first_bytes(size: int) -> None:
    packet = write_datagram(Datagram(Ends(b"\x0a" * size, 1, b"\x0b" * size, 2), b"x" * 300))
    assert length_of(packet[:6]) == len(packet)


@pytest.mark.parametrize(
    ("text", "bps"),
    [("10mbit", 10_000_000), ("64kbit", 64_000), ("1.5Mbit/s", 1_500_000), ("800bit", 800), ("2 gbit", 2 * 10**9)],
)
def test_rates_are_in_bits_of_a_thousand(text: str, bps: int) -> None:
    assert parse_bit_rate(text) == bps


@pytest.mark.parametrize(
    ("given_parameters", "why"),
    [
        ({}, "rate"),
        ({"rate": 10}, "did you mean 10mbit?"),
        ({"rate": "10MB/s"}, "in bytes; this one is in bits: did you mean 80mbit?"),
        ({"rate": "fast"}, "write it like 10mbit or 64kbit"),
        ({"rate": True}, "is not a rate in bits"),
        ({"rate": "999bit"}, "greater than or equal to 1000"),
        ({"rate": "101mbit"}, "less than or equal to 100000000"),
        ({"rate": "1mbit", "queue": "0ms"}, "greater than or equal to 1"),
        ({"rate": "1mbit", "queue": "31s"}, "less than or equal to 30000"),
    ],
)
def test_bad_parameters_are_refused_with_what_is_wrong(given_parameters: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(why)):
        RateParameters.model_validate(given_parameters)


def noted(ingress: tuple[float, float] = (0, 0), egress: tuple[float, float] = (0, 0)) -> dict[str, int]:
    """(Mbit/s, seconds) of each direction."""
    ways = {"ingress": ingress, "egress": egress}
    counts = {f"{way}_bits": round(rate * seconds * MBIT) for way, (rate, seconds) in ways.items()}
    return {**counts, **{f"{way}_busy_ns": round(seconds * S) for way, (_, seconds) in ways.items()}, "dropped": 3}


@pytest.mark.parametrize(
    ("counts", "proved", "achieved", "said"),
    [
        (noted(), False, None, "hardly any had to wait: the link was busy for 0 s"),
        (noted(egress=(10, 0.4)), False, None, "busy for 0.4 s"),
        (noted(egress=(10.2, 2)), True, 10.2, "10.2 Mbit/s egress in 2 s through by its clock; 3 of 9 found"),
        (noted(egress=(9.6, 2)), False, 9.6, "9.6 Mbit/s egress"),
        (noted((10.1, 2), (9.8, 1)), True, 9.8, "10.1 Mbit/s ingress in 2 s and 9.8 Mbit/s egress in 1 s"),
        (noted((10.1, 2), (11, 1)), False, 11, "11 Mbit/s egress"),
    ],
)
def test_it_is_proved_by_what_got_through_while_packets_waited(
    counts: dict[str, int], proved: bool, achieved: float | None, said: str
) -> None:
    effect = judge_rate(10 * MBIT, EVERYONE, 9, counts)
    assert effect.proved is proved
    assert effect.achieved == (pytest.approx(achieved) if achieved is not None else None)
    assert said in effect.explanation


def test_where_nobody_talks_nothing_is_proved() -> None:
    effect = judge_rate(10 * MBIT, EVERYONE, 0, noted())
    assert (effect.proved, effect.explanation) == (
        False,
        "no packet matched: nobody talked to any peer during the fault",
    )
