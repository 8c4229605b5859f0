"""network.flap against the kernel: when a real client in another namespace is cut off, and for how long."""

import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from brownout_agent.faults.network_rules import FAMILY, table_name
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.nftables import table_names
from brownout_agent.kernel.processes import send_signal

from tests.host.network_pair import BYSTANDER, FAR, FAR6, Pair, inside, network_pair, tcp_answers, udp_answers
from tests.support.faultbench import Held, held

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]

_TRY_EVERY_S = 0.002
_TICKS_S = 0.008
_LATE_S = 0.1


@pytest.fixture(scope="module")
def cable() -> Iterator[Pair]:
    with network_pair() as pair:
        yield pair


@pytest.fixture(autouse=True)
def inside_near(cable: Pair) -> Iterator[None]:
    """Every test runs inside `near`, finds it without rules and leaves it so."""
    with inside(cable.near):
        assert table_names(FAMILY) == []
        yield
        assert table_names(FAMILY) == []


@dataclass(frozen=True)
class TimeDown:
    """When a client could not send: it began and ended between two of its tries each, in seconds since the first."""

    began_s: tuple[float, float]
    ended_s: tuple[float, float]

    def lasted(self, seconds: float) -> bool:
        """Whether it can have lasted that long, within two ticks of a kernel's clock of 250 Hz."""
        shortest, longest = self.ended_s[0] - self.began_s[1], self.ended_s[1] - self.began_s[0]
        return shortest - _TICKS_S <= seconds <= longest + _TICKS_S

    def began_after(self, other: "TimeDown", seconds: float) -> bool:
        """Whether it can have begun that long after another; each may have begun a little late."""
        shortest, longest = self.began_s[0] - other.began_s[1], self.began_s[1] - other.began_s[0]
        return shortest - _LATE_S <= seconds <= longest + _LATE_S


def times_down(address: str, seconds: float) -> list[TimeDown]:
    """Of a client that sends every few milliseconds, and is told by the kernel, in the same call, what is dropped.

    One that it does not see the beginning or the end of is not among them.
    """
    tries: list[tuple[float, bool]] = []
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((address, 7001))
        first_s = time.monotonic()
        while (at_s := time.monotonic() - first_s) < seconds:
            tries.append((at_s, _is_dropped(client)))
            time.sleep(_TRY_EVERY_S)
    changes = [(before, after) for (before, was), (after, is_dropped) in itertools.pairwise(tries) if was != is_dropped]
    if tries[0][1]:
        del changes[0]
    return [TimeDown(began, ended) for began, ended in zip(changes[::2], changes[1::2], strict=False)]


def _is_dropped(client: socket.socket) -> bool:
    try:
        client.send(b"?")
    except PermissionError:
        return True
    return False


async def sampled(it: Held, address: str, seconds: float) -> list[TimeDown]:
    """What the client saw, with the meter read as often as the injector would, and at the end."""
    seen = asyncio.create_task(asyncio.to_thread(times_down, address, seconds))
    while not seen.done():
        it.meter.sample()
        await asyncio.wait({seen}, timeout=1)
    it.meter.sample()
    return seen.result()


@pytest.mark.parametrize("peer", [FAR, FAR6])
def test_it_is_down_as_long_and_as_often_as_asked_by_a_clients_clock_and_by_the_kernels(peer: str) -> None:
    async def scene() -> None:
        async with held("network.flap", to=[FAR, FAR6], every="1s", down="600ms") as it:
            times = await sampled(it, peer, 4.2)
            assert 3 <= len(times) <= 4
            assert all(one.lasted(0.6) for one in times), times
            assert all(later.began_after(sooner, 1) for sooner, later in itertools.pairwise(times)), times
            effect = it.meter.effect()
            assert effect.proved, effect
            assert effect.asked == 60
            assert effect.achieved == pytest.approx(60, rel=0.05)
            assert effect.unit == "% of time"
        assert udp_answers(peer, 7001)

    asyncio.run(scene())


def test_a_bystander_sees_nothing_and_a_connection_outlives_it() -> None:
    async def scene() -> None:
        with socket.create_connection((FAR, 7001), timeout=5) as connection:
            async with held("network.flap", to=FAR, every="400ms", down="300ms"):
                assert all(tcp_answers(BYSTANDER, 7001, timeout_s=5) for _ in range(100))
                connection.sendall(b"through")  # sent again and again, until one of them is
                assert connection.recv(16) == b"through"

    asyncio.run(scene())


def test_a_holder_that_is_stopped_leaves_the_link_up() -> None:
    async def scene() -> None:
        async with held("network.flap", to=FAR, every="1s", down="600ms") as it:
            send_signal(it.holder.key, signal.SIGSTOP)
            assert times_down(FAR, 2.5) == []  # the first was down already
            assert udp_answers(FAR, 7001)
            send_signal(it.holder.key, signal.SIGCONT)
            again = await sampled(it, FAR, 2.5)
            # Those that it slept through are not made up for: they come one by one again, when they are due.
            assert 1 <= len(again) <= 3
            assert all(one.lasted(0.6) for one in again), again
            assert all(later.began_after(sooner, 1) for sooner, later in itertools.pairwise(again)), again
            effect = it.meter.effect()
            assert not effect.proved
            assert effect.achieved is not None
            assert effect.achieved < 0.9 * effect.asked

    asyncio.run(scene())


def test_it_ends_with_its_holder_though_it_was_to_be_down_for_long() -> None:
    async def scene() -> None:
        async with held("network.flap", to=[FAR, FAR6], every="10m", down="9m") as it:
            assert table_names(FAMILY) == [table_name(it.record.fault_id)]
            assert not tcp_answers(FAR, 7001)
            assert not tcp_answers(FAR6, 7001)
            send_signal(it.holder.key, signal.SIGKILL)
            await it.holder.died()
            assert table_names(FAMILY) == []
            assert tcp_answers(FAR, 7001)

    asyncio.run(scene())


def test_without_traffic_the_times_are_told_and_nothing_is_proved() -> None:
    async def scene() -> None:
        async with held("network.flap", to="10.99.0.77", every="300ms", down="100ms") as it:
            began_ns = boottime_ns()
            while boottime_ns() - began_ns < 700_000_000:
                await asyncio.sleep(0.1)
                it.meter.sample()
            effect = it.meter.effect()
            assert not effect.proved
            assert effect.achieved == pytest.approx(100 / 3, rel=0.2)
            assert "it dropped 0 of 0 packets (10.99.0.77)" in effect.explanation

    asyncio.run(scene())
