"""DNS faults without a kernel: wire format, names that are meant, rules, a connection taken over, judgement."""

import re
import struct
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Refusal
from brownout_agent.faults.dns_delay import DelayParameters, judge_delay
from brownout_agent.faults.dns_failure import DnsFailure, FailureParameters
from brownout_agent.faults.dns_message import TYPES, Query, read_query, read_stream, write_answer
from brownout_agent.faults.dns_rules import ruleset
from brownout_agent.faults.dns_scope import DnsParameters, Matcher
from brownout_agent.faults.dns_tcp import Takeovers
from brownout_agent.injector.ceilings import check_ceilings
from brownout_agent.kernel.ip_packets import ACK, FIN, PSH, RST, SYN, Ends, Segment
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

OPT = bytes.fromhex("00 0029 04d0 00008000 0000")


def encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def asked(
    name: str = "db.Shop.test",
    kind: str = "A",
    *,
    opt: bytes = b"",
    counts: tuple[int, ...] = (1, 0, 0),
    flags: int = 0x0100,
) -> bytes:
    header = struct.pack("!HHHHHH", 0x1234, flags, *counts, bool(opt))
    return header + encoded(name) + struct.pack("!HH", TYPES[kind], 1) + opt


def query(name: str = "db.shop.test", kind: str = "A") -> Query:
    found = read_query(asked(name, kind))
    assert found is not None
    return found


# ---- wire format ----------------------------------------------------------------------------------------------------


def test_a_query_is_read_with_its_name_in_lower_case_and_its_question_as_it_came() -> None:
    found = read_query(asked(opt=OPT))
    assert found is not None
    assert (found.query_id, found.name, found.type, found.datagram_bytes) == (0x1234, "db.shop.test", 1, 1_232)
    assert found.question == encoded("db.Shop.test") + b"\0\1\0\1"
    assert found.opt[5:9] == bytes.fromhex("00008000")  # DNSSEC OK is said back (RFC 4035 3.2.1)


def test_a_dot_within_a_label_is_no_dot_between_labels() -> None:
    header, rest = asked("x.test")[:12], asked("x.test")[12 + 8 :]
    found = read_query(header + b"\3a.b\4test\0" + rest)
    assert found is not None
    assert found.name == "a\\.b.test"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        asked()[:11],
        asked()[:-1],
        asked() + b"x",
        asked(flags=0x8100),  # an answer
        asked(flags=0x2900),  # an update
        asked(counts=(2, 0, 0)),
        asked(counts=(0, 0, 0)),
        asked(counts=(1, 1, 0)),
        asked(opt=OPT[:-1]),
        asked(opt=OPT + b"x"),
        asked(opt=b"\0" + struct.pack("!HHIH", 250, 255, 0, 0)),  # TSIG: nobody but its server can sign an answer
        asked()[:12] + b"\xc0\x0c\0\1\0\1",  # a pointer
        asked()[:12] + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",  # a label of 64 bytes
        asked(".".join(["a" * 63] * 4)),  # a name of 257 bytes
        asked()[:-2] + b"\0\3",  # class CH
    ],
)
def test_what_is_no_plain_query_is_not_read(message: bytes) -> None:
    assert read_query(message) is None


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_left_without_harm(raw: bytes) -> None:
    read_query(raw)
    read_query(asked()[:12] + raw)
    read_stream(raw)


@given(st.data())
def test_a_query_with_any_byte_changed_is_read_or_left_and_answered_without_harm(data: st.DataObject) -> None:
    message = bytearray(asked(opt=OPT))
    message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    found = read_query(bytes(message))
    if found is not None:
        assert write_answer(found, 3, datagram=True)[:2] == message[:2]


def test_an_answer_repeats_the_question_and_says_nothing_of_how_long_it_is_good() -> None:
    found = read_query(asked(opt=OPT))
    assert found is not None
    addresses = (b"\x0a\0\0\x09", b"\x0a\0\0\x08")
    message = write_answer(found, 0, addresses, datagram=True)
    assert struct.unpack("!HHHHHH", message[:12]) == (0x1234, 0x8180, 1, 2, 0, 1)
    records = b"".join(struct.pack("!HHHIH", 0xC00C, 1, 1, 0, 4) + address for address in addresses)
    assert message[12:] == found.question + records + found.opt


