"""The injector under a storm of hostile inputs, and what the kernel, the journal and /proc then show of it.

Its policy lets every order pass up to the host's hours, which are over: everything before is exercised, and nothing may
ever be applied, whatever arrives. The storm comes from whom the socket is for: whoever is root or the agent's user.
"""

import asyncio
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from brownout_agent.frames import FRAME_BYTES_MAX, frame, read_frame, to_value
from brownout_agent.injector.journal import Mark, decode
from brownout_agent.kernel.processes import all_pids, read_stat
from brownout_protos.v1 import fault_pb2, injector_pb2

from tests.support.fuzz_messages import any_text, break_wire, broken_frame, fill, parses
from tests.support.injectors import injector

BATCH = 200
"""Inputs of a connection; the last of them may be one that ends it."""
ANSWERS_WITHIN_S = 60.0
_AGENT = "agent-1"
_ECHO = " echo "
"""No id of a fault, so that its stop is refused and nothing is noted: the answer shows that all before was read."""
_ORDERS: dict[str, dict[str, object]] = {
    "cpu.load": {"percent": 5, "of": "own", "cores": "0"},
    "cpu.throttle": {"command": "no such process anywhere", "quota": "20%"},
    "disk.fill": {"size": "1MiB", "path": "/tmp"},
    "disk.inodes": {"count": 10, "path": "/tmp"},
    "disk.io": {"write": "1MiB/s", "file_size": "4MiB", "path": "/tmp"},
    "memory.leak": {"rate": "1MiB/s", "size": "16MiB"},
    "disk.throttle": {"command": "no such process anywhere", "path": "/tmp", "write": "1MiB/s"},
    "memory.limit": {"command": "no such process anywhere", "limit": "64MiB"},
    "memory.load": {"size": "16MiB"},
    "memory.oom": {"size": "16MiB"},
    "network.blackhole": {"to": "127.0.0.9", "port": 9999},
    "dns.answer": {"names": "*.brownout.test", "to": "127.0.0.1"},
    "dns.delay": {"names": "*.brownout.test", "delay": "20ms", "percent": 50},
    "dns.failure": {"names": ["a.test", "*.brownout.test"], "answer": "servfail"},
    "exec.run": {"name": "no-such-name"},
    "network.corrupt": {"to": "127.0.0.14", "percent": 50},
    "network.duplicate": {"to": "127.0.0.12", "percent": 50},
    "network.latency": {"to": "127.0.0.7", "latency": "20ms"},
    "network.interface_down": {"interface": "standby0"},
    "network.accept_queue": {"port": 9},
    "network.ephemeral_ports": {"to": "127.0.0.16", "port": 9},
    "network.flap": {"to": "127.0.0.4", "every": "1s", "down": "300ms"},
    "network.loss": {"to": "127.0.0.8", "percent": 20},
    "network.partition": {"to": "127.0.0.17", "direction": "ingress", "protocol": "tcp", "connections": "existing"},
    "network.port_occupy": {"port": "9000-9010", "protocol": "any"},
    "network.reject": {"to": "192.0.2.6", "answer": "host-unreachable", "share": 30},
    "network.rate": {"to": "127.0.0.15", "rate": "1mbit", "queue": "50ms"},
    "network.reorder": {"to": "127.0.0.13", "percent": 20, "delay": "20ms", "gap": 3},
    "network.reset": {"to": "127.0.0.5", "connections": "both"},
    "process.crash_loop": {"command": "no such process anywhere"},
    "process.fd_exhaustion": {"command": "no such process anywhere"},
    "process.freeze": {"command": "no such process anywhere"},
    "process.kill": {"command": "no such process anywhere"},
    "process.pause": {"command": "no such process anywhere"},
    "process.pid_exhaustion": {"command": "no such process anywhere"},
}
_COSTLY = {"inspect": 0.002, "fingerprint": 0.002, "halt": 0.05}
"""What asks for work by its nature is asked for less often."""
GROWTH_BYTES_MAX = 8 * 2**20
"""From the first half of a long storm to the second."""
JOURNAL_IN_MEMORY_BYTES = 48 * 2**20
"""Until its file is full and it forgets all but the latest, the journal remembers every id whose stop came first."""


