"""Which packets a network fault means: parameters, hostile text, and the rules that come of it. No kernel."""

import ipaddress
import re
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from brownout_agent.faults.network_group import SocketGroup
from brownout_agent.faults.network_loss import LossParameters, judge_loss
from brownout_agent.faults.network_rules import drawn, drop, ruleset, table_name
from brownout_agent.faults.network_scope import NetworkParameters, Scope, parse_network, parse_port_range
from brownout_agent.faults.network_share import wilson_interval
from brownout_agent.faults.network_table import PacketCounts, judge_all
from brownout_agent.kernel.tcp_connections import Connection
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

EVERYONE: dict[str, Any] = {
    "networks": None, "with_loopback": False, "exempt_peers": [["10.0.0.1/32", 7443]], "exempt_ports": [22],
}  # fmt: skip


def scope(networks: list[str] | None = None, *, with_loopback: bool = False, **given_parameters: Any) -> Scope:
    facts = {**EVERYONE, "networks": networks, "with_loopback": with_loopback}
    return Scope.of(NetworkParameters.model_validate(given_parameters), facts)


def rules(of: Scope, percent: float = 100) -> str:
    return ruleset("brownout-x", of, drop(percent), lease_ms=30_500, owned=True)


def chain(text: str, name: str) -> list[str]:
    body = re.search(rf"chain {name} \{{\n(.*?)\n\}}", text, re.DOTALL)
    assert body is not None
    return body[1].splitlines()


# ---- parameters -------------------------------------------------------------------------------------------------


def test_one_value_and_a_list_of_them_are_the_same() -> None:
    one = NetworkParameters.model_validate({"to": "10.0.0.9", "port": 5432})
    many = NetworkParameters.model_validate({"to": ["10.0.0.9"], "port": ["5432"]})
    assert one == many


@pytest.mark.parametrize(
    ("given_parameters", "why"),
    [
        ({"to": "10.0.0.300"}, "`10.0.0.300` is not an address"),
        ({"to": "10.0.0"}, "is not an address"),
        ({"to": "db 1"}, "is not an address, a CIDR or a host name"),
        ({"to": 'db"; flush ruleset; "'}, "is not an address, a CIDR or a host name"),
        ({"to": "a" * 64}, "is not an address, a CIDR or a host name"),
        ({"to": []}, "`to` is an empty list"),
        ({"to": None}, "valid string"),
        ({"port": []}, "`port` is an empty list"),
        ({"port": "0"}, "within 1-65535"),
        ({"port": 65_536}, "within 1-65535"),
        ({"port": -1}, "is not a port"),
        ({"port": "8080-8000"}, "the lower one first"),
        ({"port": "http"}, "`http` is not a port"),
        ({"port": True}, "valid string"),
        ({"port": 80, "protocol": "icmp"}, "icmp has no ports"),
        ({"protocol": "sctp"}, "'tcp', 'udp', 'icmp' or 'any'"),
        ({"direction": "out"}, "'ingress', 'egress' or 'both'"),
        ({"interface": 'eth0" accept'}, "is not the name of a network interface"),
        ({"interface": "eth*"}, "is not the name of a network interface"),
        ({"interface": "a-name-too-long-for-it"}, "is not the name of a network interface"),
        ({"interface": ""}, "is not the name of a network interface"),
        ({"unit": "nginx"}, "should match pattern"),
        ({"unit": 'x".service'}, "should match pattern"),
        ({"cgroup": "system.slice"}, "should match pattern"),
        ({"cgroup": "/system.slice/../x"}, "without `.` and `..`"),
        ({"unit": "nginx.service", "cgroup": "/x"}, "both say whose sockets"),
        ({"unit": "nginx.service", "protocol": "icmp"}, "belongs to no socket"),
        ({"connections": "new"}, "only TCP has new connections: write `protocol: tcp`"),
        ({"connections": "old", "protocol": "tcp"}, "'existing', 'new' or 'both'"),
        ({"share": 0}, "share"),
        ({"share": "101%"}, "share"),
        ({"peers": "10.0.0.9"}, "Extra inputs are not permitted"),
    ],
)
def test_bad_parameters_are_refused_with_what_is_wrong(given_parameters: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(why)):
        NetworkParameters.model_validate(given_parameters)


