"""One death: a whole small Brownout in a network namespace of its own, a fault in mid-air, and SIGKILL.

Controller, injector and agent are the real programs, each a process of its own. Whether the fault is there, and whether
it is gone, is read from the kernel (nft, /proc) and never from our records.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

BIN = Path(sys.executable).parent
LEASE_S = 10.0
FAULT_S = 60.0
_POLL_S = 0.02
_UP_WITHIN_S = 40.0
_VICTIM = "import time\nwhile True: time.sleep(0.05)"
_NAMESPACES = Path("/run/netns")
_RUNS = ("R", "S")


@dataclass(frozen=True)
class Process:
    """A process of the namespace: its state letter is of proc(5)."""

    pid: int
    line: str
    state: str


@dataclass(frozen=True)
class Look:
    """One look at the kernel: every process of the namespace, and what `nft` lists there."""

    processes: tuple[Process, ...]
    rules: str

    def victim_state(self, tag: str) -> str | None:
        """The victim's state letter, or None when no such process runs."""
        return next((one.state for one in self.processes if tag in one.line and "-c" in one.line), None)

    def holders(self, kind: str = "") -> list[str]:
        """The command lines of the holders of a kind of fault."""
        return [one.line for one in self.processes if f"injector.holder {kind}" in one.line and one.state not in "ZX"]


@dataclass(frozen=True)
class FaultCase:
    """A fault and how the kernel shows it: `is_there` takes a look and the victim's tag."""

    kind: str
    parameters: dict[str, object] = field(hash=False)
    is_there: Callable[[Look, str], bool]


@dataclass(frozen=True)
class DeathCase:
    """Who is killed, and by when the fault must be gone, in seconds after the kill."""

    name: str
    victims: tuple[str, ...]
    bound_s: float


def _processes(namespace: str) -> list[Process]:
    """Every process in this network namespace."""
    inode = (_NAMESPACES / namespace).stat().st_ino
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if (entry / "ns/net").stat().st_ino == inode:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found.append(Process(int(entry.name), line, state))
    return found


def _rules(namespace: str) -> str:
    """The nft rules of the namespace, asked of `nft` itself."""
    read, write = os.pipe()
    pid = os.posix_spawnp(
        "nsenter",
        ["nsenter", f"--net={_NAMESPACES / namespace}", "nft", "list", "ruleset"],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
    )
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "nft does not answer"
    return text


def _look(namespace: str) -> Look:
    return Look(tuple(_processes(namespace)), _rules(namespace))


def _busy(kind: str) -> Callable[[Look, str], bool]:
    return lambda look, _tag: bool(look.holders(kind))


def _filtered(peer: str) -> Callable[[Look, str], bool]:
    return lambda look, _tag: "brownout" in look.rules and peer in look.rules


def _stands_still(look: Look, tag: str) -> bool:
    return look.victim_state(tag) in {"t", "T"}


def _is_missing(look: Look, tag: str) -> bool:
    return look.victim_state(tag) is None


FAULTS = (
    FaultCase("cpu.load", {"percent": 5, "of": "own", "cores": "0"}, _busy("cpu.load")),
    FaultCase("memory.load", {"size": "64MiB"}, _busy("memory.load")),
    FaultCase("disk.io", {"write": "1MiB/s", "file_size": "16MiB"}, _busy("disk.io")),
    FaultCase("network.blackhole", {"to": "127.0.0.9", "port": 9}, _filtered("127.0.0.9")),
    FaultCase("network.loss", {"to": "127.0.0.8", "percent": 50}, _filtered("127.0.0.8")),
    FaultCase("process.pause", {"command": "{tag}"}, _stands_still),
    FaultCase("process.kill", {"command": "{tag}", "restart": True}, _is_missing),
)
DEATHS = (
    DeathCase("agent", ("agent",), LEASE_S + 1),
    DeathCase("injector", ("injector",), 5),
    DeathCase("both", ("agent", "injector"), 30),
    DeathCase("controller", ("controller",), LEASE_S + 1),
)


@dataclass(frozen=True)
class Death:
    """What came of one trial: seconds from the kill to the fault being gone; None when it never went within `bound`."""

    fault: str
    death: str
    gone_after_s: float | None
    bound_s: float
    leftovers: tuple[str, ...]

    @property
    def good(self) -> bool:
        return self.gone_after_s is not None and self.gone_after_s <= self.bound_s and not self.leftovers


