"""Random sequences of faults on one host, each ended in a random way, and what the kernel shows before and after.

The host is a real injector in a network and a mount namespace of its own, with a small disk, with rules and a queueing
discipline of somebody else's, and with processes that faults may pause and kill. What is compared is read by `tc`,
`nft`, `ss`, /proc and statvfs, and beside them by the fingerprint: both must say that nothing is left.
"""

import asyncio
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brownout_agent.fingerprint import Fingerprint, from_wire
from brownout_agent.frames import to_value
from brownout_agent.kernel.cgroups import PREFIX, group_folders, unified_tree
from brownout_controller.analysis.residue import find_residue
from brownout_controller.record import ResidueState
from brownout_protos.v1 import fault_pb2, injector_pb2

from tests.support import executed, one_at_a_time
from tests.support.control_groups import JOIN, LIMITS, fault_parents, thaw
from tests.support.disks import MIB, ext4
from tests.support.injectors import ACCEPTED, Client, connect, holders, injector
from tests.support.standby import COMMANDS, FEW_PORTS, LOOKS, STANDBY

DISK_BYTES = 512 * MIB
FAULTS_MAX = 3
EQUAL_WITHIN_S = 5.0
_EMPTY_WITHIN_S = 5.0
_VICTIMS = 2
_STARTED_WITHIN_S = 5.0
_VICTIM = "import time\nprint('ready', flush=True)\nwhile True: time.sleep(0.05)"
_SUPERVISOR = """
import os, sys
while True:
    argv = [sys.executable, "-S", "-c", sys.argv[1], os.environ["BROWNOUT_SUPERVISED"]]
    os.waitpid(os.spawnv(os.P_NOWAIT, sys.executable, argv), 0)
"""
"""Its own command line does not name what it starts again and again."""
_FOREIGN_RULES = """
table inet firewall { chain in { type filter hook input priority 0; tcp dport 9 counter accept; }; }
table ip brown { set peers { type ipv4_addr; elements = { 10.0.0.1 }; }; }
"""
_POLICY = 'version: 1\nenvironment: staging\nfaults: {"*": {allow: true}}\nlimits: {concurrent: 4}\n'
_UNDO_THREE_TIMES = """
import sys
from pathlib import Path
from brownout_agent.injector.journal import decode
from brownout_agent.injector.undoing import undo_entry
entries = decode(Path(sys.argv[1]).read_bytes()).entries
for entry in [entries[fault_id] for fault_id in sys.argv[2:]] * 3:
    if left := undo_entry(entry):
        raise SystemExit(f"{entry.kind}: {left}")
"""
_BY_LIMIT = {
    "process.pid_exhaustion": "pids", "process.freeze": "freezer", "cpu.throttle": "cpu", "memory.limit": "memory",
    "disk.throttle": "io",
}  # fmt: skip
"""The controller of the victims' group that a fault limits."""
_TBF = ("rate", "1gbit", "burst", "1mb", "latency", "400ms")
_STATE_IS_WELL = frozenset("RSDI")


