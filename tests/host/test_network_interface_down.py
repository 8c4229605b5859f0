"""network.interface_down on a real cable between two namespaces; `ip` says what the interface has, before and after."""

import asyncio
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Facts, Host, Peer, Record, Refusal
from brownout_agent.kernel.processes import send_signal, wait_dead

from tests.host.network_pair import FAR, FAR6, NEAR, NEAR6, Pair, inside, network_pair, run, tcp_error
from tests.support.faultbench import held
from tests.support.polling import wait_until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
KIND = "network.interface_down"
HAS = """
address add 10.99.0.7/24 dev eth0 label eth0:x
address add fd99::7/64 dev eth0 nodad
address add fd99::8/64 dev eth0 nodad noprefixroute
address add fd98::1 peer fd98::2 dev eth0 nodad
route add default via 10.99.0.2 metric 50
route add 192.0.2.0/24 via 10.99.0.3 dev eth0 table 77 src 10.99.0.7 mtu 1300 proto static
route add 198.51.100.0/24 via 10.98.0.1 dev eth0 onlink
route add local 10.5.0.0/24 dev eth0
-6 route add 2001:db8::/32 via fd99::2 dev eth0 src fd99::7 metric 33
-6 route add default via fe80::1 dev eth0
-6 route add unreachable 2001:db8:9::/48
neighbour add 10.99.0.3 lladdr 02:00:00:00:00:03 dev eth0 nud permanent
neighbour add fd99::77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
neighbour add proxy 10.99.0.99 dev eth0
rule add iif eth0 table 77
""".strip().splitlines()
LOOKS = (
    "link show dev eth0", "-4 address show dev eth0", "-6 address show dev eth0", "-4 route show table all",
    "-6 route show table all", "neighbour show dev eth0 nud permanent", "neighbour show proxy", "rule show",
)  # fmt: skip


@pytest.fixture(scope="module")
def cable() -> Iterator[Pair]:
    with network_pair() as pair:
        with inside(pair.near):
            for line in HAS:
                ip(line)
        yield pair


@pytest.fixture(autouse=True)
def whole(cable: Pair) -> Iterator[str]:
    """Every test runs inside `near`; afterwards the interface has exactly what it had."""
    with inside(cable.near):
        wait_until(lambda: "tentative" not in shown(), "the kernel has looked for duplicates")
        before = shown()
        yield before
        wait_until(lambda: shown() == before, f"what it was:\n{before}\n{shown()}")


def ip(line: str) -> str:
    return run("ip", *line.split())


def shown() -> str:
    """All that `ip` tells of the interface, lifetimes in whole hundreds of seconds."""
    text = "\n".join(ip(f"-d {look}") for look in LOOKS)
    return re.sub(r"(\d+)\d\dsec", r"\1xx sec", text)


def recorded(host: Host | None = None, **parameters: object) -> Record:  # type: ignore[type-arg]
    """A record as the journal has it, of a fault that is not on."""
    fault = catalogue()[KIND]
    model = fault.Parameters.model_validate({"interface": "eth0", **parameters})
    facts: Facts = fault.prepare(model, host or Host())
    return Record("fault-1", model, facts, 30.0)


def reason(host: Host | None = None, **parameters: object) -> str:
    with pytest.raises(Refusal) as refused:
        recorded(host, **parameters)
    assert refused.value.remedy
    return refused.value.reason


def undo(record: Record) -> None:  # type: ignore[type-arg]
    fault = catalogue()[KIND]
    fault.undo(record)
    assert fault.residue(record) == []


def until_as(before: str) -> None:
    """Only the link-local address is waited for, which the kernel makes."""
    wait_until(lambda: shown() == before, f"what it was:\n{before}")


def is_down() -> bool:
    return "state DOWN" in ip("link show dev eth0")


def test_it_goes_down_and_comes_back_with_all_that_it_had() -> None:
    assert [tcp_error(address, 7001) for address in (FAR, FAR6)] == ["", ""]

    async def scene() -> None:
        async with held(KIND, interface="eth0") as it:
            assert is_down()
            assert "2001:db8" not in ip("-6 route show dev eth0"), "what a plain down takes"
            assert [tcp_error(address, 7001) for address in (FAR, FAR6)] == ["ENETUNREACH", "ENETUNREACH"]
            it.meter.sample()
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.asked, effect.achieved, effect.proved, effect.samples) == (100, 100, True, 2), effect

    asyncio.run(scene())
    wait_until(lambda: [tcp_error(address, 7001) for address in (FAR, FAR6)] == ["", ""], "both families answer")


