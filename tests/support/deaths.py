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
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

BIN = Path(sys.executable).parent
LEASE_S = 10.0
FAULT_S = 60.0
_POLL_S = 0.02
_UP_WITHIN_S = 40.0
_VICTIM = "import time\nwhile True: time.sleep(0.05)"
_NAMESPACES = Path("/run/netns")


@dataclass(frozen=True)
class FaultCase:
    """A fault and how the kernel shows it: `is_there` takes the namespace's name and the victim's tag."""

    kind: str
    parameters: dict[str, object]
    is_there: Callable[[str, str], bool]


@dataclass(frozen=True)
class DeathCase:
    """Who is killed, and by when the fault must be gone, in seconds after the kill."""

    name: str
    victims: tuple[str, ...]
    bound_s: float


def _processes(namespace: str) -> list[tuple[int, str]]:
    """Pid and command line of every process in this network namespace."""
    inode = (_NAMESPACES / namespace).stat().st_ino
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if (entry / "ns/net").stat().st_ino == inode:
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
    return found


def _holder_runs(namespace: str, kind: str) -> bool:
    return any(f"injector.holder {kind}" in line for _, line in _processes(namespace))


def _victim_state(namespace: str, tag: str) -> str | None:
    """The victim's state letter, or None when no such process runs."""
    for pid, line in _processes(namespace):
        if tag in line and "-c" in line:
            with contextlib.suppress(OSError):
                return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return None


def _tables(namespace: str) -> str:
    """The nft tables of the namespace, asked by `nft` itself."""
    read, write = os.pipe()
    pid = os.posix_spawnp(
        "nsenter",
        ["nsenter", f"--net={_NAMESPACES / namespace}", "nft", "list", "tables"],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
    )
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


def _busy(kind: str) -> Callable[[str, str], bool]:
    return lambda namespace, _tag: _holder_runs(namespace, kind)


def _filtered(namespace: str, _tag: str) -> bool:
    return "brownout" in _tables(namespace)


def _stands_still(namespace: str, tag: str) -> bool:
    return _victim_state(namespace, tag) in {"t", "T"}


def _is_missing(namespace: str, tag: str) -> bool:
    return _victim_state(namespace, tag) is None


FAULTS = (
    FaultCase("cpu.load", {"percent": 5, "of": "own", "cores": "0"}, _busy("cpu.load")),
    FaultCase("memory.load", {"size": "64MiB"}, _busy("memory.load")),
    FaultCase("disk.io", {"write": "1MiB/s", "file_size": "16MiB"}, _busy("disk.io")),
    FaultCase("network.blackhole", {"to": "127.0.0.9", "port": 9}, _filtered),
    FaultCase("network.loss", {"to": "127.0.0.9", "percent": 50}, _filtered),
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
        for pid, _ in _processes(name):  # whatever is in our namespace is ours
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert await _until(lambda: not _processes(name), 10) is not None, "processes outlived SIGKILL"
        await _run("ip", "netns", "delete", name)


def _experiment(fault: FaultCase, tag: str) -> str:
    parameters = {
        name: value.format(tag=tag) if isinstance(value, str) else value for name, value in fault.parameters.items()
    }
    return yaml.safe_dump(
        {
            "version": 1,
            "name": "death",
            "steady_state": {"before": "100ms", "after": "100ms"},
            "faults": [{"inject": fault.kind, "target": "host=victim", "with": parameters, "for": f"{FAULT_S:g}s"}],
        }
    )


_POLICY = 'version: 1\nenvironment: staging\nfaults: {"*": {allow: true, max_seconds: 120}}\n'


async def die(fault: FaultCase, death: DeathCase) -> Death:
    """Bring one fault about, kill, and watch the kernel."""
    folder = Path(tempfile.mkdtemp(prefix="brownout-death-"))
    tag = f"victim-{uuid.uuid4().hex}"
    try:
        async with _namespace() as namespace:
            programs = await _start(folder, namespace, fault, tag)
            there = await _until(lambda: fault.is_there(namespace, tag), _UP_WITHIN_S)
            assert there is not None, f"{fault.kind} never came about:\n{_logs(folder)}"
            for victim in death.victims:
                programs[victim].kill()
            gone = await _until(lambda: not fault.is_there(namespace, tag), death.bound_s + 5)
            still = await asyncio.to_thread(_leftovers, namespace, fault, tag, death)
            outcome = Death(fault.kind, death.name, gone, death.bound_s, still)
            if not outcome.good:
                print(outcome, _logs(folder), file=sys.stderr)
            for program in programs.values():
                if program.returncode is None:
                    program.kill()
                await program.wait()
            return outcome
    finally:
        shutil.rmtree(folder)


async def _start(folder: Path, namespace: str, fault: FaultCase, tag: str) -> dict[str, asyncio.subprocess.Process]:
    (folder / "experiment.yaml").write_text(_experiment(fault, tag))
    (folder / "policy.yaml").write_text(_POLICY)
    data, socket, state = folder / "data", folder / "injector.sock", folder / "agent"
    token = json.loads(await _run(BIN / "brownout", "token", "create", "--data-dir", data, "-o", "json"))
    programs = {"victim": await _spawn(folder, "victim", namespace, sys.executable, "-c", _VICTIM, tag)}
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


def _leftovers(namespace: str, fault: FaultCase, tag: str, death: DeathCase) -> tuple[str, ...]:
    """What a dead fault must not leave: tables, holders, a victim that does not run as before."""
    left = [line.strip() for line in _tables(namespace).splitlines() if "brownout" in line]
    left += [line for _, line in _processes(namespace) if "injector.holder" in line]
    if (state := _victim_state(namespace, tag)) not in {"R", "S"}:
        left.append(f"the victim's state is {state}")
    return tuple(left)


def _logs(folder: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in folder.glob("*.log"))