@dataclass
class Host:
    """The host, how to speak to its injector, and what that has said."""

    folder: Path
    disk: Path
    pid: int
    under: tuple[str, ...] = ()
    """What the injector is started by."""
    client: Client = field(init=False)
    injector: asyncio.subprocess.Process = field(init=False)
    states: dict[str, "fault_pb2.FaultState.ValueType"] = field(default_factory=dict)
    replies: dict[str, fault_pb2.OrderReply] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    """The latest about each fault."""
    groups: tuple[Path, ...] = ()
    """The victims' own control groups, those of LIMITS that can be had here."""
    _life: AsyncExitStack = field(default_factory=AsyncExitStack)
    _children: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def inside(self) -> tuple[str, ...]:
        return ("nsenter", f"--target={self.pid}", "--net", "--mount", "--")

    @property
    def tag(self) -> str:
        return f"victim-of-{self.folder.name}"

    @property
    def marked(self) -> Path:
        """What `exec.run` makes."""
        return self.folder / "marked"

    @property
    def supervised(self) -> str:
        """The tag of a process whose supervisor starts it again whenever it has died."""
        return f"supervised-of-{self.folder.name}"

    def run(self, *argv: object, stdin: str = "") -> str:
        """A program in the host's namespaces; what it prints."""
        inside = [*self.inside, *map(str, argv)]
        done = subprocess.run(inside, check=False, input=stdin, text=True, capture_output=True)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    async def start(self) -> None:
        """The injector, and a connection to it."""
        policy = self.folder / "policy.yaml"
        policy.write_text(_POLICY + executed.section(executed.commands(self.marked)))
        started = injector(self.folder, "--policy", str(policy), embedded=False, under=(*self.inside, *self.under))
        self.injector = await self._life.enter_async_context(started)
        self.client = await connect(self.folder)

    async def end(self) -> None:
        self.client.writer.close()
        await self._life.aclose()

    async def kill_and_start(self) -> None:
        """SIGKILL for the injector; its watchdog and its next life compete for the undo."""
        self.injector.kill()
        await self.injector.wait()
        await self.end()
        self._life = AsyncExitStack()
        # A fork that was about to become a holder listens there for a moment yet.
        (self.folder / "s.sock").unlink(missing_ok=True)
        await self.start()
        self.client.send(inspect=injector_pb2.Inspect())

    def spawn_victims(self) -> None:
        """Processes that faults may pause and kill."""
        for _ in range(_VICTIMS):
            self._spawn(_VICTIM, self.tag, groups=self.groups)
        self._spawn(one_at_a_time.SERVICE)
        # In no group of ours: it must be able to start another while a fault is on the groups of the others.
        self._spawn(_SUPERVISOR, _VICTIM, BROWNOUT_SUPERVISED=self.supervised)

    def _spawn(self, *argv: str, groups: tuple[Path, ...] = (), **environment: str) -> None:
        """Returns when it, or what it has started, is ready. Its pipe stays open: whoever comes back writes to it."""
        join = [sys.executable, "-S", "-c", JOIN, *(str(group / "cgroup.procs") for group in groups), "--"]
        child = subprocess.Popen(
            [*join, *self.inside, sys.executable, "-S", "-c", *argv],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **environment},
        )  # fmt: skip
        self._children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"

    def end_victims(self) -> None:
        """Those that we started, and those that an undo has started again."""
        for group in self.groups:
            thaw(group)
        for child in self._children:
            child.kill()  # a supervisor first
        for tag in (self.tag, self.supervised):
            for pid in self.victims(tag):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for child in self._children:
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
        self._children.clear()

    def victims(self, tag: str = "") -> dict[int, str]:
        """State letters by pid, without the dead; of those with another tag if asked for."""
        found, wanted = {}, (tag or self.tag).encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX" and wanted in (entry / "cmdline").read_bytes().split(b"\0"):
                    found[int(entry.name)] = state
        return found

    def kernel(self) -> dict[str, str]:
        """What administrators' tools show of this host."""
        space = os.statvfs(self.disk)
        return {
            "qdiscs": self.run("tc", "qdisc", "show"),
            "standby": "".join(self.run("ip", *look.split()) for look in LOOKS),
            "rules": self.run("nft", "--stateless", "list", "ruleset"),
            "ports": self.run("ss", "--no-header", "--numeric", "--listening", "--tcp", "--udp"),
            "mounts": self.run("cat", "/proc/self/mountinfo"),
            "marked": str(self.marked.exists()),
            "free blocks and files": str((space.f_bfree, space.f_ffree)),
            "victims": self._states(self.tag),
            "supervised": self._supervised_states(),
            "limits": ", ".join(sorted({*self._limits()})),
            "groups": ", ".join(self._groups()),
            "holders": ", ".join(str(pid) for fault_id in [*self.states] for pid in holders(fault_id)),
        }

    async def look(self) -> Fingerprint:
        """A fingerprint."""
        question = fault_pb2.TakeFingerprint(fingerprint_id=str(uuid.uuid4()), folders=[str(self.disk)])
        self.client.send(fingerprint=question)
        answer = await self.client.until(lambda message: message.fingerprint.fingerprint_id == question.fingerprint_id)
        return from_wire(answer.fingerprint)

    async def hear(self, enough: Callable[[], bool]) -> None:
        """Read what the injector says until that is enough."""
        if not enough():
            await self.client.until(lambda message: self._note(message) or enough())

    def _note(self, message: injector_pb2.FromInjector) -> bool:
        reports = [message.report] if message.HasField("report") else list(message.inspection.faults)
        self.states |= {report.fault_id: report.state for report in reports}
        self.words |= {report.fault_id: report.message for report in reports if report.message}
        if message.HasField("reply"):
            self.replies[message.reply.fault_id] = message.reply
        return False

    def _states(self, tag: str) -> str:
        states = self.victims(tag).values()
        return ", ".join(sorted("runs" if state in _STATE_IS_WELL else f"is in state {state}" for state in states))

    def _supervised_states(self) -> str:
        """What is being started again is as good as there."""
        deadline_s = time.monotonic() + _STARTED_WITHIN_S
        while not (states := self._states(self.supervised)) and time.monotonic() < deadline_s:
            time.sleep(0.005)
        return states

    def _limits(self) -> Iterator[str]:
        """Of the victims' descriptors, and of their control groups."""
        for pid in [*self.victims(), *self.victims(self.supervised)]:
            with suppress(ProcessLookupError):
                yield f"descriptors {resource.prlimit(pid, resource.RLIMIT_NOFILE)}"
        for file in self.limit_files():
            yield f"{file.name} {file.read_text().strip()}"

    def limit_files(self, *controllers: str) -> list[Path]:
        """The control files by which faults limit the victims' groups, of these controllers if any are named."""
        names = [name for controller in controllers or LIMITS for name in LIMITS[controller]]
        return [group / name for group in self.groups for name in names if (group / name).exists()]

    def _groups(self) -> list[str]:
        """Our control groups that name a fault of this host."""
        mountinfo, own = Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
        parents = {next(group_folders(mountinfo, own, name), None) for name in ("memory", "pids", "")}
        names = (parent.glob(f"{PREFIX}{fault_id}*") for parent in parents if parent for fault_id in [*self.states])
        return [str(path) for found in names for path in found]


