"""The injector through its only door: orders, stops, leases, refusals and bad frames, against the real kernel."""

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from brownout_agent.frames import FRAME_BYTES_MAX, frame, read_frame, to_value
from brownout_agent.injector.journal import Journal
from brownout_agent.kernel.processes import all_pids
from brownout_protos.v1 import fault_pb2, injector_pb2

BIN = Path(sys.executable).parent
ACCEPTED, REFUSED = fault_pb2.OrderReply.ACCEPTED, fault_pb2.OrderReply.REFUSED


class Client:
    """An agent, as far as the injector can tell."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, **body: object) -> None:
        self.writer.write(frame(injector_pb2.ToInjector(**body)))  # type: ignore[arg-type]

    async def until(self, wanted: Callable[[injector_pb2.FromInjector], bool]) -> injector_pb2.FromInjector:
        async with asyncio.timeout(20):
            while (message := await read_frame(self._reader, injector_pb2.FromInjector)) is not None:
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
async def injector(folder: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    socket = folder / "s.sock"
    argv = [BIN / "brownout-injector", "serve", "--embedded", "--socket", socket, "--state-dir", folder / "state"]
    with (folder / "injector.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*argv, *options, stderr=log)
    try:
        async with asyncio.timeout(15):
            while not await answers(socket):
                await asyncio.sleep(0.01)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


_clients: list[Client] = []


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
    _clients.append(client)
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
            while _clients:
                _clients.pop().writer.close()

    asyncio.run(closing_clients())


def new_id() -> str:
    return str(uuid.uuid4())


def test_a_fault_is_accepted_active_measured_and_clean(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder):
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id, duration_ms=2_500)
            assert (await client.reply()).outcome == ACCEPTED
            await client.state(fault_pb2.ACTIVE)
            assert holders(fault_id)
            clean = await client.state(fault_pb2.CLEAN)
            assert clean.end_cause == fault_pb2.DURATION
            assert clean.effect.samples > 0
            assert holders(fault_id) == []

    story(told, tmp_path)


def test_a_stop_ends_a_fault_at_once(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder):
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id)
            await client.state(fault_pb2.ACTIVE)
            client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="enough"))
            clean = await client.state(fault_pb2.CLEAN)
            assert clean.end_cause == fault_pb2.STOPPED
            assert holders(fault_id) == []

    story(told, tmp_path)


def test_a_stop_that_comes_before_its_start_wins(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder):
            client, fault_id = await connect(folder), new_id()
            client.send(stop=fault_pb2.Stop(fault_id=fault_id))
            assert (await client.reply()).outcome == ACCEPTED
            client.inject(fault_id)
            refused = await client.reply()
            assert (refused.outcome, refused.reason) == (REFUSED, "its stop came before its start")
        async with injector(folder):
            client = await connect(folder)
            client.inject(fault_id)
            assert (await client.reply()).outcome == REFUSED

    story(told, tmp_path)


def test_the_same_order_twice_is_one_fault(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder):
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id)
            client.inject(fault_id)
            assert [(await client.reply()).outcome for _ in range(2)] == [ACCEPTED, ACCEPTED]
            await client.state(fault_pb2.ACTIVE)
            mains = [pid for pid in holders(fault_id) if os.getsid(pid) == pid]
            assert len(mains) == 1

    story(told, tmp_path)


def test_without_renewal_the_lease_ends_the_fault_and_with_it_the_fault_goes_on(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder):
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id, lease_ms=1_500)
            await client.state(fault_pb2.ACTIVE)
            for _ in range(4):
                await asyncio.sleep(0.7)  # renewals have a rhythm; together they outlast the lease
                client.send(renew=fault_pb2.RenewLease())
            assert holders(fault_id)
            clean = await client.state(fault_pb2.CLEAN)
            assert clean.end_cause == fault_pb2.LEASE_LOST

    story(told, tmp_path)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"kind": "cpu.melt"}, "knows no fault `cpu.melt`"),
        ({"environment": "production"}, "for environment `production`"),
        ({"duration_ms": 0}, "a duration of 0 s"),
        ({"duration_ms": 901_000}, "at most 900 s"),
        ({"duration_ms": 4_000_000_000}, "a duration of 4e+06 s"),
        ({"lease_ms": 0}, "a lease of 0 s"),
        ({"lease_ms": 301_000}, "a lease of 301 s"),
        ({"parameters": {"percent": to_value(101)}}, "percent"),
        ({"parameters": {"percent": to_value(float("nan"))}}, "percent"),
        ({"parameters": {"percent": to_value(5), "sudo": to_value("rm")}}, "sudo"),
        ({"parameters": {}}, "percent"),
    ],
)
def test_an_order_that_is_not_right_is_refused_and_nothing_is_touched(
    tmp_path: Path, more: dict[str, object], reason: str
) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder):
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id, **more)
            reply = await client.reply()
            assert reply.outcome == REFUSED
            assert reason in reply.reason
        journal = Journal(folder / "state", wait_s=5)  # the watchdog looks once more
        assert fault_id not in journal.entries
        journal.close()

    story(told, tmp_path)


@pytest.mark.parametrize(
    "raw", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x05hello", b"\x00\x00\x00\x00", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_bad_frames_cost_the_connection_and_nothing_else(tmp_path: Path, raw: bytes) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder):
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id)
            await client.state(fault_pb2.ACTIVE)
            client.writer.write(raw)
            client.writer.write_eof()
            with pytest.raises(AssertionError, match="closed the connection"):
                await client.until(lambda _: False)
            again = await connect(folder)
            again.send(inspect=injector_pb2.Inspect())
            inspection = (await again.until(lambda message: message.HasField("inspection"))).inspection
            assert [fault.fault_id for fault in inspection.faults] == [fault_id]

    assert len(raw) < FRAME_BYTES_MAX
    story(told, tmp_path)


def test_sigterm_undoes_everything_first(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder) as process:
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id)
            await client.state(fault_pb2.ACTIVE)
            process.terminate()
            assert await process.wait() == 0
            assert holders(fault_id) == []
        assert not (folder / "s.sock").exists()

    story(told, tmp_path)


def test_a_killed_injector_leaves_no_fault_and_the_next_one_knows_that_it_is_clean(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder) as process:
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id)
            await client.state(fault_pb2.ACTIVE)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            async with asyncio.timeout(5):
                while holders(fault_id):
                    await asyncio.sleep(0.01)
        async with injector(folder):
            again = await connect(folder)
            again.send(inspect=injector_pb2.Inspect())
            inspection = (await again.until(lambda message: message.HasField("inspection"))).inspection
            (report,) = inspection.faults
            assert (report.fault_id, report.state) == (fault_id, fault_pb2.CLEAN)
            assert report.end_cause == fault_pb2.REAPED

    story(told, tmp_path)


def test_a_killed_watchdog_is_replaced(tmp_path: Path) -> None:
    def watchdogs() -> list[int]:
        found = []
        for pid in all_pids():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"watch" in line and str(tmp_path / "state").encode() in line:
                    found.append(pid)
        return found

    async def told(folder: Path) -> None:
        async with injector(folder):
            (first,) = watchdogs()
            os.kill(first, signal.SIGKILL)
            async with asyncio.timeout(10):
                while watchdogs() in ([], [first]):
                    await asyncio.sleep(0.02)

    story(told, tmp_path)


def test_everything_ends_when_the_parent_of_one_machine_mode_dies(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        parent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _PARENT, BIN / "brownout-injector", folder),
            stdout=asyncio.subprocess.PIPE,
        )
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        async with asyncio.timeout(15):
            while not await answers(folder / "s.sock"):
                await asyncio.sleep(0.01)
        client, fault_id = await connect(folder), new_id()
        client.inject(fault_id)
        await client.state(fault_pb2.ACTIVE)
        parent.kill()
        await parent.wait()
        async with asyncio.timeout(10):
            while Path(f"/proc/{pid}").exists() or holders(fault_id):
                await asyncio.sleep(0.01)

    story(told, tmp_path)


_PARENT = """
import os, pathlib, subprocess, sys, time
program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
child = subprocess.Popen([program, "serve", "--embedded", "--socket", folder / "s.sock",
                          "--state-dir", folder / "state", "--parent", str(os.getpid())], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""
