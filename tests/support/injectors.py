"""The injector as its agent sees it: the real program, and a client at its door."""

import asyncio
import contextlib
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import psutil
from brownout_agent.frames import frame, read_frame, to_value
from brownout_agent.kernel.processes import all_pids
from brownout_protos.v1 import fault_pb2, injector_pb2

BIN = Path(sys.executable).parent
UP_WITHIN_S = 40.0
"""On a machine with ten other things to do; what it waits for takes less than a second."""
_UNDONE_WITHIN_S = 30.0
ACCEPTED, REFUSED = fault_pb2.OrderReply.ACCEPTED, fault_pb2.OrderReply.REFUSED


class Client:
    """An agent, as far as the injector can tell."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.reaches_its_controller = True
        """What it answers when a fault is on trial."""

    def send(self, **body: object) -> None:
        self.writer.write(frame(injector_pb2.ToInjector(**body)))  # type: ignore[arg-type]

    async def until(self, wanted: Callable[[injector_pb2.FromInjector], bool]) -> injector_pb2.FromInjector:
        async with asyncio.timeout(20):
            while (message := await read_frame(self._reader, injector_pb2.FromInjector)) is not None:
                if message.HasField("control_trial") and self.reaches_its_controller:
                    self.send(control_alive=injector_pb2.ControlAlive(fault_id=message.control_trial.fault_id))
                if wanted(message):
                    return message
        raise AssertionError("the injector closed the connection")

    async def reply(self) -> fault_pb2.OrderReply:
        return (await self.until(lambda message: message.HasField("reply"))).reply

    async def state(self, state: "fault_pb2.FaultState.ValueType") -> fault_pb2.FaultReport:
        return (await self.until(lambda message: message.HasField("report") and message.report.state == state)).report

    def inject(self, fault_id: str, **more: object) -> None:
        values: dict[str, object] = {
            "environment": "staging",
            "kind": "cpu.load",
            "parameters": {"percent": to_value(1), "of": to_value("own"), "cores": to_value("0")},
            "duration_ms": 30_000,
            "lease_ms": 20_000,
        }
        self.send(inject=fault_pb2.Inject(fault_id=fault_id, **{**values, **more}))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def injector(
    folder: Path, *options: str, embedded: bool = True, under: Sequence[str] = ()
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Serve in `folder`, started by the program and arguments of `under`; ended when the block ends."""
    socket = folder / "s.sock"
    argv = [*under, str(BIN / "brownout-injector"), "serve"]
    argv += ["--socket", str(socket), "--state-dir", str(folder / "state")]
    argv += ["--embedded"] if embedded else []
    with (folder / "injector.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*argv, *options, stderr=log)
    try:
        async with asyncio.timeout(UP_WITHIN_S):
            while not await answers(socket):
                await asyncio.sleep(0.01)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def watchdogs_done(folder: Path) -> None:
    """Return when no process works for an injector of this folder any more: a killed one's watchdog undoes for it."""
    state = str(folder / "state")
    working = [one for one in psutil.process_iter(["cmdline"]) if state in (one.info["cmdline"] or ())]
    _, busy = await asyncio.to_thread(psutil.wait_procs, working, timeout=_UNDONE_WITHIN_S)
    assert not busy, f"still at work: {busy}"


clients: list[Client] = []


async def answers(socket: Path) -> bool:
    """Whether somebody listens there: a killed injector leaves its socket behind."""
    try:
        _, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    writer.close()
    return True


async def connect(folder: Path) -> Client:
    client = Client(*await asyncio.open_unix_connection(folder / "s.sock"))
    clients.append(client)
    client.send(attach=injector_pb2.Attach(agent_version="test"))
    return client


def holders(fault_id: str) -> list[int]:
    """Pids that hold this fault, by their command line."""
    found = []
    for pid in all_pids():
        with contextlib.suppress(OSError):
            if fault_id.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def story(told: Callable[[Path], Awaitable[None]], folder: Path) -> None:
    async def closing_clients() -> None:
        try:
            await told(folder)
        finally:
            while clients:
                clients.pop().writer.close()

    asyncio.run(closing_clients())


def new_id() -> str:
    return str(uuid.uuid4())


def running(program: Path) -> list[int]:
    """Pids that run this very file."""
    found = []
    for pid in all_pids():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/exe").readlink() == program:
                found.append(pid)
    return found