@asynccontextmanager
async def undo_host(folder: Path, under: tuple[str, ...] = ()) -> AsyncIterator[Host]:
    """A host with what belongs to others already there; nothing of it stays."""
    with ext4(folder, DISK_BYTES) as disk:
        keeper = await asyncio.create_subprocess_exec(
            *("unshare", "--net", "--mount", "--propagation", "private", "--", "sleep", "infinity")
        )
        host = Host(folder, disk, keeper.pid, under)
        try:
            while not _is_apart(keeper.pid):
                await asyncio.sleep(0.005)
            if (
                " /run/netns " in Path("/proc/self/mountinfo").read_text()
            ):  # else it would lose those that other tests delete meanwhile
                host.run("umount", "--recursive", "--lazy", "/run/netns")
            host.run("ip", "link", "set", "lo", "up")
            host.run(*FEW_PORTS)
            for command in COMMANDS:
                host.run("ip", *command.split())
            host.run("tc", "qdisc", "add", "dev", "lo", "root", "handle", "7:", "tbf", *_TBF)
            host.run("nft", "-f", "-", stdin=_FOREIGN_RULES)
            host.groups = make_groups()
            host.spawn_victims()
            await host.start()
            try:
                yield host
            finally:
                await host.end()
        finally:
            host.end_victims()
            keeper.kill()
            await keeper.wait()
            for group in host.groups:
                await _remove(group)


async def _remove(group: Path) -> None:
    """Remove a control group whose last process was killed just now: the kernel is a moment behind."""
    async with asyncio.timeout(_EMPTY_WITHIN_S):
        while True:
            try:
                group.rmdir()
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                await asyncio.sleep(0.01)
            else:
                return


