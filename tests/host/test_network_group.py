"""Network faults that mean the sockets of one unit: who else talks to the same peer is left alone."""

import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Meter, Refusal
from brownout_agent.faults.network_group import find_group
from brownout_agent.faults.network_scope import NetworkParameters
from brownout_agent.kernel.cgroups import unified_tree
from brownout_agent.kernel.processes import read_stat

from tests.host.network_pair import ECHO, FAR, FAR6, NEAR, Pair, inside, network_pair, tcp_answers
from tests.support.faultbench import held
from tests.support.grouped import Talker, serving, talking, unit_group, unit_name
from tests.support.polling import wait_until

pytestmark = pytest.mark.root

HOW_MUCH: dict[str, dict[str, Any]] = {
    "network.corrupt": {"percent": 100},
    "network.duplicate": {"percent": 100},
    "network.flap": {"every": "10s", "down": "9s"},
    "network.latency": {"latency": "20ms", "direction": "both"},
    "network.loss": {"percent": 100},
    "network.partition": {"to": FAR},
    "network.rate": {"rate": "1mbit"},
    "network.reorder": {"percent": 50},
    "network.reset": {"connections": "both"},
}
"""Parameters that a fault cannot do without, or by which it meets what a short talk sends."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with network_pair() as pair:
        yield pair


@pytest.fixture(autouse=True)
def _near(pair: Pair) -> Iterator[None]:
    with inside(pair.near):
        yield


@contextmanager
def unit_and_other() -> Iterator[tuple[str, Talker, Talker]]:
    """A unit's name, a program of it, and one that is in no unit."""
    unit = unit_name()
    with unit_group(unit) as group, talking(group) as own, talking(None) as other:
        yield unit, own, other


@pytest.mark.parametrize("peer", [FAR, FAR6])
def test_new_connections_of_the_unit_and_those_that_stood_are_met_and_nobody_elses(peer: str) -> None:
    async def scene() -> None:
        with unit_and_other() as (unit, own, other):
            assert own.error("connect", "old", peer, 7001) == other.error("connect", "old", peer, 7001) == ""
            async with held("network.blackhole", to=peer, unit=unit) as it:
                assert own.error("echo", "old") == "timed out"
                assert own.error("fresh", peer, 7001) == "timed out"
                assert own.error("udp", peer, 7001) == "EPERM"
                assert other.error("echo", "old") == other.error("fresh", peer, 7001) == ""
                assert other.error("udp", peer, 7001) == ""
                it.meter.sample()
                effect = it.meter.effect()
                assert effect.proved
                assert effect.achieved == 100
                assert effect.explanation.endswith(f"({peer} by {unit})")
            assert own.error("fresh", peer, 7001) == ""

    asyncio.run(scene())


@pytest.mark.parametrize(
    "kind", sorted(kind for kind, fault in catalogue().items() if issubclass(fault.Parameters, NetworkParameters))
)
def test_each_network_fault_meets_packets_of_the_unit_alone(kind: str) -> None:
    async def scene() -> None:
        with unit_and_other() as (unit, own, other):
            async with held(kind, unit=unit, **{"to": FAR, "protocol": "tcp"} | HOW_MUCH.get(kind, {})) as it:
                other.took_ms("fresh", FAR, 7001, times=20)
                it.meter.sample()
                assert not it.meter.effect().proved
                assert not any(it.meter.counters.values())
                own.error("fresh", FAR, 7001)
                it.meter.sample()
                assert any(it.meter.counters.values())

    asyncio.run(scene())


@contextmanager
def far_client(pair: Pair) -> Iterator[Talker]:
    """A program on the other host."""
    with ExitStack() as stack:
        with inside(pair.far):
            client = stack.enter_context(talking(None))
        yield client


def test_a_unit_that_serves_is_late_for_who_asks_it_and_its_neighbour_is_not(pair: Pair) -> None:
    async def scene() -> None:
        unit = unit_name()
        with (
            unit_group(unit, "worker") as group,
            serving(group / "worker", ECHO, 6001),
            serving(None, ECHO, 6002),
            far_client(pair) as client,
        ):
            async with held("network.latency", unit=unit, latency="60ms") as it:
                # Of a handshake its first packet is late, and then the question is.
                assert 118 < statistics.median(client.took_ms("fresh", NEAR, 6001, times=5)) < 140
                assert statistics.median(client.took_ms("fresh", NEAR, 6002, times=20)) < 10
                it.meter.sample()
                assert it.meter.effect().proved

    asyncio.run(scene())


def test_the_answer_to_a_handshake_belongs_to_no_socket_and_what_follows_it_does(pair: Pair) -> None:
    async def scene() -> None:
        unit = unit_name()
        with unit_group(unit) as group, serving(group, ECHO, 6001), far_client(pair) as client:
            async with held("network.blackhole", unit=unit, direction="egress"):
                assert client.error("connect", "half", NEAR, 6001) == ""
                assert client.error("echo", "half") == "timed out"

    asyncio.run(scene())


def test_a_socket_keeps_the_group_in_which_it_was_made() -> None:
    async def scene() -> None:
        with unit_and_other() as (unit, own, other):
            group = find_group(unit, None)
            assert group is not None
            home = _group_of(os.getpid())
            for talker, to in ((own, home), (other, Path(group.folder))):
                assert talker.error("connect", "old", FAR, 7001) == ""
                assert talker.error("move", f"{to}/cgroup.procs") == ""
            async with held("network.blackhole", to=FAR, unit=unit):
                assert (own.error("echo", "old"), own.error("fresh", FAR, 7001)) == ("timed out", "")
                assert (other.error("echo", "old"), other.error("fresh", FAR, 7001)) == ("", "timed out")

    asyncio.run(scene())


