"""The trial of network faults: what cuts its agent off or hurts SSH goes by itself, what does neither stays.

The controller's place is taken by a peer across a cable, and its answer by a real echo over a connection that stood
before: only what the kernel carries is proof.
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from brownout_agent.faults.contract import TRIAL_S, Host
from brownout_agent.faults.network_lifelines import Lifelines
from brownout_agent.faults.network_rules import FAMILY, drop, table_name
from brownout_agent.faults.network_scope import NetworkParameters, Scope, resolve
from brownout_agent.faults.network_table import load
from brownout_agent.frames import to_value
from brownout_agent.injector.deadlines import KERNEL_MARGIN_S
from brownout_agent.kernel.nftables import Nftables, table_names
from brownout_protos.v1 import fault_pb2, injector_pb2

from tests.host.network_pair import FAR, Pair, inside, network_pair
from tests.support.injectors import Client, injector, new_id

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]

CONTROLLER_PORT = 7001
SLACK_S = 1.5
_POLICY = """
version: 1
environment: staging
faults: {"*": {allow: true, max_seconds: 120}}
limits: {concurrent: 60}
"""


@pytest.fixture(autouse=True)
def pair() -> Iterator[Pair]:
    with network_pair() as both, inside(both.near):
        yield both
        assert table_names(FAMILY) == []


class Echoing(Client):
    """An agent whose controller is the far end of one connection: it confirms when an echo comes back over it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.reaches_its_controller = False
        self.reports: dict[str, list[fault_pb2.FaultReport]] = {}
        self._lock = asyncio.Lock()

    async def live(self) -> None:
        """Be that agent until cancelled."""
        far_reader, far_writer = await asyncio.open_connection(FAR, CONTROLLER_PORT)
        asking: set[asyncio.Task[None]] = set()
        try:
            while True:
                message = await self.until(lambda _: True)
                if message.HasField("report"):
                    self.reports.setdefault(message.report.fault_id, []).append(message.report)
                elif message.HasField("control_trial"):
                    asking.add(asyncio.create_task(self._prove(message.control_trial.fault_id, far_reader, far_writer)))
        finally:
            for task in asking:
                task.cancel()
            far_writer.close()
            with contextlib.suppress(OSError):
                await far_writer.wait_closed()

    async def _prove(self, fault_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._lock:
            writer.write(b"x")
            try:
                await reader.readexactly(1)
            except (ConnectionError, asyncio.IncompleteReadError):
                return  # no answer
        self.send(control_alive=injector_pb2.ControlAlive(fault_id=fault_id))

    async def told(self, fault_id: str, state: "fault_pb2.FaultState.ValueType") -> fault_pb2.FaultReport:
        async with asyncio.timeout(20):
            while True:
                for report in self.reports.get(fault_id, []):
                    if report.state == state:
                        return report
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def house(folder: Path, *exempt: tuple[str, int]) -> AsyncIterator[tuple[Echoing, asyncio.subprocess.Process]]:
    (folder / "policy.yaml").write_text(_POLICY)
    async with injector(folder, "--policy", str(folder / "policy.yaml"), embedded=False) as process:
        client = Echoing(*await asyncio.open_unix_connection(folder / "s.sock"))
        peers = [injector_pb2.Peer(address=address, port=port) for address, port in exempt]
        client.send(attach=injector_pb2.Attach(agent_version="test", control_peers=peers))
        living = asyncio.create_task(client.live())
        try:
            yield client, process
        finally:
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)
            client.writer.close()
            with contextlib.suppress(OSError):  # its injector may have been killed
                await client.writer.wait_closed()


def blackhole(client: Client, fault_id: str, kind: str = "network.blackhole", **parameters: str) -> None:
    """Cut this host off from everybody, but for what is exempt; by another fault if need be."""
    values = {name: to_value(value) for name, value in parameters.items()}
    client.inject(fault_id, kind=kind, parameters=values, duration_ms=60_000, lease_ms=60_000)


async def gone_after(fault_id: str, within_s: float) -> float:
    begun_s = time.monotonic()
    async with asyncio.timeout(within_s):
        while table_name(fault_id) in await asyncio.to_thread(table_names, FAMILY):
            await asyncio.sleep(0.02)
    return time.monotonic() - begun_s


@pytest.mark.parametrize(
    "cut",
    [
        {"kind": "network.blackhole"},
        {"kind": "network.reject"},
        {"kind": "network.reset"},
        {"kind": "network.flap", "every": "10m", "down": "9m"},
    ],
    ids=lambda cut: cut["kind"],
)
def test_a_fault_that_cuts_the_agents_own_stream_goes_by_itself_and_says_why(
    tmp_path: Path, cut: dict[str, str]
) -> None:
    async def scene() -> None:
        async with house(tmp_path) as (client, _):  # the controller is left out of what is exempt
            fault_id = new_id()
            blackhole(client, fault_id, **cut)
            await client.told(fault_id, fault_pb2.ACTIVE)
            await gone_after(fault_id, TRIAL_S + SLACK_S)
            undoing = await client.told(fault_id, fault_pb2.UNDOING)
            assert undoing.end_cause == fault_pb2.CONTROL_LOST
            assert "nobody confirmed that the agent still reaches its controller" in undoing.message
            assert (await client.told(fault_id, fault_pb2.CLEAN)).end_cause == fault_pb2.CONTROL_LOST

    asyncio.run(scene())


def test_an_injector_that_is_stopped_or_killed_in_the_trial_leaves_it_to_the_kernel(tmp_path: Path) -> None:
    async def scene() -> None:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            folder = tmp_path / number.name
            folder.mkdir()
            async with house(folder) as (client, process):
                fault_id = new_id()
                blackhole(client, fault_id)
                await client.told(fault_id, fault_pb2.ACTIVE)
                process.send_signal(number)
                try:
                    await gone_after(fault_id, TRIAL_S + KERNEL_MARGIN_S + SLACK_S)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        process.send_signal(signal.SIGCONT)

    asyncio.run(scene())


