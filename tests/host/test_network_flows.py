"""Network faults that mean old or new connections, or a share of the flows: the others of the same peer go on."""

import asyncio
from collections.abc import Iterator

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Refusal
from brownout_agent.faults.network_share import explains
from brownout_agent.kernel.tcp_connections import read_open

from tests.host.network_pair import FAR, FAR6, Pair, inside, network_pair
from tests.support.faultbench import held
from tests.support.grouped import Talker, talking, unit_group, unit_name
from tests.support.polling import wait_until

pytestmark = pytest.mark.root
FLOWS = 40


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with network_pair() as pair:
        yield pair


@pytest.fixture
def talker(pair: Pair) -> Iterator[Talker]:
    with inside(pair.near):
        wait_until(lambda: not read_open(), "the connections of the test before are closed")
        with talking(None) as talker:
            yield talker


@pytest.mark.parametrize("peer", [FAR, FAR6])
@pytest.mark.parametrize("asked", ["existing", "new"])
def test_old_or_new_connections_are_met_and_the_others_are_not(talker: Talker, peer: str, asked: str) -> None:
    async def scene() -> None:
        talker.took_ms("connect", "old", peer, 7001)
        async with held("network.blackhole", to=peer, protocol="tcp", connections=asked) as it:
            expected = ("timed out", "") if asked == "existing" else ("", "timed out")
            assert (talker.error("echo", "old"), talker.error("fresh", peer, 7001)) == expected
            assert talker.error("udp", peer, 7001) == ""
            it.meter.sample()
            effect = it.meter.effect()
            assert effect.proved
            assert effect.achieved == 100
            assert effect.explanation.endswith(f"({peer} tcp over {asked} connections)")

    asyncio.run(scene())


def test_new_connections_alone_are_late_also_where_a_holder_has_the_packets(talker: Talker) -> None:
    async def scene() -> None:
        talker.took_ms("connect", "old", FAR, 7001)
        async with held("network.latency", to=FAR, protocol="tcp", connections="new", latency="50ms") as it:
            assert min(talker.took_ms("fresh", FAR, 7001, times=3)) > 98
            assert min(talker.took_ms("echo", "old", times=20)) < 20
            it.meter.sample()
            assert it.meter.effect().proved

    asyncio.run(scene())


def test_a_fault_of_old_connections_is_not_proved_by_new_ones(talker: Talker) -> None:
    async def scene() -> None:
        async with held("network.blackhole", to=FAR, protocol="tcp", connections="existing") as it:
            talker.took_ms("fresh", FAR, 7001, times=5)
            it.meter.sample()
            effect = it.meter.effect()
            assert not effect.proved
            assert f"nobody talked to {FAR} tcp over existing connections during the fault" in effect.explanation

    asyncio.run(scene())


def test_old_connections_of_a_unit_are_told_from_its_new_ones_and_from_old_ones_of_others(talker: Talker) -> None:
    async def scene() -> None:
        unit = unit_name()
        with unit_group(unit) as group, talking(group) as own:
            for one in (own, talker):
                one.took_ms("connect", "old", FAR, 7001)
            async with held("network.blackhole", to=FAR, protocol="tcp", connections="existing", unit=unit):
                assert own.error("echo", "old") == "timed out"
                assert own.error("fresh", FAR, 7001) == talker.error("echo", "old") == ""

    asyncio.run(scene())


@pytest.mark.parametrize("peer", [FAR, FAR6])
def test_a_share_of_the_flows_is_met_whole_both_ways_and_the_others_not_at_all(talker: Talker, peer: str) -> None:
    async def scene() -> None:
        names = [f"flow {number}" for number in range(FLOWS)]
        for name in names:
            talker.took_ms("connect", name, peer, 7001)
        async with held("network.latency", to=peer, share="50%", latency="30ms", direction="both") as it:
            late = {name for name in names if min(talker.took_ms("echo", name, times=2)) > 50}
            assert explains(50, len(late), FLOWS)[0], len(late)
            for name in names:
                took_ms = talker.took_ms("echo", name, times=2)
                assert (min(took_ms) > 60) if name in late else (min(took_ms) < 50), (name, took_ms)
            it.meter.sample()
            effect = it.meter.effect()
            assert effect.proved
            assert effect.explanation.endswith("packets of flows that were not drawn passed")

    asyncio.run(scene())


def test_where_every_flow_was_met_nothing_shows_a_share(talker: Talker) -> None:
    async def scene() -> None:
        async with held("network.blackhole", to=FAR, share=99.9999) as it:
            assert talker.error("fresh", FAR, 7001) == "timed out"
            it.meter.sample()
            effect = it.meter.effect()
            assert not effect.proved
            assert effect.explanation.endswith("; no packets of flows that were not drawn passed")

    asyncio.run(scene())


@pytest.mark.usefixtures("pair")
def test_a_share_of_loopback_flows_is_refused() -> None:
    fault = catalogue()["network.blackhole"]
    with pytest.raises(Refusal, match="both ends of a loopback flow are here"):
        fault.prepare(fault.Parameters.model_validate({"to": "127.0.0.1", "share": 50}), Host())