def test_an_answer_that_a_datagram_cannot_hold_is_left_out_and_said_to_be() -> None:
    found = query("a" * 63 + "." + "b" * 63 + "." + "c" * 63 + ".test", "AAAA")
    addresses = tuple(bytes([number]) * 16 for number in range(16))
    cut = write_answer(found, 0, addresses, datagram=True)
    assert len(cut) <= 512
    assert struct.unpack("!HHHHHH", cut[:12]) == (0x1234, 0x8380, 1, 0, 0, 0)
    whole = write_answer(found, 0, addresses, datagram=False)
    assert struct.unpack("!HHHHHH", whole[:12]) == (0x1234, 0x8180, 1, 16, 0, 0)


def test_a_segment_is_read_when_it_is_nothing_but_whole_queries() -> None:
    one, other = asked(), asked("web.shop.test")
    both = b"".join(len(message).to_bytes(2) + message for message in (one, other))
    assert [found.name for found in read_stream(both) or []] == ["db.shop.test", "web.shop.test"]
    assert [read_stream(both[:length]) for length in (0, 1, 2, len(one) + 1, len(both) - 1)] == [None] * 5
    assert read_stream(both + b"\0") is None


# ---- which queries are meant ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "name", "is_meant"),
    [
        ("db.shop.test", "db.shop.test", True),
        ("DB.Shop.Test.", "db.shop.test", True),
        ("db.shop.test", "xdb.shop.test", False),
        ("db.shop.test", "db.shop.test.corp.test", False),
        ("*.shop.test", "a.b.shop.test", True),
        ("*.shop.test", "shop.test", False),
        ("db-?.shop.test", "db-1.shop.test", True),
        ("db-?.shop.test", "db-12.shop.test", False),
        (["web.test", "db*"], "db.shop.test", True),
        ("db.shop.test", "dbxshop.test", False),
        ("*", "anything.at.all", True),
    ],
)
def test_names_match_patterns(names: str | list[str], name: str, is_meant: bool) -> None:
    assert Matcher(DnsParameters.model_validate({"names": names})).means(query(name)) is is_meant


def test_record_types_limit_what_is_meant() -> None:
    given_types = Matcher(DnsParameters.model_validate({"names": "*", "type": "AAAA"}))
    assert [given_types.means(query(kind=kind)) for kind in ("A", "AAAA")] == [False, True]
    of_the_fault = Matcher(DnsParameters.model_validate({"names": "*"}), frozenset({"A"}))
    assert [of_the_fault.means(query(kind=kind)) for kind in ("A", "MX")] == [True, False]


@pytest.mark.parametrize(
    ("given_parameters", "why"),
    [
        ({}, "Field required"),
        ({"names": []}, "at least 1"),
        ({"names": ""}, "is not a name"),
        ({"names": "a..b"}, "is not a name"),
        ({"names": "shop test"}, "is not a name"),
        ({"names": "müller.test"}, "xn--"),
        ({"names": "[a-z].test"}, "is not a name"),
        ({"names": "a" * 64}, "is not a name"),
        ({"names": "*", "type": "AAA"}, "Input should be"),
        ({"names": "*", "type": []}, "`type` is an empty list"),
        ({"names": "*", "percent": 0}, "percent"),
        ({"names": ["a"] * 101}, "at most 100"),
    ],
)
def test_bad_parameters_are_refused_with_what_is_wrong(given_parameters: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(why)):
        DnsParameters.model_validate(given_parameters)


def test_a_hostile_pattern_takes_no_longer_than_others() -> None:
    """Atomic groups in fnmatch: else this would take until the end of the world."""
    matcher = Matcher(DnsParameters.model_validate({"names": "*a" * 31 + "b"}))
    assert not matcher.means(query(".".join(["a" * 63] * 3)))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, "Field required"),
        ({"delay": 300}, "has no unit"),
        ({"delay": "0ms"}, "greater than 0"),
        ({"delay": "2m"}, "less than or equal to 60000"),
        ({"delay": "100ms", "jitter": "200ms"}, "more than the delay"),
    ],
)
def test_a_delay_has_its_limits(more: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(why)):
        DelayParameters.model_validate({"names": "*", **more})


