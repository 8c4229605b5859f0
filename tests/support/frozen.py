"""One host with every fault on, and any of our processes stopped by SIGSTOP: when does the kernel show each fault gone?

Agent, injector, holders and watchdog are stopped in any combination. The agent is the test's own client: stopped, it
renews no lease and reads nothing. Whether a fault is there is read from /proc and nftables, never from our records.
"""

import asyncio
import contextlib
import itertools
import os
import resource
import shutil
import signal
import socket
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import TRIAL_S, Commands
from brownout_agent.faults.dns_table import DnsFault
from brownout_agent.faults.network_rules import FAMILY, table_name
from brownout_agent.faults.network_table import NetworkFault
from brownout_agent.frames import to_value
from brownout_agent.kernel.cgroups import own_groups
from brownout_agent.kernel.nftables import table_names
from brownout_agent.kernel.processes import is_alive, key_of, read_stat
from brownout_protos.v1 import fault_pb2

from tests.support import executed
from tests.support.control_groups import LIMITS, new_group, thaw
from tests.support.deaths_kernel import UNLIMITED
from tests.support.injectors import ACCEPTED, Client, connect, holders, injector, new_id, running, watchdogs_done
from tests.support.one_at_a_time import service
from tests.support.services import free_port
from tests.support.standby import FEW_PORTS, is_down

LEASE_S = 5.0
FAULT_MS = 120_000
"""Longer than it takes to have two of every kind on."""
KERNEL_BOUND_S = LEASE_S + 1.0
RESTART_BOUND_S = KERNEL_BOUND_S + 5.0
"""Where the end is work of programs: `exec.run`, and `process.kill` with `restart`."""
WATCHDOG_BOUND_S = 30.0
_BY_GROUP = {
    "process.pid_exhaustion": ("crowded", "pids"),
    "cpu.throttle": ("throttled", "cpu"),
    "memory.limit": ("squeezed", "memory"),
    "process.freeze": ("frozen", "freezer"),
    "disk.throttle": ("slow", "io"),
}
"""By kind: the program whose control group is limited, which is its own, and the group's controller."""
UNDONE = frozenset({"exec.run", "process.kill", "process.fd_exhaustion", "network.interface_down", *_BY_GROUP})
"""What somebody must undo, since no death of a process does."""
PARTS = ("agent", "injector", "holders", "watchdog")
COMBINATIONS = tuple(
    chosen for count in range(1, len(PARTS) + 1) for chosen in itertools.combinations(PARTS, count)
    if chosen != ("watchdog",)
)  # fmt: skip
"""All but the watchdog alone, without which everything goes on as ordered."""
POLICY = """
version: 1
environment: staging
faults: {"*": {allow: true, max_seconds: 120}}
limits: {concurrent: 128}
"""
_AT_ONCE = 3
"""Faults that are begun side by side: more on a machine with two cores, and a trial of the control path times out."""
_RENEW_EVERY_S = 0.5
_POLL_S = 0.05
_STOPPED, _DEAD = frozenset("Tt"), frozenset({"", "Z", "X"})
"""Letters of proc_pid_stat(5). One that runs again is R until it has had a core to sleep on."""


@dataclass(frozen=True)
class FrozenFault:
    """A fault that is on, and how the kernel shows it."""

    kind: str
    fault_id: str
    is_there: Callable[[frozenset[str]], bool]
    """Told the names of all tables of nftables, which are read once for all faults."""


def still_there(faults: Iterable[FrozenFault]) -> list[FrozenFault]:
    """Those of them that the kernel shows now."""
    tables = frozenset(table_names(FAMILY))
    return [fault for fault in faults if fault.is_there(tables)]


def bound_s(kind: str, frozen: tuple[str, ...]) -> float | None:
    """Within what time a fault has to be gone when these are stopped; None where nobody is left who could end it."""
    if kind not in UNDONE:
        return KERNEL_BOUND_S
    if "injector" not in frozen:
        return RESTART_BOUND_S if kind in {"exec.run", "process.kill"} else KERNEL_BOUND_S
    return None if "watchdog" in frozen else WATCHDOG_BOUND_S