def test_it_stays_down_when_its_holder_is_killed_until_somebody_undoes_and_the_residue_says_so(whole: str) -> None:
    async def scene() -> None:
        async with held(KIND, interface="eth0") as it:
            send_signal(it.holder.key, signal.SIGKILL)
            assert wait_dead([it.holder.key], 5) == []
            assert is_down()
            assert it.fault.residue(it.record) == ["interface eth0 is still down; next: ip link set eth0 up"]
            for _ in range(3):
                undo(it.record)
            until_as(whole)

    asyncio.run(scene())


def test_what_a_plain_up_does_not_bring_is_told_and_given_back(whole: str) -> None:
    """As after an undo that died right after its first step, or an administrator who was faster."""
    record = recorded()
    ip("link set eth0 down")
    ip("link set eth0 up")
    assert shown() != whole
    left = catalogue()[KIND].residue(record)
    told = {line.partition(" of eth0 is missing")[0] for line in left}
    assert {"address fd99::7/64", "route 2001:db8::/32", "route 0/0", "neighbour 10.99.0.3"} <= told, left
    undo(record)
    until_as(whole)


def test_undoing_what_was_never_applied_changes_nothing(whole: str) -> None:
    undo(recorded())
    assert shown() == whole


def test_a_route_through_an_address_that_is_looked_for_first_waits_for_it() -> None:
    """An address without `nodad` is tentative for a second; a route may not name it as its source before."""
    with added("address add fd97::1/64 dev eth0"):
        wait_until(lambda: "tentative" not in shown(), "the kernel has looked for duplicates")
        with added("-6 route add 2001:db8:7::/48 via fd97::2 dev eth0 src fd97::1"):
            before = shown()

            async def scene() -> None:
                async with held(KIND, interface="eth0"):
                    assert is_down()

            asyncio.run(scene())
            until_as(before)


def test_what_ends_by_itself_comes_back_with_what_is_left_of_its_time() -> None:
    with (
        added("address add fd97::5/64 dev eth0 nodad valid_lft 900 preferred_lft 500"),
        added("-6 route add 2001:db8:5::/48 via fd99::2 dev eth0 expires 700"),
        added("address add fd97::6/64 dev eth0 nodad valid_lft 1 preferred_lft 1"),
    ):
        record = recorded()
        ip("link set eth0 down")
        assert "fd97::5" not in shown()
        ip("link set eth0 up")
        wait_until(lambda: not any("fd97::6" in line for line in catalogue()[KIND].residue(record)), "its time is over")
        undo(record)
        found = re.search(r"fd97::5/64.*\n\s+valid_lft (\d+)sec preferred_lft (\d+)sec", ip("-6 address show dev eth0"))
        expires = re.search(r"2001:db8:5::/48 .*expires (\d+)sec", ip("-6 route show"))
        assert found is not None
        assert expires is not None
        assert "fd97::6" not in shown()
        ip("address add fd97::6/64 dev eth0 nodad")  # for who takes it away
        lasts = [int(found[1]), int(found[2]), int(expires[1])]
        assert [900 - 20 <= lasts[0] < 900, 500 - 20 <= lasts[1] < 500, 700 - 20 <= lasts[2] < 700] == [True] * 3, lasts
    ip("-6 route flush fd97::/64")  # the kernel leaves the prefix of an address that was to end, until it ends itself


@contextmanager
def added(line: str) -> Iterator[None]:
    """Something more that the interface has, or stands there, for a while."""
    ip(line)
    try:
        yield
    finally:
        words = line.replace(" add ", " delete ").split()
        ends = next((at for at, word in enumerate(words) if word in {"nodad", "expires", "lladdr"}), len(words))
        run("ip", *words[:ends])


def test_an_interface_that_goes_away_takes_the_fault_with_it() -> None:
    ip("link add bo-gone type veth peer name bo-end")
    ip("link set bo-gone up")

    async def scene() -> None:
        async with held(KIND, interface="bo-gone") as it:
            it.meter.sample()
            ip("link delete bo-gone")
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.achieved, effect.proved) == (50, False), effect

    asyncio.run(scene())


def test_it_is_not_proved_when_somebody_brings_it_up() -> None:
    async def scene() -> None:
        async with held(KIND, interface="eth0") as it:
            it.meter.sample()
            ip("link set eth0 up")
            it.meter.sample()
            effect = it.meter.effect()
            assert (effect.achieved, effect.proved) == (50, False), effect
            assert "was down in 1 of 2 readings" in effect.explanation

    asyncio.run(scene())


def test_what_changed_since_it_was_read_is_not_lost() -> None:
    fault = catalogue()[KIND]
    record = recorded()
    with added("address add 10.96.0.1/24 dev eth0"), pytest.raises(Refusal, match="changed what eth0 has meanwhile"):
        fault.apply(record.parameters, record.facts, _NoHold())
    ip("link add bo-v type veth peer name bo-w")
    try:
        ip("link set bo-v up")
        record = recorded(interface="bo-v")
        ip("link set bo-v down")
        with pytest.raises(Refusal, match="taken bo-v down or away meanwhile"):
            fault.apply(record.parameters, record.facts, _NoHold())
    finally:
        ip("link delete bo-v")