@dataclass
class Storm:
    """What was sent and what was seen."""

    seed: int
    inputs: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    seconds: float = 0.0
    resident_bytes: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.inputs.values())

    def growth_bytes(self) -> int:
        """How much higher memory stood at its highest in the second half than in the first."""
        half = len(self.resident_bytes) // 2
        return max(self.resident_bytes[half:]) - max(self.resident_bytes[:half])


def policy() -> str:
    """Everything is allowed, on the day before yesterday's weekday."""
    day = f"{datetime.now(UTC) - timedelta(days=2):%a}".lower()
    return (
        'version: 1\nenvironment: staging\nfaults: {"*": {allow: true, max_seconds: 900}}\n'
        f'hours: {{days: [{day}], from: "00:00", to: "23:59", tz: UTC}}\nlimits: {{concurrent: 64}}\n'
    )


def order(rng: random.Random, fault_id: str) -> injector_pb2.ToInjector:
    """An order that is good up to a few places."""
    kind = rng.choice([*_ORDERS])
    inject = fault_pb2.Inject(
        fault_id=fault_id,
        environment="staging",
        kind=kind,
        parameters={name: to_value(value) for name, value in _ORDERS[kind].items()},
        duration_ms=30_000,
        lease_ms=20_000,
        agent_id=_AGENT,
    )
    for _ in range(rng.choice((0, 1, 1, 2))):
        odd = fault_pb2.Inject()
        fill(odd, rng)
        name = rng.choice(
            ("fault_id", "epoch", "environment", "kind", "parameters", "duration_ms", "lease_ms", "run_id")
        )
        if name == "parameters":
            for key in [*inject.parameters][:1] if rng.random() < 0.7 else [any_text(rng)]:
                inject.parameters[key].CopyFrom(fill(fault_pb2.Value(), rng))  # type: ignore[arg-type]
        else:
            setattr(inject, name, getattr(odd, name))
    return injector_pb2.ToInjector(inject=inject)


def message(rng: random.Random) -> injector_pb2.ToInjector:
    """Any message, with odd values everywhere."""
    while True:
        made = fill(injector_pb2.ToInjector(), rng)
        assert isinstance(made, injector_pb2.ToInjector)
        body = made.WhichOneof("body")
        if body == "attach":
            made.attach.agent_id = _AGENT if rng.random() < 0.9 else made.attach.agent_id
        if body is not None and rng.random() < _COSTLY.get(body, 1.0) and made.ByteSize() <= FRAME_BYTES_MAX:
            return made


def batch(rng: random.Random, size: int) -> tuple[list[tuple[str, bytes]], bool]:
    """Inputs by what they are, and whether the connection survives the last of them."""
    made: list[tuple[str, bytes]] = []
    while len(made) < size:
        draw = rng.random()
        if draw < 0.45:
            made.append(("an odd message", frame(message(rng))))
        elif draw < 0.8:
            made.append(("an order, nearly good", frame(order(rng, f"fuzz-{rng.randrange(10**6)}"))))
        elif draw < 0.85:  # a stop before its start, and that start, twice
            fault_id = f"fuzz-{rng.getrandbits(64):x}"
            stop = injector_pb2.ToInjector(stop=fault_pb2.Stop(fault_id=fault_id, reason=any_text(rng)))
            again = frame(order(rng, fault_id))
            made += [("a stop before its start", frame(stop)), *[("a start after its stop", again)] * 2]
        elif draw < 0.99:
            body = break_wire(message(rng).SerializeToString(), rng)
            survives = len(body) <= FRAME_BYTES_MAX and parses(injector_pb2.ToInjector, body)
            if not survives and rng.random() < 0.8:
                continue  # else there would be no long connections
            made.append(("a broken message", len(body).to_bytes(4) + body))
            if not survives:
                return made, False
        else:
            made.append(("no frame", broken_frame(rng)))
            return made, False
    return made, True


async def send(storm: Storm, socket: Path, rng: random.Random, size: int) -> None:
    """One connection: attach, a batch, and wait until the injector has read it all or has hung up.

    Raises:
        AssertionError: it speaks of a fault, or says nothing any more.
    """
    inputs, survives = batch(rng, size)
    reader, writer = await asyncio.open_unix_connection(socket)
    attach = injector_pb2.Attach(agent_version="fuzz", agent_id=_AGENT)
    writer.write(frame(injector_pb2.ToInjector(attach=attach)))
    writer.write(b"".join(raw for _, raw in inputs))
    if survives:
        writer.write(frame(injector_pb2.ToInjector(stop=fault_pb2.Stop(fault_id=_ECHO))))
    elif writer.can_write_eof():
        writer.write_eof()
    async with asyncio.timeout(ANSWERS_WITHIN_S):
        try:
            while (answer := await read_frame(reader, injector_pb2.FromInjector)) is not None:
                _judge(storm, answer)
                if answer.reply.fault_id == _ECHO:
                    break
        except ConnectionError:
            pass
    writer.close()
    storm.connections += 1
    storm.inputs.update(what for what, _ in inputs)