async def freeze_each(
    folder: Path, combinations: Sequence[tuple[str, ...]] = COMBINATIONS, at_once: int = 4
) -> dict[tuple[str, ...], dict[str, float | None]]:
    """`freeze` every combination, so many side by side."""
    slots = asyncio.Semaphore(at_once)

    async def one(frozen: tuple[str, ...]) -> dict[str, float | None]:
        async with slots:
            place = folder / "-".join(frozen)
            place.mkdir()
            return await freeze(place, frozen)

    return dict(zip(combinations, await asyncio.gather(*map(one, combinations)), strict=True))


async def freeze(folder: Path, frozen: tuple[str, ...]) -> dict[str, float | None]:
    """Have every fault on, stop these, and watch: seconds until each kind was seen gone, None if not in its bound."""
    async with victims(folder), everything_allowed(folder) as serving:
        client = await connect(folder)
        async with renewing(client) as renewals:
            faults = await all_on(client, folder)
            pids = await asyncio.to_thread(_pids_of, serving.pid, faults)
            stopped = [pid for part in frozen for pid in pids[part]]
            if "agent" in frozen:
                renewals.cancel()
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            begun_s = time.monotonic()
            try:
                return await _watch(faults, frozen, begun_s)
            finally:
                for pid in stopped:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                client.writer.close()
                with contextlib.suppress(OSError):  # its injector may have been killed
                    await client.writer.wait_closed()


@contextlib.asynccontextmanager
async def victims(folder: Path) -> AsyncIterator[None]:
    """Programs of this folder run, each for a fault of its own, some of them in control groups of their own. It has an
    interface in the network of the caller, which is the caller's own."""
    in_groups = dict(_BY_GROUP.values())
    await _run(*FEW_PORTS)
    await _run("ip", "link", "add", _interface(folder), "up", "type", "veth")
    argv = [sys.executable, "-S", "-c", service(_port(folder))]
    queue = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert queue.stdout is not None
    assert await queue.stdout.readline() == b"ready\n"
    programs = [folder / name for name in ("paused", "killed", "looping", "limited", *in_groups)]
    processes = []
    for program in programs:
        shutil.copy("/bin/sleep", program)
        processes.append(await asyncio.create_subprocess_exec(program, "3600", start_new_session=True))
    with contextlib.ExitStack() as groups:
        made = [groups.enter_context(new_group(name, *LIMITS[name])) for name in in_groups.values()]
        for process, group in zip(processes[-len(made) :], made, strict=True):
            (group / "cgroup.procs").write_text(str(process.pid))
        try:
            yield
        finally:
            for group in made:
                thaw(group)
            for program in programs:
                for pid in running(program):
                    os.kill(pid, signal.SIGKILL)
            queue.kill()
            for process in (*processes, queue):
                await process.wait()


async def _run(*argv: str) -> None:
    assert await (await asyncio.create_subprocess_exec(*argv)).wait() == 0, argv


def _port(folder: Path) -> int:
    """Of a service and towards one, unlike those of other folders; below those that the kernel gives away."""
    return 10_000 + zlib.crc32(bytes(folder)) % 20_000


def _interface(folder: Path) -> str:
    return f"standby{zlib.crc32(bytes(folder)) % 10**8}"


