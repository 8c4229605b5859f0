"""What network faults do to the packets that they mean, beside dropping them: rules and judgements. No kernel."""

import re
from ipaddress import ip_address
from typing import Any

import pytest
from brownout_agent.faults.network_duplicate import copy, judge_duplicate
from brownout_agent.faults.network_flap import FlapParameters, TimeDown, flap, go_down, judge_flap
from brownout_agent.faults.network_reject import RejectParameters, refuse
from brownout_agent.faults.network_reset import ResetParameters, judge_standing, reset
from brownout_agent.faults.network_rules import removal, ruleset
from brownout_agent.faults.network_scope import NetworkParameters, Scope
from brownout_agent.faults.network_table import PacketCounts
from brownout_agent.kernel.nftables import parse_timeouts
from brownout_agent.kernel.tcp_connections import Connection
from pydantic import ValidationError

EVERYONE: dict[str, Any] = {"networks": None, "with_loopback": False, "exempt_peers": [], "exempt_ports": [22]}
SCOPE = Scope.of(NetworkParameters(), EVERYONE)
FLAP = FlapParameters.model_validate({"every": "10s", "down": "3s"})
S = 1_000_000_000


# ---- reject -----------------------------------------------------------------------------------------------------


def test_what_the_rules_answer_by_passes_before_anything_is_refused_or_counted() -> None:
    rules = refuse("refused").rules("egress")
    assert rules[0] == "tcp flags & rst == rst accept"
    assert all(rule.endswith("accept") for rule in rules[:3])
    assert rules[3:] == [
        "counter name egress_seen",
        "meta l4proto tcp counter name egress_dropped reject with tcp reset",
        "counter name egress_dropped reject with icmpx type port-unreachable",
    ]


@pytest.mark.parametrize("answer", ["host-unreachable", "admin-prohibited"])
def test_other_answers_are_icmp_for_every_protocol(answer: Any) -> None:
    rules = refuse(answer).rules("ingress")
    assert rules[-1] == f"counter name ingress_dropped reject with icmpx type {answer}"
    assert not any("tcp reset" in rule for rule in rules)


def test_an_answer_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="'refused', 'host-unreachable' or 'admin-prohibited'"):
        RejectParameters.model_validate({"answer": "tcp-reset"})


# ---- reset ------------------------------------------------------------------------------------------------------

OURS = Connection(ip_address("10.0.0.1"), 40_000, ip_address("10.0.0.9"), 5432)
THEIRS = Connection(ip_address("fd00::1"), 443, ip_address("fd00::9"), 50_000)


def test_standing_connections_are_known_by_both_ends_whichever_way_a_packet_goes() -> None:
    treatment = reset("existing", [OURS, THEIRS])
    assert [re.findall("elements = (.*)", of) for of in treatment.sets] == [
        ["{ 10.0.0.1 . 40000 . 10.0.0.9 . 5432 }"],
        ["{ fd00::1 . 443 . fd00::9 . 50000 }"],
    ]
    out, back = treatment.rules("egress"), treatment.rules("ingress")
    assert out[1] == "delete @untold4 { ip saddr . tcp sport . ip daddr . tcp dport }"
    assert back[1].startswith("ip daddr . tcp dport . ip saddr . tcp sport @untold4 counter")
    assert back[2].startswith("ip6 daddr . tcp dport . ip6 saddr . tcp sport @untold6 counter")


@pytest.mark.parametrize("connections", ["existing", "new", "both"])
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_handshakes_and_resets_pass_first_and_all_that_is_refused_is_counted(connections: Any, direction: str) -> None:
    rules = reset(connections, [OURS]).rules(direction)
    assert rules[0] == "tcp flags & (syn | rst) != 0 accept"
    counted = f"counter name {direction}_seen counter name {direction}_dropped"
    for rule in rules[1:]:
        assert ("reject" in rule or "set rst" in rule) == (counted in rule)
    assert rules[-1].endswith(f"{counted} reject with tcp reset")


@pytest.mark.parametrize("connections", ["existing", "both"])
def test_who_waits_here_is_told_once_by_what_arrives_and_not_after_it_was_told_otherwise(connections: Any) -> None:
    treatment = reset(connections, [OURS])
    told = [rule for rule in treatment.rules("ingress") if rule.endswith("tcp flags set rst accept")]
    assert [re.findall(r"@untold\d", rule) for rule in told] == [["@untold4"] * 2, ["@untold6"] * 2]
    assert all("delete @untold" in rule for rule in told)
    assert sum("delete @untold" in rule for rule in treatment.rules("egress")) == 2
    assert not any("set rst" in rule for rule in treatment.rules("egress"))