def test_between_programs_of_one_host_the_unit_is_met_at_its_end() -> None:
    async def scene() -> None:
        unit = unit_name()
        with unit_group(unit) as group, serving(group, ECHO, 6001), serving(None, ECHO, 6002):
            async with held("network.blackhole", unit=unit, to="127.0.0.1"):
                assert not tcp_answers("127.0.0.1", 6001)
                assert tcp_answers("127.0.0.1", 6002)

    asyncio.run(scene())


def test_a_unit_that_is_started_anew_is_met_again_and_the_meter_says_so() -> None:
    async def scene() -> None:
        unit = unit_name()
        with unit_group(unit) as group, talking(None) as other:
            async with held("network.blackhole", to=FAR, unit=unit) as it:
                with talking(group) as own:
                    assert own.error("fresh", FAR, 7001) == "timed out"
                it.meter.sample()
                wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
                group.rmdir()
                it.meter.sample()
                assert it.meter.effect().explanation.endswith(f"; {unit} was not there in 1 of 2 looks")
                group.mkdir()
                it.meter.sample()  # returns when it has seen that the new group is met
                with talking(group) as own:
                    assert own.error("fresh", FAR, 7001) == "timed out"
                    assert other.error("fresh", FAR, 7001) == ""
                # Once the length of a look is a small share of the fault's time.
                wait_until(lambda: is_proved(it.meter), "it is proved")
                assert f"; {unit} was started anew 1 times, and met again " in it.meter.effect().explanation

    asyncio.run(scene())


def test_a_unit_that_was_started_anew_while_nobody_followed_it_proves_nothing() -> None:
    async def scene() -> None:
        unit = unit_name()
        with unit_group(unit) as group, talking(group) as own:
            async with held("network.blackhole", to=FAR, unit=unit) as it:
                assert own.error("fresh", FAR, 7001) == "timed out"
                it.meter.sample()
                assert it.meter.effect().proved
                assert own.error("move", f"{_group_of(os.getpid())}/cgroup.procs") == ""
                wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
                os.kill(it.holder.key.pid, signal.SIGSTOP)
                try:
                    wait_until(lambda: _state_of(it.holder.key.pid) == "T", "the holder is stopped")
                    group.rmdir()
                    group.mkdir()
                    it.meter.sample()
                    effect = it.meter.effect()
                    assert not effect.proved, effect.explanation
                    assert f"; whether {unit} was met could not be seen: " in effect.explanation
                finally:
                    os.kill(it.holder.key.pid, signal.SIGCONT)

    asyncio.run(scene())


def test_a_reset_of_those_that_stand_counts_those_of_the_unit() -> None:
    async def scene() -> None:
        with unit_and_other() as (unit, own, other):
            for name in ("used", "idle"):
                assert own.error("connect", name, FAR, 7001) == other.error("connect", name, FAR, 7001) == ""
            async with held("network.reset", to=FAR, unit=unit) as it:
                assert own.error("echo", "used") == "ECONNRESET"
                assert other.error("echo", "used") == ""
                it.meter.sample()
                effect = it.meter.effect()
                assert (effect.proved, effect.achieved) == (True, 50)
                assert "reset 1 of the 2 connections that stood" in effect.explanation
                assert own.error("fresh", FAR, 7001) == ""

    asyncio.run(scene())


def test_a_control_group_is_named_by_its_path_as_well() -> None:
    async def scene() -> None:
        unit = unit_name()
        with unit_group(unit, "one", "two") as group, talking(group / "one") as one, talking(group / "two") as two:
            async with held("network.reject", to=FAR, cgroup=f"/{unit}/one"):
                assert one.error("fresh", FAR, 7001) == "ECONNREFUSED"
                assert two.error("fresh", FAR, 7001) == ""

    asyncio.run(scene())


def test_a_unit_and_a_group_that_are_not_there_are_refused_with_the_nearest_name() -> None:
    fault, unit = catalogue()["network.blackhole"], unit_name()
    with unit_group(unit, "worker"):
        wrong = unit.replace("test-", "tset-")
        for parameters, reason, remedy in (
            ({"unit": wrong}, f"{wrong} does not run here: it has no control group in ", f"did you mean {unit}?"),
            ({"cgroup": f"/{unit}/w"}, f"there is no control group /{unit}/w in ", f"did you mean /{unit}/worker?"),
        ):
            with pytest.raises(Refusal, match=re.escape(reason)) as refused:
                fault.prepare(fault.Parameters.model_validate(parameters), Host())
            assert refused.value.remedy == remedy


def test_a_host_without_groups_of_version_2_refuses() -> None:
    look = (
        "import subprocess, sys\n"
        "from brownout_agent.faults.network_group import find_group\n"
        "from brownout_agent.kernel.cgroups import unified_tree\n"
        "while (tree := unified_tree()) is not None: subprocess.run(['umount', tree], check=True)\n"
        "find_group('nginx.service', None)\n"
    )
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", look]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "Refusal: this host has no control groups of version 2 mounted" in done.stderr


def is_proved(meter: Meter) -> bool:
    meter.sample()
    return meter.effect().proved


def _state_of(pid: int) -> str:
    stat = read_stat(pid)
    return stat.state if stat else "gone"


def _group_of(pid: int) -> Path:
    """Its group of version 2."""
    tree = unified_tree()
    assert tree is not None
    (path,) = re.findall(r"^0::(.*)$", Path(f"/proc/{pid}/cgroup").read_text(), re.MULTILINE)
    return tree / path.lstrip("/")