class _NoHold:
    """Nothing may come so far that it is asked for."""

    fault_id, duration_s = "fault-1", 30.0

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"it went on to {name}")


@pytest.mark.parametrize("address", [FAR, FAR6])
def test_the_interface_of_an_ssh_connection_and_of_the_controller_is_refused(address: str) -> None:
    with socket.create_connection((address, 22), timeout=3):
        assert "eth0 carries the SSH connection from" in reason()
    assert f"eth0 carries the way to {address}, controller or protected peer" in reason(
        Host(exempt_peers=(Peer(address),))
    )
    with socket.create_connection((address, 7001), timeout=3):
        assert "eth0 carries" in reason(Host(exempt_peers=(Peer(address, 7001),)))


@pytest.mark.parametrize("own", [NEAR, NEAR6])
def test_one_whose_address_a_connection_within_the_host_uses_is_refused(own: str) -> None:
    family = socket.AF_INET6 if ":" in own else socket.AF_INET
    with socket.create_server((own, 0), family=family) as server:
        port = server.getsockname()[1]
        with socket.create_connection((own, port), timeout=3):
            assert "eth0 carries the way to" in reason(Host(exempt_peers=(Peer(own, port),)))


def test_a_port_of_the_bridge_by_which_the_controller_is_reached_is_refused() -> None:
    ip("link add bo-port type veth peer name bo-far")
    ip("link add bo-br type bridge")
    try:
        ip("link set bo-port master bo-br")
        for name in ("bo-br", "bo-port", "bo-far"):
            ip(f"link set {name} up")
        ip("address add 10.95.0.1/24 dev bo-br")
        wait_until(lambda: "NO-CARRIER" not in ip("link show dev bo-br"), "the bridge has a port")
        assert "bo-port carries the way to 10.95.0.2" in reason(
            Host(exempt_peers=(Peer("10.95.0.2"),)), interface="bo-port"
        )
        recorded(Host(exempt_peers=(Peer("10.95.0.2"),)), interface="bo-far")
    finally:
        ip("link delete bo-br")
        ip("link delete bo-port")


def test_what_it_could_not_give_back_and_what_makes_no_sense_is_refused() -> None:
    ip("link add bo-v type veth peer name bo-w")
    try:
        assert reason(interface="bo-v") == "bo-v is down already"
        ip("link set bo-v up")
        ip("link set bo-w up")
        assert "no network interface bo-q" in reason(interface="bo-q")
        assert "lo is by what programs" in reason(interface="lo")
        assert "this host's policy allows this fault on bo-w only" in reason(
            Host(interfaces=("bo-w",)), interface="bo-v"
        )
        unfinished = ((KIND, recorded(interface="bo-v").facts),)
        assert "has a network.interface_down already" in reason(Host(unfinished=unfinished), interface="bo-v")
        recorded(Host(unfinished=unfinished), interface="bo-w")
        ip("nexthop add id 7 dev bo-v")
        assert "bo-v has could not all be given back: it has a nexthop object" in reason(interface="bo-v")
        ip("nexthop delete id 7")
        ip("address add fd94::1/64 dev bo-v nodad")
        ip("-6 route add 2001:db8:1::/48 nexthop via fd94::2 dev bo-v nexthop via fd99::2 dev eth0")
        assert "the route to 2001:db8:1::/48 has several ways (ECMP)" in reason(interface="bo-v")
        ip("-6 route delete 2001:db8:1::/48")
        ip("link add link bo-v name bo-on type macvlan")
        assert reason(interface="bo-v") == "bo-on would go down with bo-v, on which it stands"
        ip("link delete bo-on")
        recorded(interface="bo-v")
    finally:
        ip("link delete bo-v")


def test_an_ipv4_route_with_another_way_keeps_it_and_gets_its_own_back() -> None:
    ip("link add bo-v type veth peer name bo-w")
    try:
        ip("link set bo-v up")
        ip("link set bo-w up")
        ip("address add 10.94.0.1/24 dev bo-v")
        with added("route add 203.0.113.0/24 nexthop via 10.94.0.2 dev bo-v nexthop via 10.99.0.2 dev eth0"):
            before = shown()

            async def scene() -> None:
                async with held(KIND, interface="bo-v"):
                    assert "dead" in ip("route show 203.0.113.0/24")

            asyncio.run(scene())
            until_as(before)
    finally:
        ip("link delete bo-v")