@pytest.mark.parametrize("percent", [0, -1, 101, float("nan"), float("inf"), "much", True])
def test_loss_takes_a_percentage_above_zero(percent: object) -> None:
    with pytest.raises(ValidationError):
        LossParameters.model_validate({"percent": percent})


@given(st.text(max_size=40), st.text(max_size=20), st.text(max_size=12))
def test_no_text_of_a_user_reaches_the_rules_but_plain_names(to: str, interface: str, port: str) -> None:
    try:
        parameters = NetworkParameters.model_validate({"to": to, "interface": interface, "port": port})
    except ValidationError:
        return
    text = rules(Scope.of(parameters, {**EVERYONE, "networks": ["10.0.0.9/32"]}))
    assert re.fullmatch(r'[A-Za-z0-9_.:+@"/{};,<!=\- \n]*', text)
    assert f'"{interface}"' in text
    assert text.count('"') == text.count(f'"{interface}"') * 2 + text.count('"lo" accept') * 2


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.9", "10.0.0.9/32"),
        ("10.0.0.9/24", "10.0.0.0/24"),
        ("::ffff:10.0.0.9", "10.0.0.9/32"),
        ("fe80::1%eth0", "fe80::1/128"),
        ("fd00::/8", "fd00::/8"),
    ],
)
def test_addresses_become_networks(text: str, network: str) -> None:
    assert parse_network(text) == ipaddress.ip_network(network)


@given(st.integers(1, 65_535), st.integers(1, 65_535))
def test_a_port_range_is_read_as_it_is_written(one: int, other: int) -> None:
    first, last = sorted((one, other))
    assert parse_port_range(f"{first}-{last}") == (first, last)


# ---- rules ------------------------------------------------------------------------------------------------------


def test_the_lease_comes_first_and_the_exempt_before_everything_that_is_meant() -> None:
    lines = chain(rules(scope()), "egress")
    assert lines[0] == "type filter hook output priority -300; policy accept"
    assert lines[1] == "meta nfproto != @lease accept"
    assert lines[-1] == "goto egress_meant"
    assert all(line.endswith("accept") for line in lines[1:-1])
    assert any("nd-neighbor-solicit" in line for line in lines)
    assert "ip daddr 10.0.0.1/32 tcp dport 7443 accept" in lines
    assert "tcp sport { 22 } accept" in lines
    assert "tcp dport { 22 } accept" in lines
    assert 'oifname "lo" accept' in lines
    assert "ip saddr 10.0.0.1/32 tcp sport 7443 accept" in chain(rules(scope()), "ingress")


def test_a_port_is_matched_on_either_side_and_families_apart() -> None:
    meant = scope(["10.0.0.9/32", "fd00::9/128"], port=[5432, "5433", "6000-6010", "6005"], protocol="tcp")
    assert [line for line in chain(rules(meant), "ingress") if "goto" in line] == [
        "ip saddr { 10.0.0.9/32 } meta l4proto { tcp } th sport { 5432-5433, 6000-6010 } goto ingress_meant",
        "ip saddr { 10.0.0.9/32 } meta l4proto { tcp } th dport { 5432-5433, 6000-6010 } goto ingress_meant",
        "ip6 saddr { fd00::9/128 } meta l4proto { tcp } th sport { 5432-5433, 6000-6010 } goto ingress_meant",
        "ip6 saddr { fd00::9/128 } meta l4proto { tcp } th dport { 5432-5433, 6000-6010 } goto ingress_meant",
    ]