@contextlib.asynccontextmanager
async def everything_allowed(folder: Path, *of_victims: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """An injector whose policy allows every fault, and many at once. Victims may have folders of their own."""
    named = map(_marking, of_victims or (folder,))
    (folder / "policy.yaml").write_text(POLICY + executed.section(*named))
    async with injector(folder, "--policy", str(folder / "policy.yaml"), embedded=False) as serving:
        yield serving
    await watchdogs_done(folder)  # or it starts a killed victim again when nobody cleans up any more


@contextlib.asynccontextmanager
async def renewing(client: Client) -> AsyncIterator["asyncio.Task[None]"]:
    async def renew() -> None:
        while True:
            client.send(renew=fault_pb2.RenewLease())
            await asyncio.sleep(_RENEW_EVERY_S)

    task = asyncio.create_task(renew())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def all_on(client: Client, folder: Path) -> list[FrozenFault]:
    """Every kind of fault, some begun side by side, each in effect; `victims` of this folder run."""
    orders: dict[str, dict[str, Any]] = {
        "cpu.load": {"percent": 1, "of": "own", "cores": "0"},
        "memory.load": {"size": "16MiB"},
        "memory.oom": {"size": "16MiB", "every": "10m"},  # no hog that comes and goes is to be stopped
        "memory.leak": {"rate": "1MiB/s", "size": "16MiB"},
        "disk.io": {"write": "1MiB/s", "file_size": "1MiB", "path": str(folder)},
        "disk.fill": {"size": "1MiB", "path": str(folder)},
        "disk.inodes": {"count": 10, "path": str(folder)},
        "dns.answer": {"names": "answered.brownout.test", "to": "127.0.0.1"},
        "dns.delay": {"names": "delayed.brownout.test", "delay": "1s"},
        "dns.failure": {"names": "failing.brownout.test"},
        "exec.run": {"name": _marking(folder).name},
        "network.accept_queue": {"port": _port(folder)},
        "network.blackhole": {"to": "127.0.0.9", "port": "9"},
        "network.corrupt": {"to": "127.0.0.14", "percent": 50},
        "network.duplicate": {"to": "127.0.0.12", "percent": 50},
        "network.ephemeral_ports": {"to": "127.0.0.16", "port": _port(folder)},
        "network.interface_down": {"interface": _interface(folder)},
        "network.latency": {"to": "127.0.0.7", "latency": "20ms"},
        "network.loss": {"to": "127.0.0.8", "percent": 50},
        "network.partition": {"to": "127.0.0.17"},
        "network.port_occupy": {"port": free_port()},
        "network.reject": {"to": "127.0.0.6", "port": "9"},
        "network.rate": {"to": "127.0.0.15", "rate": "1mbit"},
        "network.reorder": {"to": "127.0.0.13", "percent": 20},
        "network.reset": {"to": "127.0.0.5", "connections": "both"},
        "network.flap": {"to": "127.0.0.4", "every": "1s", "down": "300ms"},
        "process.pause": {"command": str(folder / "paused")},
        "process.kill": {"command": str(folder / "killed"), "restart": True},
        "process.crash_loop": {"command": str(folder / "looping"), "every": "1s"},
        "process.fd_exhaustion": {"command": str(folder / "limited")},
        "process.pid_exhaustion": {"command": str(folder / "crowded")},
        "cpu.throttle": {"command": str(folder / "throttled"), "quota": "50%"},
        "memory.limit": {"command": str(folder / "squeezed"), "limit": "1GiB", "beyond": "kill"},
        "process.freeze": {"command": str(folder / "frozen")},
        "disk.throttle": {"command": str(folder / "slow"), "write": "1MiB/s", "path": str(folder)},
    }
    ids = {kind: new_id() for kind in orders}
    waiting: set[str] = set()
    for kind, parameters in orders.items():
        values = {name: to_value(value) for name, value in parameters.items()}
        client.inject(ids[kind], kind=kind, parameters=values, lease_ms=int(LEASE_S * 1_000), duration_ms=FAULT_MS)
        waiting.add(ids[kind])
        await _until_active(client, waiting, but=_AT_ONCE - 1)
    await _until_active(client, waiting)
    looks = [await asyncio.to_thread(_look_for, kind, fault_id, folder) for kind, fault_id in ids.items()]
    faults = [FrozenFault(kind, fault_id, look) for (kind, fault_id), look in zip(ids.items(), looks, strict=True)]
    # It answers meanwhile for the network faults on trial; what is there after the trial's time has passed it.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(TRIAL_S + 1):
            ended = await client.until(lambda message: message.report.end_cause != 0)
            raise AssertionError(f"ended before anything was stopped: {ended.report}")
    there = await asyncio.to_thread(still_there, faults)
    assert there == faults, [fault.kind for fault in faults if fault not in there]
    return faults


def _marking(folder: Path) -> Commands:
    """What `exec.run` executes for the victims of this folder."""
    return executed.commands(folder / "marked", f"mark-{zlib.crc32(bytes(folder)):08x}")


async def _until_active(client: Client, waiting: set[str], but: int = 0) -> None:
    """Until all of these faults but so many are reported to be in effect, and taken off."""
    while len(waiting) > but:
        said = await client.until(lambda message: message.HasField("reply") or message.HasField("report"))
        assert not said.HasField("reply") or said.reply.outcome == ACCEPTED, said
        assert not said.report.end_cause, said
        if said.report.state == fault_pb2.ACTIVE:
            waiting.discard(said.report.fault_id)


def _look_for(kind: str, fault_id: str, folder: Path) -> Callable[[frozenset[str]], bool]:
    """A look that costs next to nothing, where that can be had: it must not itself be late."""
    if isinstance(catalogue()[kind], (NetworkFault, DnsFault)):
        return lambda tables: table_name(fault_id) in tables
    if kind == "exec.run":
        return lambda _: (folder / "marked").exists()
    if kind == "network.interface_down":
        return lambda _: _interface_is_down(_interface(folder))
    if kind == "process.pause":
        (paused,) = running(folder / "paused")
        return lambda _: _state(paused) in _STOPPED
    if kind == "process.kill":
        return lambda _: all(_state(pid) in _DEAD for pid in running(folder / "killed"))
    if kind == "process.fd_exhaustion":
        (limited,) = running(folder / "limited")
        own = resource.getrlimit(resource.RLIMIT_NOFILE)
        return lambda _: resource.prlimit(limited, resource.RLIMIT_NOFILE) != own
    if kind in _BY_GROUP:
        program, controller = _BY_GROUP[kind]
        return _limit_look(*running(folder / program), controller)
    keys = [key for pid in holders(fault_id) if (key := key_of(pid)) is not None]
    return lambda _: any(map(is_alive, keys))


def _limit_look(pid: int, controller: str) -> Callable[[frozenset[str]], bool]:
    """Whether a file says something else than before any fault of this kind was there: of a group in its tree."""
    files = [group / name for group in own_groups(pid, controller) for name in LIMITS[controller]]
    there = [file for file in files if file.exists()]
    return lambda _: any(file.read_text().strip() not in UNLIMITED for file in there)


def _interface_is_down(interface: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        return is_down(interface, asking)


def _state(pid: int) -> str:
    stat = read_stat(pid)
    return stat.state if stat is not None else ""


def _pids_of(injector_pid: int, faults: list[FrozenFault]) -> dict[str, list[int]]:
    children = [int(pid) for pid in Path(f"/proc/{injector_pid}/task/{injector_pid}/children").read_text().split()]
    watchdogs = [pid for pid in children if b"watch" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(watchdogs) == 1
    return {
        "agent": [],  # the test's own client
        "injector": [injector_pid],
        "holders": [pid for fault in faults for pid in holders(fault.fault_id)],
        "watchdog": watchdogs,
    }


async def _watch(faults: list[FrozenFault], frozen: tuple[str, ...], begun_s: float) -> dict[str, float | None]:
    waiting = {fault: bound for fault in faults if (bound := bound_s(fault.kind, frozen)) is not None}
    gone: dict[str, float | None] = dict.fromkeys(fault.kind for fault in faults)
    while waiting:
        there = await asyncio.to_thread(still_there, waiting)
        after_s = time.monotonic() - begun_s
        gone |= {fault.kind: after_s for fault in waiting if fault not in there}
        waiting = {fault: waiting[fault] for fault in there if after_s <= waiting[fault] + 5}
        await asyncio.sleep(_POLL_S)
    return gone