def _judge(storm: Storm, answer: injector_pb2.FromInjector) -> None:
    said = answer.WhichOneof("body") or "nothing"
    if said == "report":  # all that there can be: an id whose stop came first, and which is of no kind
        assert not answer.report.kind, f"a fault was begun: {answer}"
        assert answer.report.state == fault_pb2.CLEAN, f"a fault was begun: {answer}"
    assert said != "control_trial", f"a fault was begun: {answer}"
    if said == "reply":
        said = fault_pb2.OrderReply.Outcome.Name(answer.reply.outcome).lower()
    storm.answers[said] += 1


@asynccontextmanager
async def target() -> AsyncIterator[tuple[Path, asyncio.subprocess.Process]]:
    """An injector in a network namespace of its own, its journal in memory."""
    with tempfile.TemporaryDirectory(prefix="bo-fuzz-", dir="/dev/shm") as name:
        folder = Path(name)
        (folder / "policy.yaml").write_text(policy())
        more = ("--policy", str(folder / "policy.yaml"))
        async with injector(folder, *more, embedded=False, under=("unshare", "--net", "--")) as process:
            yield folder, process


def kernel(pid: int) -> dict[str, str]:
    """What a fault of this injector would change: rules, queues, processes."""
    enter = ("nsenter", f"--target={pid}", "--net", "--")
    rules, queues = (
        subprocess.run([*enter, *argv], check=True, capture_output=True, text=True).stdout
        for argv in (("nft", "list", "ruleset"), ("tc", "qdisc", "show"))
    )
    stats = ((one, read_stat(one)) for one in all_pids())
    children = sorted(f"{one} {stat.comm}" for one, stat in stats if stat is not None and stat.parent_pid == pid)
    return {"rules": rules, "queues": queues, "children": str(children)}


async def storm_at(inputs: int, seed: int) -> Storm:
    """Send so many inputs, and see that nothing came of them.

    Raises:
        AssertionError: the injector died, complained of itself, applied something, or keeps what it was sent.
    """
    rng, storm = random.Random(seed), Storm(seed)
    async with target() as (folder, process):
        await send(storm, folder / "s.sock", rng, BATCH)  # everything is imported and allocated from here on
        before = kernel(process.pid)
        begun_s = time.monotonic()
        samples = 40
        while storm.total < inputs:
            await send(storm, folder / "s.sock", rng, min(BATCH, inputs - storm.total))
            assert process.returncode is None, (folder / "injector.log").read_text()[-2_000:]
            if storm.total >= inputs * len(storm.resident_bytes) / samples:
                _sample(storm, process.pid)
        storm.seconds = time.monotonic() - begun_s
        await _at_rest(storm, process.pid, before)
        _see_nothing(folder)
    return storm


def _see_nothing(folder: Path) -> None:
    log = (folder / "injector.log").read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4_000]
    entries = decode((folder / "state/journal").read_bytes()).entries
    assert {entry.mark for entry in entries.values()} <= {Mark.REFUSED_FOR_EVER}, "the journal has a fault"


def _sample(storm: Storm, pid: int) -> None:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    storm.resident_bytes.append(int(fields["VmRSS"].split()[0]) * 1024)
    storm.threads.append(int(fields["Threads"]))
    storm.descriptors.append(len([*Path(f"/proc/{pid}/fd").iterdir()]))


async def _at_rest(storm: Storm, pid: int, before: dict[str, str]) -> None:
    """Wait until all that looked at the host on request is done, and every connection closed."""
    deadline_s = time.monotonic() + ANSWERS_WITHIN_S
    while True:
        _sample(storm, pid)
        after = kernel(pid)
        if after == before and storm.descriptors[-1] <= min(storm.descriptors):
            return
        assert time.monotonic() < deadline_s, f"{before} -> {after}, descriptors {storm.descriptors}"
        await asyncio.sleep(0.05)