def test_networks_that_overlap_are_merged_as_an_interval_set_needs_it() -> None:
    text = rules(scope(["10.0.0.9/32", "10.0.0.0/24", "10.0.1.0/24"]))
    assert "ip daddr { 10.0.0.0/23 } goto egress_meant" in text


GROUP = {"name": "nginx.service", "folder": "/sys/fs/cgroup/unified/system.slice/nginx.service", "level": 2}


def of_group(**given_parameters: Any) -> Scope:
    facts = {**EVERYONE, "networks": ["10.0.0.9/32"], "with_loopback": True, "group": GROUP}
    return Scope.of(NetworkParameters.model_validate(given_parameters), facts)


def test_a_group_is_the_last_thing_that_a_packet_is_looked_at_for_and_everyone_is_exempt_before() -> None:
    text = rules(of_group(port=80))
    meant = [line for line in chain(text, "egress") if "goto" in line]
    assert all(line.endswith("socket cgroupv2 level 2 @groups goto egress_meant") for line in meant)
    assert len(meant) == 2
    assert "set groups { type cgroupsv2\n}" in text
    assert "groups" not in rules(scope())


def test_a_loopback_packet_is_looked_at_twice_by_group_since_it_has_another_socket_each_time() -> None:
    text = rules(of_group())
    assert not any('"lo" accept' in line for name in ("ingress", "egress") for line in chain(text, name))


def test_a_group_is_written_to_nft_by_its_path_below_the_folder_where_that_looks() -> None:
    assert of_group().group == SocketGroup(**GROUP)
    assert SocketGroup("x", "/sys/fs/cgroup/unified/a/b.scope", 2).element == '"unified/a/b.scope"'
    assert SocketGroup("x", "/run/groups/b.scope", 1).element == '"../../../run/groups/b.scope"'
    with pytest.raises(ValueError, match="no path of a control group that rules can have"):
        SocketGroup("x", '/sys/fs/cgroup/a"; flush ruleset; "', 1)


STOOD = Connection(ip_address("10.0.0.1"), 40_000, ip_address("10.0.0.9"), 5432)


@pytest.mark.parametrize(("connections", "spared"), [("new", "@standing"), ("existing", "!= @standing")])
def test_connections_that_are_not_asked_for_go_before_anything_is_counted(connections: str, spared: str) -> None:
    asked = replace(scope(protocol="tcp", connections=connections), standing=frozenset({STOOD}))
    text = rules(asked)
    assert chain(text, "egress_meant")[:2] == [
        f"ip saddr . tcp sport . ip daddr . tcp dport {spared}4 accept",
        f"ip6 saddr . tcp sport . ip6 daddr . tcp dport {spared}6 accept",
    ]
    assert chain(text, "ingress_meant")[0] == f"ip daddr . tcp dport . ip saddr . tcp sport {spared}4 accept"
    assert "elements = { 10.0.0.1 . 40000 . 10.0.0.9 . 5432 }" in text
    assert "standing" not in rules(scope(protocol="tcp"))


def test_a_share_of_the_flows_is_drawn_alike_both_ways_and_anew_by_each_fault() -> None:
    def drawn_by(table: str, direction: str) -> list[str]:
        return chain(ruleset(table, scope(share="30%"), drop(100), lease_ms=1, owned=True), f"{direction}_meant")

    leaves, arrives = drawn_by("brownout-x", "egress"), drawn_by("brownout-x", "ingress")
    assert [re.findall(r"seed 0x[0-9a-f]{8} >= 300000 counter name egress_spared", rule) for rule in leaves[:4]] == (
        [re.findall("seed.*", leaves[0].removesuffix(" accept"))] * 4
    )
    turned = str.maketrans("sd", "ds")
    ends = [re.findall(r"\b[sd](?:addr|port)", rule) for rule in leaves[:4]]
    assert [re.findall(r"\b[sd](?:addr|port)", rule) for rule in arrives[:4]] == [
        [end[0].translate(turned) + end[1:] for end in each] for each in ends
    ]
    assert re.findall("seed 0x\\S+", leaves[0]) == re.findall("seed 0x\\S+", arrives[0])
    assert re.findall("seed 0x\\S+", leaves[0]) != re.findall("seed 0x\\S+", drawn_by("brownout-y", "egress")[0])


