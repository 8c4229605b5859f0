"""Who a process fault means by port, unit, control group and tree, of real processes; judged by who stands still."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults.contract import Host, Refusal
from brownout_agent.faults.process_crash_loop import CrashLoopParameters, _running
from brownout_agent.faults.process_match import ProcessParameters, match
from brownout_agent.faults.process_places import NobodyMatches
from brownout_agent.kernel.processes import read_stat

from tests.support.faultbench import held
from tests.support.grouped import in_group, unit_group, unit_name
from tests.support.services import free_port

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="looks at the files of others")]
_LISTENS = """
import os, signal, socket, sys
kind = socket.SOCK_DGRAM if sys.argv[1] == "udp" else socket.SOCK_STREAM
listener = socket.socket(socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET, kind)
listener.bind((sys.argv[2], int(sys.argv[3])))
if kind is socket.SOCK_STREAM:
    listener.listen()
pid = os.fork() if "worker" in sys.argv else 1
if pid:
    print(pid, flush=True)
signal.pause()
"""
_CONNECTS = """
import signal, socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print(0, flush=True)
signal.pause()
"""
_STARTS = """
import os, signal
heard, told = os.pipe()
child = os.fork()
if not child:
    grandchild = os.fork()
    if grandchild:
        os.write(told, b"%d\\n" % grandchild)
    signal.pause()
print(child, int(os.read(heard, 20)), flush=True)
signal.pause()
"""


@contextmanager
def running(program: str, *words: object, group: Path | None = None) -> Iterator[list[int]]:
    """A program's pid, and those that it says once it is ready."""
    argv = in_group(group, sys.executable, "-I", "-S", "-c", program, *map(str, words))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            yield [process.pid, *map(int, process.stdout.readline().split())]
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def meant(**parameters: Any) -> list[int]:
    return [process.key.pid for process in match(ProcessParameters.model_validate(parameters), Host())]


@pytest.mark.parametrize(("kind", "address"), [("tcp", "127.0.0.1"), ("tcp", "::1"), ("udp", "127.0.0.1")])
def test_by_port_those_are_meant_who_listen_there_and_not_who_connects(kind: str, address: str) -> None:
    port, other = free_port(), free_port()
    with running(_LISTENS, kind, address, port) as (listener, _), running(_LISTENS, kind, address, other):
        if kind == "udp":
            assert meant(port=port) == [listener]
            return
        with running(_CONNECTS, address, port):
            assert meant(port=port) == [listener]
    with pytest.raises(NobodyMatches, match=f"nobody listens on port {port}") as caught:
        meant(port=port)
    assert caught.value.remedy == "look for it with `ss -tulnp`"


def test_workers_that_listen_with_their_master_are_meant_as_well_and_narrowed_by_pid() -> None:
    port = free_port()
    with running(_LISTENS, "tcp", "127.0.0.1", port, "worker") as (master, worker):
        assert meant(port=port) == [master, worker]
        assert meant(port=port, pid=worker) == [worker]
        with pytest.raises(NobodyMatches, match=f"no process matches process nginx, port {port}"):
            meant(port=port, process="nginx")


def test_a_fault_hits_the_listener_and_leaves_its_client_alone() -> None:
    async def scene() -> None:
        port = free_port()
        with (
            running(_LISTENS, "tcp", "127.0.0.1", port) as (listener, _),
            running(_CONNECTS, "127.0.0.1", port) as (client, _),
        ):
            async with held("process.pause", port=port):
                assert stands_still(listener)
                assert not stands_still(client)
            assert not stands_still(listener)

    asyncio.run(scene())


def test_by_unit_and_by_control_group_those_in_it_and_below_are_meant() -> None:
    unit = unit_name()
    with unit_group(unit, "worker") as group:
        with pytest.raises(NobodyMatches, match=f"no process runs in {unit}"):
            meant(unit=unit)
        with pytest.raises(NobodyMatches, match=f"no process runs in control group /{unit}"):
            meant(cgroup=f"/{unit}")
        with (
            running("print(0, flush=True); import signal; signal.pause()", group=group / "worker") as (inside, _),
            running("print(0, flush=True); import signal; signal.pause()") as (outside, _),
        ):
            assert meant(unit=unit) == meant(cgroup=f"/{unit}") == meant(cgroup=f"/{unit}/worker") == [inside]
            with pytest.raises(Refusal, match="no process matches"):
                meant(unit=unit, pid=outside)
            with pytest.raises(Refusal, match="no process runs in") as caught:
                meant(unit=f"{unit[:-9]}x.service")
            assert caught.value.remedy == f"did you mean {unit}?"


def test_a_tree_is_hit_as_a_whole_and_set_going_again() -> None:
    async def scene() -> None:
        with running(_STARTS) as family, running(_STARTS) as others:
            assert meant(pid=family[0]) == [family[0]]
            assert meant(pid=family[0], tree=True) == family
            async with held("process.pause", pid=family[0], tree=True):
                assert all(map(stands_still, family))
                assert not any(map(stands_still, others))
            assert not any(map(stands_still, family))

    asyncio.run(scene())


def test_a_crash_loop_finds_whoever_listens_at_each_beat_and_waits_while_nobody_does() -> None:
    port = free_port()
    parameters = CrashLoopParameters(port=port)
    nobody = 2**22 + 1  # what the test itself has started would be taken for holders; no pid is as large
    facts = {"injector_pid": nobody, "spared_pids": [], "spared_names": [], "spared_programs": []}
    assert _running(parameters, None, facts) == []
    for _ in range(2):
        with running(_LISTENS, "tcp", "127.0.0.1", port) as (listener, _):
            assert [process.key.pid for process in _running(parameters, None, facts)] == [listener]
    assert _running(parameters, None, facts) == []


def stands_still(pid: int) -> bool:
    stat = read_stat(pid)
    assert stat is not None
    return stat.state in "tT"
