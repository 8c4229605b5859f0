"""The scenes of a fault's life and of undoing what a dead injector left; a kill at any point of them, and what follows.

`trace` finds the calls of a scene, `strike` kills at a point and looks whether everything was recorded, and is undone.
"""

import asyncio
import os
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brownout_agent.frames import to_value
from brownout_agent.host_log import NAME as AUDIT
from brownout_agent.injector.journal import FINISHED, Contents, decode
from brownout_agent.kernel.processes import all_pids, key_of, wait_dead
from brownout_protos.v1 import fault_pb2, injector_pb2

from tests.support import executed, one_at_a_time
from tests.support.crash_points import CALLER, INJECTOR, REAP, START, WATCHDOG, Label, Point, Trace
from tests.support.standby import STANDBY
from tests.support.undo_sequences import Host

KINDS = (
    "cpu.load", "cpu.throttle", "disk.fill", "disk.inodes", "disk.io", "disk.throttle", "dns.answer", "dns.delay",
    "dns.failure", "exec.run", "memory.leak", "memory.limit", "memory.load", "memory.oom", "network.accept_queue",
    "network.blackhole", "network.corrupt", "network.duplicate", "network.ephemeral_ports", "network.flap",
    "network.interface_down", "network.latency", "network.loss", "network.partition", "network.port_occupy",
    "network.rate", "network.reject", "network.reorder", "network.reset", "process.crash_loop",
    "process.fd_exhaustion", "process.freeze", "process.kill", "process.pause", "process.pid_exhaustion",
)  # fmt: skip
SCENES = (*KINDS, START, REAP)
LEFT_BEHIND = ("memory.load", "network.loss", "process.fd_exhaustion", "process.kill")
"""What the last two scenes undo: one of each way to undo that does more than look."""
GONE_WITHIN_S = 90.0
"""How soon it should be is another matter (docs/death-matrix.md): this is for a machine that has much else to do."""
STEP_WITHIN_S = 60.0
KILL_TOLD_WITHIN_S = 5.0
_EXTENSIONS = 5
"""Settings of the holder's timer after which every kind has handled a renewal of its lease."""
_HEARINGS = 4
"""Of 20 s each."""
_LASTS_MS = 300_000
_POLL_S = 0.05
_CHUNK_BYTES = 2**16

