"""The kill switches of a host against the real kernel: its STOP file, `brownout-injector halt`, Halt on the wire."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from brownout_agent.injector.journal import Journal
from brownout_agent.injector.main import EXIT_NOT_CLEAN
from brownout_agent.kernel.processes import is_alive, key_of
from brownout_protos.v1 import fault_pb2, injector_pb2

from tests.support.injectors import ACCEPTED, BIN, REFUSED, Client, connect, holders, injector, new_id, story

pytestmark = pytest.mark.root
WITHIN_S = 2.0
"""What is promised of every switch while somebody lives to obey it."""


def with_policy(folder: Path, more: str = "") -> tuple[str, str]:
    """A policy that allows much and halts by a file of this test; as options of the program."""
    path = folder / "policy.yaml"
    stop_file = folder / "etc" / "STOP"
    limits = "" if "limits" in more else "limits: {concurrent: 8}\n"
    path.write_text(
        f'version: 1\nenvironment: staging\nfaults: {{"*": {{allow: true}}}}\nstop_file: {stop_file}\n{limits}{more}'
    )
    return "--policy", str(path)


@contextlib.asynccontextmanager
async def served(folder: Path, more: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    async with injector(folder, *with_policy(folder, more), embedded=False) as process:
        yield process


async def command(folder: Path, *argv: str) -> tuple[int, str]:
    """`brownout-injector halt|resume` with this test's policy, journal and socket."""
    where = ["--state-dir", str(folder / "state"), "--socket", str(folder / "s.sock")] if argv[0] == "halt" else []
    process = await asyncio.create_subprocess_exec(
        BIN / "brownout-injector", *argv, *with_policy(folder), *where, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def active(client: Client, count: int = 1) -> list[str]:
    ids = [new_id() for _ in range(count)]
    for fault_id in ids:
        client.inject(fault_id)
        await client.state(fault_pb2.ACTIVE)
        assert holders(fault_id)
    return ids


async def inspected(client: Client) -> injector_pb2.Inspection:
    return (await client.until(lambda message: message.HasField("inspection"))).inspection


def test_a_stop_file_ends_every_fault_and_latches_until_it_is_taken_away(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder):
            client = await connect(folder)
            ids = await active(client, 2)
            (folder / "etc").mkdir()  # it was not there when the injector began to look
            begun_s = time.monotonic()
            (folder / "etc" / "STOP").write_text("the shop\nis on fire")
            reports = [await client.state(fault_pb2.CLEAN) for _ in ids]
            assert time.monotonic() - begun_s < WITHIN_S
            assert {report.end_cause for report in reports} == {fault_pb2.HALTED}
            assert not any(holders(fault_id) for fault_id in ids)
            client.inject(new_id())
            refused = await client.reply()
            assert refused.outcome == REFUSED
            assert refused.reason == f"this host is halted: {folder}/etc/STOP: the shop is on fire"
            assert "brownout-injector resume" in refused.remedy
            (folder / "etc" / "STOP").unlink()
            released = await client.until(lambda m: m.HasField("inspection") and "HALTED" not in m.inspection.policy)
            assert all(capability.able for capability in released.inspection.capabilities if "cpu" in capability.kind)
            await active(client)

    story(told, tmp_path)


def test_the_agent_hears_at_once_that_its_host_is_halted_and_can_do_nothing(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder):
            client = await connect(folder)
            await client.until(lambda message: message.HasField("attached"))
            (folder / "etc").mkdir()
            (folder / "etc" / "STOP").mkdir()  # any kind of file halts
            inspection = await inspected(client)
            assert inspection.policy == f"HALTED by {folder}/etc/STOP"
            assert not any(capability.able for capability in inspection.capabilities)
            assert all("halted" in capability.reason for capability in inspection.capabilities)

    story(told, tmp_path)


def test_a_halted_host_is_halted_in_its_next_life_as_well(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder):
            assert (await command(folder, "halt", "--reason", "night"))[0] == 0
        async with served(folder):
            client = await connect(folder)
            client.inject(new_id())
            assert "night" in (await client.reply()).reason
            assert (await command(folder, "resume")) == (0, "released: orders are taken again\n")
            await active(client)
            assert (await command(folder, "resume")) == (0, "this host was not halted\n")

    story(told, tmp_path)


def test_a_hostile_controller_gets_nothing_past_a_stop_file(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder):
            await active(await connect(folder), 2)  # and this agent goes away
            hostile = await connect(folder)
            sent = [new_id() for _ in range(100)]
            for position, fault_id in enumerate(sent):
                hostile.inject(fault_id, epoch=2**63, lease_ms=300_000, duration_ms=900_000)
                hostile.send(renew=fault_pb2.RenewLease(epoch=2**63))
                if position == 5:
                    (folder / "etc").mkdir()
                    (folder / "etc" / "STOP").touch()
                await asyncio.sleep(0.005)  # beside the injector, not before it
            outcomes = [(await hostile.reply()).outcome for _ in sent]
            assert REFUSED in outcomes
            assert (await command(folder, "halt"))[0] == 0
            assert not any(holders(fault_id) for fault_id in sent)
        journal = Journal(folder / "state", wait_s=5)
        assert not journal.unfinished
        journal.close()

    story(told, tmp_path)


def test_halt_on_the_wire_answers_after_the_kernel_is_clean_and_needs_no_epoch(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder):
            client = await connect(folder)
            ids = [new_id() for _ in range(3)]
            for fault_id in ids:
                client.inject(fault_id, epoch=7)
                await client.state(fault_pb2.ACTIVE)
            client.send(halt=fault_pb2.Halt(halt_id="h1", reason="enough"))
            halted = (await client.until(lambda message: message.HasField("halted"))).halted
            assert (halted.halt_id, halted.clean, list(halted.remaining)) == ("h1", True, [])
            assert not any(holders(fault_id) for fault_id in ids)
            client.inject(new_id(), epoch=7)  # a halt on the wire does not latch: that is the controller's to do
            assert (await client.reply()).outcome == ACCEPTED

    story(told, tmp_path)


def test_whoever_halts_by_the_socket_takes_nothing_from_the_agent_and_can_order_nothing(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder):
            agent = await connect(folder)
            (fault_id,) = await active(agent)
            other = Client(*await asyncio.open_unix_connection(folder / "s.sock"))
            other.inject(new_id())
            assert "attached" in (await other.reply()).reason
            assert holders(fault_id)
            other.send(halt=fault_pb2.Halt(halt_id="x"))
            assert (await other.until(lambda message: message.HasField("halted"))).halted.clean
            other.writer.close()
            assert (await agent.state(fault_pb2.CLEAN)).end_cause == fault_pb2.HALTED
            await active(agent)

    story(told, tmp_path)


@pytest.mark.parametrize("victims", ["nobody", "injector", "injector and watchdog", "injector, watchdog and holders"])
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_the_halt_command_ends_everything_whoever_is_alive(
    tmp_path: Path, victims: str, number: signal.Signals
) -> None:
    async def told(folder: Path) -> None:
        async with served(folder) as process:
            client = await connect(folder)
            ids = await active(client, 2)
            hurt = [process.pid] if "injector" in victims else []
            hurt += watchdogs(folder) if "watchdog" in victims else []
            hurt += [pid for fault_id in ids for pid in holders(fault_id)] if "holders" in victims else []
            keys = [key for pid in hurt if (key := key_of(pid)) is not None]
            for key in reversed(keys):
                os.kill(key.pid, number)
            code, said = await command(folder, "halt", "--reason", "drill")
            assert code == 0, said
            assert not any(holders(fault_id) for fault_id in ids)
            if not (hurt and number is signal.SIGKILL):  # else the dead are cleaned up after before anybody asks
                assert all(f"ended      cpu.load             {fault_id}" in said for fault_id in ids), said
            assert f"halted     by {folder}/etc/STOP: drill" in said
            for key in keys:
                if is_alive(key):
                    os.kill(key.pid, signal.SIGKILL)

    story(told, tmp_path)


def test_the_halt_command_names_what_is_not_ended_and_is_right_the_next_time(
    tmp_path: Path, frozen_group: Path
) -> None:
    """A process in a frozen group of cgroup v1 outlives SIGKILL until it is thawed."""

    async def told(folder: Path) -> None:
        async with served(folder):
            (fault_id,) = await active(await connect(folder))
            for pid in holders(fault_id):
                (frozen_group / "cgroup.procs").write_text(str(pid))
            (frozen_group / "freezer.state").write_text("FROZEN")
            code, said = await command(folder, "halt")
            (frozen_group / "freezer.state").write_text("THAWED")
            assert code == EXIT_NOT_CLEAN, said
            assert f"NOT ENDED  {fault_id}: " in said
            assert "outlived SIGKILL" in said
            code, said = await command(folder, "halt")
            assert code == 0, said
            assert not holders(fault_id)

    story(told, tmp_path)


def test_a_halt_that_cannot_latch_ends_everything_and_says_what_it_could_not(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with served(folder):
            (fault_id,) = await active(await connect(folder))
            (folder / "etc").write_text("no folder can be made here")
            code, said = await command(folder, "halt")
            assert code == EXIT_NOT_CLEAN
            assert "TROUBLE    not latched, so new orders may come" in said
            assert fault_id in said
            assert not holders(fault_id)

    story(told, tmp_path)


def test_on_a_host_that_never_had_a_fault_the_halt_command_latches_and_is_done(tmp_path: Path) -> None:
    code, said = asyncio.run(command(tmp_path, "halt"))
    assert code == 0, said
    assert (tmp_path / "etc" / "STOP").is_file()
    assert not (tmp_path / "state").exists()


@pytest.fixture
def frozen_group() -> Iterator[Path]:
    """A group of cgroup v1's freezer."""
    root = Path("/sys/fs/cgroup/freezer")
    if not root.is_dir():
        pytest.skip("no freezer of cgroup v1 here")
    group = root / f"brownout-test-{os.getpid()}"
    group.mkdir()
    yield group
    (group / "freezer.state").write_text("THAWED")
    for pid in (group / "cgroup.procs").read_text().split():
        (root / "cgroup.procs").write_text(pid)
    group.rmdir()


def watchdogs(folder: Path) -> list[int]:
    state = f"{folder}/state".encode()
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and {b"watch", state} <= _words(entry / "cmdline")
    ]


def _words(path: Path) -> set[bytes]:
    try:
        return set(path.read_bytes().split(b"\0"))
    except OSError:
        return set()