async def _spawn(folder: Path, name: str, namespace: str, *argv: object) -> asyncio.subprocess.Process:
    with (folder / f"{name}.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *("nsenter", f"--net={_NAMESPACES / namespace}", "--", *map(str, argv)),
            stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip


async def _until(condition: Callable[[], bool], within_s: float) -> float | None:
    """Seconds until `condition` was true, or None."""
    begun = time.monotonic()
    while time.monotonic() - begun <= within_s:
        if await asyncio.to_thread(condition):
            return time.monotonic() - begun
        await asyncio.sleep(_POLL_S)
    return None


async def _run(*argv: object) -> str:
    process = await asyncio.create_subprocess_exec(*map(str, argv), stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0, f"{argv} ended with {process.returncode}"
    return output.decode()


@contextlib.asynccontextmanager
async def _namespace() -> AsyncIterator[str]:
    name = f"brownout-death-{uuid.uuid4().hex[:8]}"
    await _run("ip", "netns", "add", name)
    try:
        await _run("nsenter", f"--net={_NAMESPACES / name}", "ip", "link", "set", "lo", "up")
        yield name
    finally:
        for process in _processes(name):  # whatever is in our namespace is ours
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        assert await _until(lambda: not _processes(name), 10) is not None, "processes outlived SIGKILL"
        await _run("ip", "netns", "delete", name)


def _experiment(tags: dict[FaultCase, str]) -> str:
    return yaml.safe_dump(
        {
            "version": 1,
            "name": "death",
            "steady_state": {"before": "100ms", "after": "100ms"},
            "faults": [
                {
                    "name": fault.kind.replace(".", "-"),
                    "inject": fault.kind,
                    "target": "host=victim",
                    "with": {
                        name: value.format(tag=tag) if isinstance(value, str) else value
                        for name, value in fault.parameters.items()
                    },
                    "for": f"{FAULT_S:g}s",
                }
                for fault, tag in tags.items()
            ],
        }
    )


_POLICY = 'version: 1\nenvironment: staging\nfaults: {"*": {allow: true, max_seconds: 120}}\nlimits: {concurrent: 16}\n'


async def die(fault: FaultCase, death: DeathCase) -> Death:
    """Bring one fault about, kill, and watch the kernel."""
    (outcome,) = await die_together((fault,), death)
    return outcome


async def die_together(faults: Sequence[FaultCase], death: DeathCase) -> list[Death]:
    """Bring these faults about on one host, kill while all of them are on, and watch the kernel."""
    folder = Path(tempfile.mkdtemp(prefix="brownout-death-"))
    tags = {fault: f"victim-{uuid.uuid4().hex}" for fault in faults}
    try:
        async with _namespace() as namespace:
            programs = await _start(folder, namespace, tags)

            def all_are_there() -> bool:
                look = _look(namespace)
                return all(fault.is_there(look, tag) for fault, tag in tags.items())

            there = await _until(all_are_there, _UP_WITHIN_S)
            assert there is not None, f"{[fault.kind for fault in faults]} never came about:\n{_logs(folder)}"
            for victim in death.victims:
                programs[victim].kill()
            gone = await _watch_them_go(namespace, tags, death.bound_s + 5)
            left = _leftovers(await asyncio.to_thread(_look, namespace), tags)
            outcomes = [Death(fault.kind, death.name, gone.get(fault), death.bound_s, left) for fault in faults]
            if not all(outcome.good for outcome in outcomes):
                print(outcomes, _logs(folder), file=sys.stderr)
            for program in programs.values():
                if program.returncode is None:
                    program.kill()
                await program.wait()
            return outcomes
    finally:
        shutil.rmtree(folder)


async def _watch_them_go(namespace: str, tags: dict[FaultCase, str], within_s: float) -> dict[FaultCase, float]:
    """Seconds from now until each fault was seen gone; those that stay longer than `within_s` are missing."""
    begun = time.monotonic()
    gone: dict[FaultCase, float] = {}
    while len(gone) < len(tags) and time.monotonic() - begun <= within_s:
        look = await asyncio.to_thread(_look, namespace)
        after_s = time.monotonic() - begun
        gone.update(
            {fault: after_s for fault, tag in tags.items() if fault not in gone and not fault.is_there(look, tag)}
        )
        await asyncio.sleep(_POLL_S)
    return gone


async def _start(folder: Path, namespace: str, tags: dict[FaultCase, str]) -> dict[str, asyncio.subprocess.Process]:
    (folder / "experiment.yaml").write_text(_experiment(tags))
    (folder / "policy.yaml").write_text(_POLICY)
    data, socket, state = folder / "data", folder / "injector.sock", folder / "agent"
    token = json.loads(await _run(BIN / "brownout", "token", "create", "--data-dir", data, "-o", "json"))
    programs = {
        tag: await _spawn(folder, "victim", namespace, sys.executable, "-S", "-c", _VICTIM, tag)
        for tag in tags.values()
    }
    programs["injector"] = await _spawn(
        folder, "injector", namespace, BIN / "brownout-injector", "serve",
        "--socket", socket, "--state-dir", folder / "injector", "--policy", folder / "policy.yaml",
    )  # fmt: skip
    assert await _until(socket.is_socket, _UP_WITHIN_S) is not None, f"no injector:\n{_logs(folder)}"
    programs["controller"] = await _spawn(
        folder, "controller", namespace, BIN / "brownout", "run", folder / "experiment.yaml",
        "--data-dir", data, "--report-dir", folder / "reports", "--listen", "127.0.0.1:7700", "--wait-timeout", 60,
    )  # fmt: skip
    join = await _spawn(
        folder, "join", namespace, BIN / "brownout-agent", "join", "--controller", "127.0.0.1:7700", "--name", "victim",
        "--token", token["token"], "--ca-pin", token["ca_pin"], "--state-dir", state, "--wait", 60,
    )  # fmt: skip
    assert await join.wait() == 0, f"could not join:\n{_logs(folder)}"
    programs["agent"] = await _spawn(
        folder, "agent", namespace, BIN / "brownout-agent", "run", "--state-dir", state, "--injector-socket", socket
    )
    return programs


def _leftovers(look: Look, tags: dict[FaultCase, str]) -> tuple[str, ...]:
    """What dead faults must not leave: tables, holders, a victim that does not run as before."""
    left = [line.strip() for line in look.rules.splitlines() if line.startswith("table") and "brownout" in line]
    left += look.holders()
    states = {fault.kind: look.victim_state(tag) for fault, tag in tags.items()}
    return (
        *left,
        *(f"the victim of {kind} is in state {state}" for kind, state in states.items() if state not in _RUNS),
    )


def _logs(folder: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in folder.glob("*.log"))