def make_groups() -> tuple[Path, ...]:
    """A group with each controller of LIMITS, beside this process or where one of ours would be; what can be had."""
    made = []
    for parent in fault_parents():
        group = parent / f"undo-{uuid.uuid4().hex[:8]}"
        group.mkdir()
        if any((group / name).exists() for names in LIMITS.values() for name in names):
            made.append(group)
        else:
            group.rmdir()
    return tuple(made)


def _is_apart(pid: int) -> bool:
    spaces = (Path(f"/proc/{pid}/ns"), Path("/proc/self/ns"))
    return all((spaces[0] / name).readlink() != (spaces[1] / name).readlink() for name in ("net", "mnt"))


# ---- one sequence ----------------------------------------------------------------------------------------------------


def _choose(host: Host, rng: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """One to FAULTS_MAX faults of different kinds; at most one that means the victims."""
    disk = {"path": str(host.disk)}
    limits: dict[str, dict[str, Any]] = {
        "process.pid_exhaustion": {},
        "process.freeze": {},
        "cpu.throttle": {"quota": rng.randint(1, 99)},
        "memory.limit": {"limit": "1GiB", "beyond": "kill"},
        "disk.throttle": {"write": "1MiB/s", **disk},
    }
    on_victims: list[tuple[str, dict[str, Any]]] = [
        ("process.pause", {"command": host.tag}),
        ("process.kill", {"command": host.tag, "restart": True}),
        ("process.fd_exhaustion", {"command": host.tag, "leave": rng.randint(0, 5)}),
        *[(kind, {"command": host.tag, **more}) for kind, more in limits.items() if host.limit_files(_BY_LIMIT[kind])],
    ]
    others: list[tuple[str, dict[str, Any]]] = [
        ("cpu.load", {"percent": 1, "of": "own", "cores": "0"}),
        ("memory.load", {"size": "16MiB"}),
        ("memory.oom", {"size": f"{rng.randint(16, 64)}MiB", "every": "1s"}),
        ("memory.leak", {"rate": f"{rng.randint(1, 100)}MiB/s", "size": "16MiB"}),
        ("disk.io", {"write": "1MiB/s", "file_size": "4MiB", **disk}),
        ("disk.fill", {"size": f"{rng.randint(1, 200)}MiB", **disk}),
        ("disk.inodes", {"count": rng.randint(1, 20_000), **disk}),
        ("network.blackhole", {"to": "127.0.0.9", "port": rng.randint(1024, 9999)}),
        ("exec.run", {"name": executed.NAME}),
        ("dns.answer", {"names": "*.brownout.test", "to": "127.0.0.1"}),
        ("dns.delay", {"names": "*.brownout.test", "delay": f"{rng.randint(1, 2_000)}ms"}),
        ("dns.failure", {"names": "*.brownout.test", "answer": rng.choice(("nxdomain", "timeout"))}),
        ("network.corrupt", {"to": "127.0.0.14", "percent": rng.randint(1, 100)}),
        ("network.duplicate", {"to": "127.0.0.12", "percent": rng.randint(1, 100)}),
        ("network.latency", {"to": "127.0.0.7", "latency": f"{rng.randint(1, 2_000)}ms"}),
        ("network.loss", {"to": "192.0.2.8", "percent": rng.randint(1, 100), **rng.choice(({}, _whose(host)))}),
        ("process.crash_loop", {"command": host.supervised, "every": "1s"}),
        ("network.partition", {"to": "127.0.0.17", "protocol": "tcp", "connections": rng.choice(("existing", "new"))}),
        ("network.port_occupy", {"port": rng.randint(1024, 9999), "protocol": "any"}),
        ("network.reject", {"to": "127.0.0.6", "answer": rng.choice(("refused", "admin-prohibited"))}),
        ("network.rate", {"to": "127.0.0.15", "rate": f"{rng.randint(1, 100_000)}kbit"}),
        ("network.reorder", {"to": "127.0.0.13", "percent": rng.randint(1, 99), "delay": f"{rng.randint(1, 2_000)}ms"}),
        ("network.reset", {"to": "127.0.0.5", "connections": rng.choice(("existing", "new", "both"))}),
        ("network.accept_queue", {"port": one_at_a_time.PORT}),
        ("network.ephemeral_ports", {"to": "127.0.0.16", "port": rng.randint(1024, 9999)}),
        ("network.interface_down", {"interface": STANDBY}),
        ("network.flap", {"to": "127.0.0.4", "every": "250ms", "down": f"{rng.randint(100, 150)}ms"}),
    ]
    return rng.sample([rng.choice(on_victims), *others], rng.randint(1, FAULTS_MAX))


def _whose(host: Host) -> dict[str, Any]:
    """The parameters by which a network fault means flows of one group's sockets, as far as there are such groups."""
    tree = unified_tree()
    below = [group.relative_to(tree) for group in host.groups if tree and group.is_relative_to(tree)]
    return {"share": 30, **({"cgroup": f"/{below[0]}"} if below else {})}


async def play(host: Host, rng: random.Random) -> str:
    """One sequence. Returns what was done.

    Raises:
        AssertionError: the host is not as it was; the text says in what.
    """
    before, first_look = host.kernel(), await host.look()
    faults = {str(uuid.UUID(int=rng.getrandbits(128))): chosen for chosen in _choose(host, rng)}
    end = rng.choice(("time", "stop", "three stops", "kill of the holders", "kill of the injector"))
    host.client.reaches_its_controller = rng.random() < 0.8
    for fault_id, (kind, parameters) in faults.items():
        values = {name: to_value(value) for name, value in parameters.items()}
        duration_ms = 300 if end == "time" else 30_000
        host.client.inject(fault_id, kind=kind, parameters=values, duration_ms=duration_ms)
        await host.hear(lambda fault_id=fault_id: fault_id in host.replies)  # type: ignore[misc]
    begun = {fault_id: kind for fault_id, (kind, _) in faults.items() if host.replies[fault_id].outcome == ACCEPTED}
    if rng.random() < 0.7:  # else what is ended is only begun, or half applied
        await host.hear(lambda: all(host.states.get(one, 0) >= fault_pb2.ACTIVE for one in begun))
    records = host.folder / "records"
    records.write_bytes((host.folder / "state/journal").read_bytes())  # what is over is kept there by its name only
    await _end(host, end, begun)
    await host.hear(lambda: all(host.states.get(one) == fault_pb2.CLEAN for one in begun))
    if rng.random() < 0.3:
        end += ", and three more undos from the journal"
        host.run(sys.executable, "-c", _UNDO_THREE_TIMES, records, *begun)
    told = f"{', '.join(kind for kind, _ in faults.values())} ended by {end}"
    await _see_equal(host, before, first_look, begun, told)
    return told


async def _end(host: Host, end: str, begun: dict[str, str]) -> None:
    match end:
        case "stop" | "three stops":
            for fault_id in [*begun] * (1 if end == "stop" else 3):
                host.client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="enough"))
        case "kill of the holders":
            for fault_id in begun:
                for pid in holders(fault_id):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                # One that was only about to be started is there none the less.
                host.client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="its holder may have lived on"))
        case "kill of the injector":
            await host.kill_and_start()


async def _see_equal(
    host: Host, before: dict[str, str], first_look: Fingerprint, begun: dict[str, str], told: str
) -> None:
    deadline_s = time.monotonic() + EQUAL_WITHIN_S
    while True:
        after = host.kernel()
        found = find_residue("host", begun, first_look, await host.look())
        other = [f"{name}: {before[name]!r} -> {after[name]!r}" for name in before if before[name] != after[name]]
        if not other and found.state is ResidueState.CLEAN:
            return
        assert time.monotonic() < deadline_s, f"after {told}: {other} {found}"
        await asyncio.sleep(0.05)