def test_sets_of_nobody_have_no_elements_and_large_ones_hold_all() -> None:
    assert not any("elements" in of for of in reset("existing", []).sets)
    assert sum("size 1\n" in of for of in reset("existing", []).sets) == 2
    assert sum("size 70000\n" in of for of in reset("existing", [OURS] * 70_000).sets) == 1


@pytest.mark.parametrize(("connections", "names"), [("existing", {"untold"}), ("new", set()), ("both", {"untold"})])
def test_there_are_the_sets_that_the_rules_look_into_and_no_others(connections: Any, names: set[str]) -> None:
    treatment = reset(connections, [OURS])
    used = {
        name for way in ("ingress", "egress") for rule in treatment.rules(way) for name in re.findall(r"@(\w+)", rule)
    }
    assert (
        used == {of.split()[1] for of in treatment.sets} == {f"{name}{version}" for name in names for version in (4, 6)}
    )


@pytest.mark.parametrize("protocol", ["udp", "any", "icmp"])
def test_only_tcp_can_be_reset(protocol: str) -> None:
    with pytest.raises(ValidationError, match="'tcp'"):
        ResetParameters.model_validate({"protocol": protocol})


@pytest.mark.parametrize(
    ("standing", "hit", "proved", "achieved", "said"),
    [
        (0, 0, False, None, "no connection (any peer) stood when the fault began"),
        (2, 0, False, 0, "the kernel reset 0 of the 2 connections that stood (any peer); the rest carried nothing"),
        (4, 3, True, 75, "the kernel reset 3 of the 4 connections that stood (any peer); the rest carried nothing"),
        (1, 1, True, 100, "the kernel reset 1 of the 1 connections that stood (any peer)"),
    ],
)
def test_a_reset_is_proved_by_a_connection_that_met_one(
    standing: int, hit: int, proved: bool, achieved: float | None, said: str
) -> None:
    effect = judge_standing(SCOPE, standing, hit)
    assert (effect.proved, effect.achieved, effect.explanation) == (proved, achieved, said)


# ---- flap -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "why"),
    [
        ({"every": "10s"}, "Field required"),
        ({"every": "10s", "down": "99ms"}, "`down` is at least 100ms"),
        ({"every": "3s", "down": "3s"}, "`every` is at least 100ms more than `down`"),
        ({"every": "1s", "down": "950ms"}, "`every` is at least 100ms more than `down`"),
        ({"every": 10, "down": 3}, "unit"),
    ],
)
def test_times_that_cannot_be_kept_are_refused(times: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(why)):
        FlapParameters.model_validate(times)


def test_what_is_up_passes_after_it_was_seen_and_before_it_is_dropped() -> None:
    assert flap(3_000).rules("egress") == [
        "counter name egress_seen",
        "meta nfproto != @down accept",
        "counter name egress_dropped drop",
    ]
    assert go_down("brownout-x", 7, 2_990) == (
        "add element inet brownout-x down { ipv4 timeout 2990ms, ipv6 timeout 2990ms }\n"
        "add element inet brownout-x times_down { 7 timeout 32990ms }\n"
    )


def test_time_outs_are_read_as_nft_prints_them() -> None:
    listed = """table inet brownout-x {
        set times_down {
            type mark
            flags timeout
            elements = { 0x00000000 timeout 33s expires 26s984ms, 0x0000000b timeout 1h1m2s3ms expires 59m59s,
                         0x00000002 timeout 1d expires 8ms }
        }
    }"""
    assert parse_timeouts(listed) == {
        "0x00000000": (33_000, 26_984),
        "0x0000000b": (3_662_003, 3_599_000),
        "0x00000002": (86_400_000, 8),
    }


def judged(times: dict[int, TimeDown], now_s: float, dropped: int = 5) -> tuple[bool, float | None, str]:
    effect = judge_flap(FLAP, SCOPE, {"egress": PacketCounts(20, dropped)}, times, round(now_s * S))
    assert (effect.asked, effect.unit) == (30, "% of time")
    return effect.proved, effect.achieved, effect.explanation


def down(*began_s: float, length_s: float = 3) -> dict[int, TimeDown]:
    return {
        round(at_s / 10 - 10): TimeDown(round(at_s * S), round(length_s * S)) for at_s in began_s
    }  # the first at 100 s


@pytest.mark.parametrize("now_s", [101, 103, 109, 110.5, 112, 119, 125])
def test_it_is_proved_at_any_time_when_it_is_down_as_asked(now_s: float) -> None:
    times = down(*(at_s for at_s in (100, 110, 120) if at_s <= now_s))
    proved, achieved, _ = judged(times, now_s)
    assert proved
    assert achieved == pytest.approx(30)