def test_without_an_agent_nobody_can_confirm_so_it_goes_at_once(tmp_path: Path) -> None:
    async def scene() -> None:
        async with house(tmp_path) as (client, _):
            fault_id = new_id()
            blackhole(client, fault_id)
            await client.told(fault_id, fault_pb2.RECORDED)
            client.writer.close()
            log = tmp_path / "state/journal"
            async with asyncio.timeout(10):
                while b"CONTROL_LOST" not in log.read_bytes():
                    await asyncio.sleep(0.02)
            await gone_after(fault_id, 1.0)

    asyncio.run(scene())


def test_faults_that_spare_the_stream_all_stay(tmp_path: Path) -> None:
    asyncio.run(none_is_lost(tmp_path, 20))


async def none_is_lost(folder: Path, count: int, at_once: int = 10) -> None:
    async with house(folder, (FAR, CONTROLLER_PORT)) as (client, _):
        slots = asyncio.Semaphore(at_once)

        async def one_life() -> fault_pb2.FaultReport | None:
            """What it said last where it was lost."""
            async with slots:
                fault_id = new_id()
                blackhole(client, fault_id)
                await client.told(fault_id, fault_pb2.ACTIVE)
                await asyncio.sleep(TRIAL_S + KERNEL_MARGIN_S)  # what is not confirmed is over by then
                stays = table_name(fault_id) in await asyncio.to_thread(table_names, FAMILY)
                client.send(stop=fault_pb2.Stop(fault_id=fault_id))
                await client.told(fault_id, fault_pb2.CLEAN)
                return None if stays else client.reports[fault_id][-1]

        lives = await asyncio.gather(*(one_life() for _ in range(count)))
        assert [lost for lost in lives if lost is not None] == []


# ---- SSH --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def drops(port: int) -> Iterator[None]:
    """Somebody else's rule that drops what goes to this port."""
    with Nftables() as nft:
        rule = f"chain out {{ type filter hook output priority 0; tcp dport {port} drop\n}}\n"
        nft.run(f"table ip foreign {{\nflags owner\n{rule}}}\n")
        yield


def scope_of(**given: object) -> Scope:
    parameters = NetworkParameters.model_validate(given)
    return Scope.of(parameters, resolve(parameters, Host()))


def test_an_idle_ssh_connection_that_wrong_rules_would_cut_is_found_by_the_rules() -> None:
    with socket.create_connection((FAR, 22), timeout=1):
        assert Lifelines(scope_of(), {22}).harm() == ""
        wrong = Scope(None, (), "any", "both", None, False, (), ())  # SSH's port left out
        assert f"its rules are for packets of the SSH connection from {FAR}:22" in Lifelines(wrong, {22}).harm()
        elsewhere = Scope(None, ((5432, 5432),), "any", "both", None, False, (), ())
        assert Lifelines(elsewhere, {22}).harm() == ""


def test_an_ssh_connection_that_gets_no_answer_any_more_is_found_by_its_segments() -> None:
    with socket.create_connection((FAR, 22), timeout=1) as ssh:
        ssh.sendall(b"ls\n")
        assert ssh.recv(16) == b"ls\n"
        lifelines = Lifelines(scope_of(), {22})
        with drops(22):
            ssh.sendall(b"ls\n")
            deadline = time.monotonic() + 3
            while not (harm := lifelines.harm()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert harm == f"the SSH connection from {FAR}:22 to {ssh.getsockname()[0]}:{ssh.getsockname()[1]} " + (
            "has had no answer since it began"
        )
        assert ssh.recv(16) == b"ls\n"  # sent again, and heard


def test_a_fault_during_whose_trial_ssh_falls_silent_goes_though_the_controller_answers(tmp_path: Path) -> None:
    async def scene() -> None:
        async with house(tmp_path, (FAR, CONTROLLER_PORT)) as (client, _):
            with socket.create_connection((FAR, 22), timeout=1) as ssh, drops(22):
                fault_id = new_id()
                client.inject(fault_id, kind="network.blackhole", parameters={"port": to_value(9)})
                await client.told(fault_id, fault_pb2.ACTIVE)
                ssh.sendall(b"ls\n")
                undoing = await client.told(fault_id, fault_pb2.UNDOING)
                assert undoing.end_cause == fault_pb2.CONTROL_LOST
                assert "has had no answer" in undoing.message
                await client.told(fault_id, fault_pb2.CLEAN)

    asyncio.run(scene())


def test_the_rules_and_the_judgement_without_them_agree() -> None:
    """Real packets against `Scope.meets`, over scopes that differ in every part that a TCP connection can notice."""
    scopes = (
        scope_of(),
        scope_of(to=FAR),
        scope_of(to="10.99.0.77"),
        scope_of(to="10.99.0.0/24", port=7001),
        scope_of(port="7002"),
        scope_of(protocol="udp"),
        scope_of(direction="ingress", to=FAR),
        Scope(None, (), "any", "both", None, False, (), (7001,)),
    )
    for scope in scopes:
        with socket.create_connection((FAR, 7001), timeout=1) as stream, Nftables() as nft:
            stream.settimeout(0.4)
            load(nft, "brownout-judged", scope, drop(100), lease_ms=10_000)
            stream.sendall(b"x")
            try:
                is_cut = stream.recv(1) != b"x"
            except TimeoutError:
                is_cut = True
            nft.run(f"delete table {FAMILY} brownout-judged")
            assert bool(Lifelines(scope, {7001}).harm()) == is_cut, scope
