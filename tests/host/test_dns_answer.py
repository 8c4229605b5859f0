"""dns.answer against real servers, judged by dig, by getaddrinfo and by the kernel."""

import asyncio
import os
from collections.abc import Iterator

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Refusal
from brownout_agent.faults.network_rules import FAMILY
from brownout_agent.kernel.nftables import table_names

from tests.host.dns_server import SERVERS, SHOP, SHOP6, dig, dns_hosts, look_up
from tests.host.network_pair import FAR, Pair, inside
from tests.support.faultbench import held

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]


@pytest.fixture(scope="module")
def net() -> Iterator[Pair]:
    with dns_hosts() as pair:
        yield pair


@pytest.fixture(autouse=True)
def near(net: Pair) -> Iterator[Pair]:
    """Every test runs inside `near`, finds it without rules and leaves it so."""
    with inside(net.near):
        assert table_names(FAMILY) == []
        yield net
        assert table_names(FAMILY) == []


def test_it_can_be_done_here_and_finding_that_out_leaves_nothing() -> None:
    assert catalogue()["dns.answer"].detect(Host()).able
    assert table_names(FAMILY) == []


def test_a_name_resolves_to_what_was_given_for_no_longer_than_the_fault(near: Pair) -> None:
    async def scene() -> None:
        async with held("dns.answer", names="*.shop.test", to=["192.0.2.1", "192.0.2.2", "2001:db8::1"]) as it:
            for server in SERVERS:
                for more in ((), ("+tcp",), ("+noedns",)):
                    answered = dig(server, "db.shop.test", *more)
                    assert (answered.values, answered.ttls) == (["192.0.2.1", "192.0.2.2"], {0}), answered.text
            assert dig(FAR, "db.shop.test", "AAAA").values == ["2001:db8::1"]
            assert look_up(near.near, "db.shop.test")[0] == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
            it.meter.sample()
            assert it.meter.effect().proved, it.meter.effect().explanation
        assert look_up(near.near, "db.shop.test")[0] == [SHOP, SHOP6]

    asyncio.run(scene())


def test_a_family_without_an_address_has_none_and_other_types_pass() -> None:
    async def scene() -> None:
        async with held("dns.answer", names="*", to="192.0.2.1"):
            nothing = dig(FAR, "db.shop.test", "AAAA")
            assert (nothing.status, nothing.values) == ("NOERROR", [])
            assert len(dig(FAR, "big.other.test", "TXT").values) == 8

    asyncio.run(scene())


def test_more_addresses_than_a_datagram_holds_come_by_tcp() -> None:
    async def scene() -> None:
        many = [f"2001:db8::{number:x}" for number in range(1, 17)]
        async with held("dns.answer", names="*", to=many):
            answered = dig(FAR, f"a-name-of-many-letters.{'x' * 40}.shop.test", "AAAA", "+noedns")
            assert (answered.values, answered.by_tcp) == (sorted(many), True)

    asyncio.run(scene())


def test_another_names_addresses_are_those_that_it_has_when_the_fault_starts() -> None:
    fault = catalogue()["dns.answer"]
    parameters = fault.Parameters.model_validate({"names": "*", "to": "localhost"})
    assert "127.0.0.1" in fault.prepare(parameters, Host())["addresses"]
    unknown = fault.Parameters.model_validate({"names": "*", "to": "no-such-host.invalid"})
    with pytest.raises(Refusal, match="cannot resolve no-such-host"):
        fault.prepare(unknown, Host())