# ---- rules ----------------------------------------------------------------------------------------------------------


def test_the_lease_comes_first_then_the_exempt_user_and_then_port_53() -> None:
    text = ruleset("brownout-x", (990,), 3, lease_ms=3_500, owned=True)
    body = text.partition("chain asked {\n")[2].partition("\n}")[0].splitlines()
    assert body == [
        "type filter hook output priority -300; policy accept",
        "meta nfproto != @lease accept",
        "meta skuid { 990 } accept",
        "udp dport 53 counter name asked",
        "tcp dport 53 tcp flags & psh == psh counter name asked",
        "udp dport 53 goto queued",
        "tcp dport 53 goto queued",
    ]
    assert "flags owner" in text
    assert "skuid" not in ruleset("brownout-x", (), 3, lease_ms=1, owned=False)
    assert "hook" not in ruleset("brownout-x", (), 3, lease_ms=1, owned=True, hooked=False)


# ---- a connection that is taken over --------------------------------------------------------------------------------

CLIENT = Ends(b"\x0a\0\0\1", 40_000, b"\x0a\0\0\x35", 53)
ASKS = Segment(CLIENT, 100, 500, PSH | ACK, b"query", (7, 3))


def test_the_query_is_answered_and_ended_the_server_is_let_go_and_the_clients_end_acknowledged() -> None:
    takeovers = Takeovers()
    assert not takeovers.has(ASKS)
    answer = takeovers.begin(ASKS, b"answer!")
    assert answer == Segment(CLIENT.reverse, 500, 105, FIN | PSH | ACK, b"answer!", (3, 7))
    acknowledges = Segment(CLIENT, 105, 508, ACK, b"", (8, 3))
    assert takeovers.has(acknowledges)
    assert takeovers.follow(acknowledges) == Segment(CLIENT, 100, 0, RST)
    closes = Segment(CLIENT, 105, 508, FIN | ACK, b"", (9, 3))
    assert takeovers.follow(closes) == Segment(CLIENT.reverse, 508, 106, ACK, b"", (3, 9))
    assert takeovers.follow(acknowledges) is None


def test_a_query_that_is_sent_again_has_the_same_answer() -> None:
    takeovers = Takeovers()
    answer = takeovers.begin(ASKS, b"answer!")
    again = takeovers.follow(ASKS)
    assert again is not None
    assert (again.sequence, again.acknowledged, again.payload) == (500, 105, answer.payload)


def test_a_new_connection_with_the_same_ends_is_not_taken_for_the_old_one() -> None:
    takeovers = Takeovers()
    takeovers.begin(ASKS, b"answer!")
    assert not takeovers.has(Segment(CLIENT, 9, 0, SYN))
    assert not takeovers.has(Segment(CLIENT, 10, 1, ACK))


def test_old_connections_are_forgotten() -> None:
    takeovers = Takeovers()
    many = [Segment(Ends(b"\x0a\0\0\1", port, b"\x0a\0\0\x35", 53), 1, 1, ACK, b"q") for port in range(1, 6_001)]
    for segment in many:
        takeovers.begin(segment, b"a")
    assert not takeovers.has(many[0])
    assert takeovers.has(many[-1])


# ---- judgement ------------------------------------------------------------------------------------------------------


def counted(**counts: int) -> dict[str, int]:
    none = dict.fromkeys(("queries", "unread", "matched", "met", "held_us", "due_us", "asked", "passed", "answered"), 0)
    return {**none, **counts}