def test_a_time_down_that_did_not_come_or_was_cut_short_is_missed() -> None:
    proved, achieved, said = judged(down(100, 120), 129)
    assert not proved
    assert achieved == pytest.approx(20)
    assert said.startswith("down for 6.00 of the 9.00 s asked, 2 times")
    assert not judged(down(100, 110, length_s=2.5), 119)[0]
    assert judged(down(100, 110, length_s=2.9), 119)[0]


def test_the_first_time_down_may_be_forgotten_by_the_kernel_before_it_was_read() -> None:
    _, achieved, said = judged(down(110, 120), 125)
    assert said.startswith("down for 6.00 of the 9.00 s asked")
    assert achieved == pytest.approx(20)


def test_a_flap_that_nobody_met_or_saw_is_not_proved() -> None:
    assert not judged(down(100), 109, dropped=0)[0]
    assert judged({}, 109) == (False, None, "no time down was seen")


# ---- duplicate --------------------------------------------------------------------------------------------------


def bits(of: str) -> list[int]:
    """The numbers of a rule that are marks or masks."""
    return [int(number, 16) for number in re.findall(r"0x[0-9a-f]+", of)]


@pytest.mark.parametrize("tag", [1, 0x1234, 2**14 - 1])
def test_a_packet_that_is_copied_goes_on_with_the_mark_that_it_had(tag: int) -> None:
    treatment, own_mark = copy(100, tag), 0xBEEF
    for direction in ("egress", "ingress"):
        foreign, *_, drawn = treatment.rules(direction)
        assert foreign == "meta mark & 0xffff0000 != 0 accept"
        rest, to_copy = bits(drawn)
        mark = own_mark & rest | to_copy
        for family, rules in treatment.beside:
            (rule,) = rules(direction)
            assert f" dup to {family} daddr" in rule
            mask, is_drawn, kept, marked, restored = bits(rule)
            assert mark & mask == is_drawn
            copied = mark & kept | marked
            assert copied & restored == own_mark
            assert copied & 0xFFFF_0000  # so that it is not copied again
            for way in ("egress", "ingress"):
                counted_mask, counted = bits(treatment.first(way)[0])
                assert (copied & counted_mask == counted) == (way == direction)


def test_copies_and_drawn_packets_of_several_faults_are_told_apart() -> None:
    treatments = [copy(50, tag) for tag in (1, 2, 2**14 - 1)]
    counted = [bits(treatment.first(way)[0])[1] for treatment in treatments for way in ("egress", "ingress")]
    to_copy = [bits(treatment.rules("egress")[-1])[1] for treatment in treatments]
    assert len({*counted, *to_copy}) == 9
    assert all(0 < mark < 2**32 and not mark & 0xFFFF for mark in (*counted, *to_copy))


def test_what_arrives_for_somebody_else_is_not_copied_and_what_leaves_keeps_its_device() -> None:
    treatment = copy(50, 1)
    assert "fib daddr type != local accept" in treatment.rules("ingress")
    assert not any("fib" in rule for rule in treatment.rules("egress"))
    for _, rules in treatment.beside:
        assert "device oif" in rules("egress")[0]
        assert "device" not in rules("ingress")[0]


def test_tables_beside_come_and_go_with_the_one_that_has_the_lease() -> None:
    text = ruleset("brownout-x", SCOPE, copy(50, 1), lease_ms=1_000, owned=True)
    assert re.findall(r"table (\S+) brownout-x", text) == ["inet", "ip", "ip6"]
    assert text.count("flags owner") == 3
    assert text.count("set lease") == 1
    assert text.count("priority -299") == 4
    assert "hook" not in ruleset("brownout-x", SCOPE, copy(50, 1), lease_ms=1_000, owned=True, hooked=False)
    removed = [f"delete table {family} brownout-x" for family in ("inet", "ip", "ip6")]
    assert removal("brownout-x", copy(50, 1).families).splitlines() == removed


@pytest.mark.parametrize(
    ("seen", "copied", "proved", "said"),
    [
        (0, 0, False, "no packet matched: nobody talked to any peer during the fault"),
        (1_000, 0, False, "copies of 0 of 1000 packets (any peer); 30 % lies outside"),
        (1_000, 300, True, "copies of 300 of 1000 packets (any peer); 30 % lies inside"),
        (10, 3, False, "too few to prove 30 %, which takes 17"),
    ],
)
def test_a_duplicate_is_proved_by_the_copies_that_were_met(seen: int, copied: int, proved: bool, said: str) -> None:
    effect = judge_duplicate(30, SCOPE, seen, copied)
    assert effect.proved is proved
    assert said in effect.explanation