Shown = dict[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a strike. `is_reached`: the scene had such a call, and somebody was killed at it."""

    is_reached: bool
    trouble: str = ""
    """What was on without a record, or what is left; empty when all is well."""
    clean_after_s: float = 0.0


def parameters_of(host: Host, kind: str) -> dict[str, Any]:
    """How this kind of fault is brought about on this host."""
    disk = {"path": str(host.disk)}
    by_kind: dict[str, dict[str, Any]] = {
        "cpu.load": {"percent": 1, "of": "own", "cores": "0"},
        "cpu.throttle": {"command": host.tag, "quota": "50%"},
        "disk.fill": {"size": "20MiB", **disk},
        "disk.inodes": {"count": 20, **disk},
        "disk.io": {"write": "1MiB/s", "file_size": "4MiB", **disk},
        "disk.throttle": {"command": host.tag, "write": "1MiB/s", "read": "1MiB/s", **disk},
        "dns.answer": {"names": "*.brownout.test", "to": "127.0.0.1"},
        "dns.delay": {"names": "*.brownout.test", "delay": "20ms"},
        "dns.failure": {"names": "*.brownout.test"},
        "exec.run": {"name": executed.NAME},
        "memory.leak": {"rate": "1MiB/s", "size": "16MiB"},
        "memory.limit": {"command": host.tag, "limit": "1GiB", "beyond": "kill"},
        "memory.load": {"size": "16MiB"},
        "memory.oom": {"size": "16MiB", "every": "1s"},
        "network.blackhole": {"to": "127.0.0.9", "port": 9999},
        "network.corrupt": {"to": "127.0.0.14", "percent": 50},
        "network.duplicate": {"to": "127.0.0.12", "percent": 50},
        "network.latency": {"to": "127.0.0.7", "latency": "20ms"},
        "network.accept_queue": {"port": one_at_a_time.PORT},
        "network.ephemeral_ports": {"to": "127.0.0.16", "port": 9},
        "network.interface_down": {"interface": STANDBY},
        "network.flap": {"to": "127.0.0.4", "every": "1s", "down": "300ms"},
        "network.loss": {"to": "127.0.0.8", "percent": 20},
        "network.partition": {"to": "127.0.0.17"},
        "network.reject": {"to": "127.0.0.6", "port": 9999},
        "network.rate": {"to": "127.0.0.15", "rate": "1mbit"},
        "network.reorder": {"to": "127.0.0.13", "percent": 20},
        "network.reset": {"to": "127.0.0.5", "connections": "both"},
        "network.port_occupy": {"port": "9009-9010", "protocol": "any"},
        "process.crash_loop": {"command": host.supervised, "every": "1s"},
        "process.fd_exhaustion": {"command": host.supervised},
        "process.freeze": {"command": host.tag},
        "process.kill": {"command": host.tag, "restart": True},
        "process.pause": {"command": host.tag},
        "process.pid_exhaustion": {"command": host.tag},
    }
    return by_kind[kind]


async def trace(host: Host, seen: Trace, scene: str) -> list[Label]:
    """The calls of one scene that have an effect, in their order."""
    host.states.clear()
    await _play(host, seen, scene, None)
    labels = _of_scene(scene, seen.labels)
    await _settle(host, seen, scene)
    return labels


async def strike(host: Host, seen: Trace, point: Point, before: Shown) -> tuple[Outcome, list[Label]]:
    """Play a scene up to the point, kill there, and see that all is recorded, undone and noted, and as it was `before`.

    Returns the calls that were made until then as well, since some scenes have such as others have not.

    Raises:
        AssertionError, TimeoutError, ConnectionError: the scene itself came to nothing.
    """
    host.states.clear()  # what it knows of earlier ones was seen clean
    host.words.clear()
    seen.killed.clear()
    playing = asyncio.create_task(_play(host, seen, point.scene, point))
    try:
        is_reached = await _until_killed_or_played(seen, playing)
        struck_s = time.monotonic()
        labels = _of_scene(point.scene, seen.labels)
        trouble = await _see_ended(host, seen, point, before, playing) if is_reached else ""
        if not is_reached:  # it may come to the point yet
            with suppress(ProcessLookupError):
                host.injector.kill()
            await host.injector.wait()
    finally:
        await _cancel(playing)
    clean_s = time.monotonic() - struck_s
    if not trouble:
        await _settle(host, seen, point.scene)
    return Outcome(is_reached, trouble, clean_s if is_reached else 0.0), labels


async def _until_killed_or_played(seen: Trace, playing: "asyncio.Task[None]") -> bool:
    """Whether somebody was killed. What went wrong with a scene without a kill is raised."""
    killed = asyncio.create_task(seen.killed.wait())
    await asyncio.wait({playing, killed}, return_when=asyncio.FIRST_COMPLETED)
    if not killed.done() and playing.exception() is not None:  # the death was heard of before the kill was
        await asyncio.wait({killed}, timeout=KILL_TOLD_WITHIN_S)
    killed.cancel()
    if not seen.killed.is_set():
        await playing
    return seen.killed.is_set()


async def _see_ended(host: Host, seen: Trace, point: Point, before: Shown, playing: "asyncio.Task[None]") -> str:
    """What was on without a record, or has not ended after the kill; empty when all is well."""
    try:
        await _until_dead(seen.killed_pid)
        if trouble := await _see_recorded(host, before):
            return trouble
        if point.whom == CALLER:
            await playing
        await _cancel(playing)
        if point.whom == INJECTOR:  # who follows a process is told of its death before its parent is
            await host.injector.wait()
        seen.order("", None)  # those that come now are not to be killed
        if point.scene in {START, REAP}:  # whoever was to undo is dead: the next one does
            await _have_injector(host)
        return await _see_clean(host, before)
    except (AssertionError, TimeoutError, ConnectionError) as error:
        return f"it did not come to its end: {type(error).__name__} {error} {host.words}"


async def _cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _of_scene(scene: str, labels: list[Label]) -> list[Label]:
    """Without what an injector and its holders did while they were dying, and what is done if they are not dead yet."""
    if scene == REAP:
        labels = [label for label in labels if label[0] in {WATCHDOG, "starter", "child"}]
    return [label for label in labels if scene in KINDS or label[1] != "pidfd_send_signal"]


# ---- scenes ----------------------------------------------------------------------------------------------------------


async def _play(host: Host, seen: Trace, scene: str, point: Point | None) -> None:
    name = str(uuid.uuid4())
    match scene:
        case "start":
            await _begin(host, LEFT_BEHIND)
            await _kill_with_watchdog(host)
            seen.order(name, point)
            await host.start()
            await _until_finished(host)
        case "reap":
            await _begin(host, LEFT_BEHIND)
            seen.order(name, point)
            host.injector.kill()
            await host.injector.wait()
            await _until_finished(host)
        case kind:
            host.client.send(inspect=injector_pb2.Inspect())  # its socket lets us in before its last calls
            await host.client.until(lambda message: message.HasField("inspection"))
            (host.folder / "state" / AUDIT).unlink(missing_ok=True)  # else what was before decides if it takes room
            seen.order(name, point)
            await _live(host, kind, seen)


async def _live(host: Host, kind: str, seen: Trace) -> None:
    """One life: ordered, held while its lease is renewed, stopped, clean."""
    (fault_id,) = await _begin(host, [kind])
    for _ in range(2):
        host.client.send(renew=fault_pb2.RenewLease())
    await _until_extended_or_killed(host, seen)
    host.client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="enough"))
    await _hear(host, lambda: host.states[fault_id] == fault_pb2.CLEAN)


async def _hear(host: Host, enough: Callable[[], bool]) -> None:
    """Patiently: what an undo that was itself killed has left is tried again after a while."""
    for _ in range(_HEARINGS):
        with suppress(TimeoutError):
            await host.hear(enough)
            return
        host.client.send(inspect=injector_pb2.Inspect())
    states = [fault_pb2.FaultState.Name(state) for state in host.states.values()]
    raise AssertionError(f"it stays at {states}: {[host.words.get(fault_id) for fault_id in host.states]}")


async def _until_extended_or_killed(host: Host, seen: Trace) -> None:
    over = {fault_pb2.CLEAN, fault_pb2.RESIDUE}
    enough = seen.until(lambda said: said.count(("holder", "timer_settime", "")) >= _EXTENSIONS)
    extended, killed = asyncio.create_task(enough), asyncio.create_task(seen.killed.wait())
    # Who reads answers for the agent as well, or no network fault would stand its trial.
    ended = asyncio.create_task(_hear(host, lambda: over.issuperset(host.states.values())))
    try:
        await asyncio.wait({extended, killed, ended}, return_when=asyncio.FIRST_COMPLETED)
        assert extended.done() or killed.done(), f"it was not extended: {host.words}"
    finally:
        for task in (extended, killed, ended):
            await _cancel(task)


async def _begin(host: Host, kinds: Iterable[str]) -> list[str]:
    """Order a fault of each kind; returns their ids when all are in effect, or over already."""
    begun = {fault_pb2.ACTIVE, fault_pb2.CLEAN, fault_pb2.RESIDUE}
    faults = {str(uuid.uuid4()): kind for kind in kinds}
    host.states |= dict.fromkeys(faults, fault_pb2.FAULT_STATE_UNSPECIFIED)
    for fault_id, kind in faults.items():
        values = {name: to_value(value) for name, value in parameters_of(host, kind).items()}
        host.client.inject(fault_id, kind=kind, parameters=values, duration_ms=_LASTS_MS, lease_ms=_LASTS_MS)
        await _hear(host, lambda fault_id=fault_id: fault_id in host.replies)  # type: ignore[misc]
        assert host.replies[fault_id].outcome == fault_pb2.OrderReply.ACCEPTED, host.replies[fault_id]
    await _hear(host, lambda: all(host.states[fault_id] in begun for fault_id in faults))
    return [*faults]


async def _kill_with_watchdog(host: Host) -> None:
    """Leave what is on to the next injector; it is nobody else's any more."""
    os.kill(_watchdog(host), signal.SIGKILL)  # a new one would come after a second
    host.injector.kill()
    await host.injector.wait()
    await host.end()
    assert _unfinished(host), f"nothing was left to undo: {host.words}"


def _watchdog(host: Host) -> int:
    words = b"\0--pid\0%d\0" % host.injector.pid
    for pid in all_pids():
        with suppress(OSError):
            if words in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    raise AssertionError("the injector has no watchdog")


async def _settle(host: Host, seen: Trace, scene: str) -> None:
    """Ready for the next scene: an injector is there, and victims that nobody follows and everybody may pause."""
    seen.order("", None)  # nobody is to be killed while the next scene is being prepared
    await _have_injector(host)
    if scene in {"process.kill", START, REAP}:
        await asyncio.to_thread(host.end_victims)
        await asyncio.to_thread(host.spawn_victims)


async def _have_injector(host: Host) -> None:
    if host.injector.returncode is not None:
        await host.end()
        await host.start()


# ---- looking ---------------------------------------------------------------------------------------------------------


async def look(host: Host) -> Shown:
    """What administrators' tools show of this host."""
    return await asyncio.to_thread(_shown, host)


def _shown(host: Host) -> Shown:
    """What the kernel shows, without the temporary mounts of others: they come and go in every namespace."""
    shown = host.kernel()
    theirs = f" {tempfile.gettempdir()}/"
    lines = shown["mounts"].splitlines()
    ours = (line.split(" ", 2)[2] for line in lines if theirs not in line or f" {host.folder}/" in line)
    return {**shown, "mounts": "\n".join(ours)}


def _differences(before: Shown, after: Shown) -> list[str]:
    return [f"{name}: {before[name]!r} -> {after[name]!r}" for name in before if before[name] != after[name]]


async def _see_recorded(host: Host, before: Shown) -> str:
    """Whatever is on now has its record. It may be undone while we look, so the journal is read on both sides of it."""
    claimed = {entry.fault_id for entry in _journal(host).entries.values() if entry.mark in FINISHED}
    changed = _differences(before, await look(host))
    recorded = _journal(host).entries.keys() & host.states.keys()
    if not changed or recorded - claimed:
        return ""
    return f"{'marked clean' if recorded else 'without a record'}: {changed}"


async def _see_clean(host: Host, before: Shown) -> str:
    with suppress(TimeoutError):
        await _until_finished(host)
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while left := _differences(before, await look(host)) + _unfinished(host):
        if time.monotonic() > deadline_s:
            return f"left after {GONE_WITHIN_S:g} s: {left}"
        await asyncio.sleep(_POLL_S)
    return ""


async def _until_finished(host: Host) -> None:
    """Until nothing is left to undo by what the journal says.

    Raises:
        TimeoutError: something is.
    """
    async with asyncio.timeout(GONE_WITHIN_S):
        while _unfinished(host):
            await asyncio.sleep(_POLL_S)


def _unfinished(host: Host) -> list[str]:
    return [f"{entry.kind} is {entry.mark}" for entry in _journal(host).entries.values() if entry.mark not in FINISHED]


def _journal(host: Host) -> Contents:
    """Read up to the preallocated rest, which is much longer."""
    raw = b""
    with (host.folder / "state/journal").open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            raw += chunk
            if chunk.endswith(b"\0"):
                break
    return decode(raw)


async def _until_dead(pid: int) -> None:
    """To the last thread: until then its files are open, and what has no name on a disk is there."""
    key = key_of(pid)
    left = await asyncio.to_thread(wait_dead, [key] if key else [], STEP_WITHIN_S)
    assert not left, f"{left} outlived SIGKILL"