@pytest.mark.parametrize(
    ("given_parameters", "counts", "proved", "achieved"),
    [
        ({}, {"queries": 9}, False, None),
        ({}, {"queries": 9, "matched": 3, "met": 3, "asked": 9, "passed": 6, "answered": 3}, True, 100),
        ({}, {"queries": 9, "matched": 3, "met": 3, "asked": 9, "passed": 6, "answered": 2}, False, 200 / 3),
        ({"answer": "timeout"}, {"queries": 9, "matched": 3, "met": 3, "asked": 9, "passed": 6}, True, 100),
        ({"answer": "timeout"}, {"queries": 9, "matched": 3, "met": 3, "asked": 9, "passed": 9}, False, 0),
        ({"percent": 50}, {"queries": 9, "matched": 3, "met": 2, "answered": 2}, False, 200 / 3),  # too few to tell
        ({"percent": 50}, {"queries": 99, "matched": 99, "met": 50, "answered": 50}, True, 5000 / 99),
        ({"percent": 50}, {"queries": 99, "matched": 99, "met": 90, "answered": 90}, False, 9000 / 99),
    ],
)
def test_a_failure_is_proved_by_answers_that_the_kernel_saw_arrive(
    given_parameters: dict[str, Any], counts: dict[str, int], proved: bool, achieved: float | None
) -> None:
    parameters = FailureParameters.model_validate({"names": "*.shop.test", **given_parameters})
    effect = DnsFailure().judge(parameters, counted(**counts))
    assert effect.proved is proved
    assert effect.achieved == (None if achieved is None else pytest.approx(achieved))


def test_where_nobody_asked_it_says_what_else_was_seen() -> None:
    parameters = FailureParameters.model_validate({"names": "*.shop.test"})
    assert DnsFailure().judge(parameters, counted(queries=4)).explanation == (
        "no query matched: nobody asked a DNS server for *.shop.test during the fault; other queries seen: 4"
    )
    assert "no query was seen at all" in DnsFailure().judge(parameters, counted()).explanation


@pytest.mark.parametrize(
    ("held_us", "passed", "proved"),
    [(606_000, 2, True), (700_000, 2, False), (500_000, 2, False), (606_000, 1, False)],
)
def test_a_delay_is_proved_by_how_long_queries_were_held_and_that_they_went_on(
    held_us: int, passed: int, proved: bool
) -> None:
    parameters = DelayParameters.model_validate({"names": "*", "delay": "300ms"})
    counts = counted(queries=2, matched=2, met=2, held_us=held_us, due_us=600_000, asked=2, passed=passed)
    effect = judge_delay(parameters, counts)
    assert effect.proved is proved
    assert effect.achieved == pytest.approx(held_us / 2_000)


def test_a_delay_longer_than_the_fault_says_that_queries_are_held_and_not_that_nobody_asked() -> None:
    parameters = DelayParameters.model_validate({"names": "*", "delay": "60s"})
    effect = judge_delay(parameters, counted(queries=3, asked=3, passed=1))
    assert (effect.proved, effect.explanation) == (False, "2 queries are held; none has been for its whole delay")


def test_a_policy_bounds_how_long_a_delay_is_and_how_many_queries_fail() -> None:
    asked_for = {"names": "*.shop.test", "delay": "3s"}
    delay = catalogue()["dns.delay"]
    parameters = delay.Parameters.model_validate(asked_for)
    with pytest.raises(Refusal, match="delay 3s; this host allows at most 2s"):
        check_ceilings(delay, parameters, {"delay": "2s"}, asked_for)
    with pytest.raises(Refusal, match=r"percent 100\.0; this host allows at most 50"):
        check_ceilings(delay, parameters, {"percent": 50}, asked_for)
    check_ceilings(delay, parameters, {"delay": "3s"}, asked_for)


def test_an_answer_takes_addresses_and_names_but_no_networks() -> None:
    parameters = catalogue()["dns.answer"].Parameters
    assert parameters.model_validate({"names": "*", "to": ["10.0.0.9", "fd00::9", "db-2.shop.test"]})
    for given_parameters, why in (
        ({"to": "10.0.0.0/24"}, "is a network"),
        ({"to": []}, "at least 1"),
        ({"to": "10.0.0.300"}, "is not an address"),
        ({"to": "10.0.0.9", "type": "MX"}, "'A' or 'AAAA'"),
    ):
        with pytest.raises(ValidationError, match=why):
            parameters.model_validate({"names": "*", **given_parameters})