def test_one_direction_makes_one_chain() -> None:
    text = rules(scope(direction="ingress"))
    assert "hook input" in text
    assert "output" not in text
    assert "egress" not in text


def test_with_both_directions_loopback_packets_meet_one_chain_only() -> None:
    text = rules(scope(["127.0.0.1/32"], with_loopback=True))
    assert 'iifname "lo" accept' in text
    assert 'oifname "lo" accept' not in text
    one_way = rules(scope(["127.0.0.1/32"], with_loopback=True, direction="ingress"))
    assert 'iifname "lo" accept' not in one_way


def test_loss_is_drawn_from_a_million_lots_and_total_loss_needs_none() -> None:
    assert "numgen random mod 1000000 < 125000 counter" in rules(scope(), 12.5)
    assert "numgen" not in rules(scope(), 100)
    assert drawn(0.000001) == "numgen random mod 1000000 < 1 "


def test_a_table_is_named_after_its_fault_whatever_the_id_looks_like() -> None:
    assert table_name("0123ABCD-4567-89ab-cdef-000000000000") == "brownout-0123abcd4567"
    odd = {table_name("run/1"), table_name("run/2"), table_name('"; flush ruleset'), table_name("abc")}
    assert len(odd) == 4
    assert all(re.fullmatch(r"brownout-[0-9a-f]{12}", name) for name in odd)


def test_what_a_fault_means_reads_well() -> None:
    assert scope(["10.0.0.9/32", "10.1.0.0/16"], port=["80", "8000-8080"], protocol="tcp", interface="eth0").text == (
        "10.0.0.9, 10.1.0.0/16 port 80, 8000-8080 tcp through eth0"
    )
    assert scope().text == "any peer"


# ---- judgement --------------------------------------------------------------------------------------------------


def test_a_blackhole_is_proved_by_a_dropped_packet_and_only_by_that() -> None:
    met = judge_all("dropped", scope(), {"ingress": PacketCounts(3, 3), "egress": PacketCounts(1, 1)})
    assert (met.proved, met.achieved) == (True, 100)
    assert "3 of 3 ingress and 1 of 1 egress" in met.explanation
    missed = judge_all("dropped", scope(["10.0.0.9/32"]), {"ingress": PacketCounts(0, 0), "egress": PacketCounts(0, 0)})
    assert (missed.proved, missed.achieved) == (False, None)
    assert missed.explanation == "no packet matched: nobody talked to 10.0.0.9 during the fault"


@pytest.mark.parametrize(
    ("percent", "seen", "dropped", "proved"),
    [
        (30, 1_000, 300, True),
        (30, 1_000, 340, True),
        (30, 1_000, 360, False),
        (30, 1_000, 0, False),
        (1, 499, 5, False),  # too few, though the share is right
        (1, 500, 5, True),
        (100, 5, 5, True),
        (100, 50, 49, False),
        (0.1, 5_000, 5, True),
    ],
)
def test_loss_is_proved_when_what_was_asked_explains_what_was_counted(
    percent: float, seen: int, dropped: int, proved: bool
) -> None:
    effect = judge_loss(percent, scope(), {"egress": PacketCounts(seen, dropped)})
    assert effect.proved is proved
    assert effect.achieved == pytest.approx(100 * dropped / seen)
    assert f"{dropped} of {seen} packets" in effect.explanation


def test_wilsons_interval_agrees_with_published_figures() -> None:
    """Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3, at 95 %."""
    for hits, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(hits, trials, 0.95) == pytest.approx((low, high), abs=5e-5)
