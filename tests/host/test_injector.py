"""The injector through its only door: orders, stops, leases, refusals and bad frames, against the real kernel."""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from brownout_agent.frames import FRAME_BYTES_MAX, to_value
from brownout_agent.injector.holder import KERNEL_MARGIN_S
from brownout_agent.injector.journal import Journal, decode
from brownout_agent.injector.main import EXIT_NOT_CLEAN
from brownout_agent.kernel.processes import all_pids, read_stat
from brownout_protos.v1 import fault_pb2, injector_pb2

from tests.support.injectors import (
    ACCEPTED,
    BIN,
    REFUSED,
    Client,
    answers,
    clients,
    connect,
    holders,
    injector,
    new_id,
    running,
    story,
)


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


def test_an_order_that_was_stopped_before_it_came_is_told_as_over_at_once_and_after_every_reconnect(
    tmp_path: Path,
) -> None:
    async def told(folder: Path) -> None:
        fault_id = new_id()
        async with injector(folder):
            client = await connect(folder)
            client.send(stop=fault_pb2.Stop(fault_id=fault_id))
            assert (await client.state(fault_pb2.CLEAN)).fault_id == fault_id
        async with injector(folder):  # another life of it
            client = await connect(folder)
            client.send(inspect=injector_pb2.Inspect())
            (buried,) = (await client.until(lambda message: message.HasField("inspection"))).inspection.faults
            assert (buried.fault_id, buried.state, buried.end_cause) == (fault_id, fault_pb2.CLEAN, fault_pb2.STOPPED)
            assert "it never began" in buried.message

    story(told, tmp_path)


def test_whoever_asks_later_hears_when_a_fault_came_into_effect_and_not_when_he_asked(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder):
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id)
            active = await client.state(fault_pb2.ACTIVE)
            measured = await client.state(fault_pb2.ACTIVE)  # a second later
            client.writer.close()
            client = await connect(folder)
            client.send(inspect=injector_pb2.Inspect())
            (asked,) = (await client.until(lambda message: message.HasField("inspection"))).inspection.faults
            assert {measured.at_boottime_ns, asked.at_boottime_ns} == {active.at_boottime_ns}
            client.send(stop=fault_pb2.Stop(fault_id=fault_id))
            await client.state(fault_pb2.CLEAN)

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
            client.inject(fault_id, lease_ms=2_500)
            await client.state(fault_pb2.ACTIVE)
            for _ in range(6):
                await asyncio.sleep(0.5)  # renewals have a rhythm; together they outlast the lease
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


def test_a_second_injector_takes_neither_the_socket_nor_the_journal_of_a_living_one(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder):
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id)
            await client.state(fault_pb2.ACTIVE)
            argv = (BIN / "brownout-injector", "serve", "--embedded", "--socket", folder / "s.sock", "--state-dir")
            other = await asyncio.create_subprocess_exec(*argv, folder / "other", stderr=asyncio.subprocess.PIPE)
            try:
                async with asyncio.timeout(15):
                    _, words = await other.communicate()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    other.kill()
            assert other.returncode == 1
            assert b"another injector listens there" in words
            same = await asyncio.create_subprocess_exec(*argv, folder / "state")
            async with asyncio.timeout(20):
                while not has_open(same.pid, folder / "state/lock"):
                    await asyncio.sleep(0.01)
            again = await connect(folder)
            again.send(inspect=injector_pb2.Inspect())
            inspection = (await again.until(lambda message: message.HasField("inspection"))).inspection
            assert [fault.fault_id for fault in inspection.faults] == [fault_id]
            same.kill()
            await same.wait()
            assert holders(fault_id)
            again.send(stop=fault_pb2.Stop(fault_id=fault_id))
            await again.state(fault_pb2.CLEAN)

    story(told, tmp_path)


def test_what_is_no_socket_of_ours_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "s.sock").write_text("precious")
    argv = [BIN / "brownout-injector", "serve", "--embedded", "--socket", tmp_path / "s.sock"]
    done = subprocess.run([*argv, "--state-dir", tmp_path / "state"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not a socket" in done.stderr
    assert (tmp_path / "s.sock").read_text() == "precious"


def test_a_frozen_injector_keeps_no_fault_past_its_time_and_calls_it_so_when_it_thaws(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder) as process:
            client, fault_id = await connect(folder), new_id()
            client.inject(fault_id, duration_ms=1_500)
            await client.state(fault_pb2.ACTIVE)
            process.send_signal(signal.SIGSTOP)
            try:
                async with asyncio.timeout(1.5 + KERNEL_MARGIN_S + 1):
                    while holds(fault_id):
                        await asyncio.sleep(0.01)
            finally:
                process.send_signal(signal.SIGCONT)
            assert (await client.state(fault_pb2.CLEAN)).end_cause == fault_pb2.DURATION

    story(told, tmp_path)


def test_a_client_that_reads_nothing_is_dropped_and_harms_nobody(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder) as process:
            deaf, fault_id = await connect(folder), new_id()
            deaf.inject(fault_id)
            before = resident_bytes(process.pid)
            for _ in range(20_000):
                deaf.send(stop=fault_pb2.Stop(fault_id="never-heard-of"))
            async with asyncio.timeout(30):
                while not holders(fault_id):
                    await asyncio.sleep(0.01)
            again = await connect(folder)
            again.send(stop=fault_pb2.Stop(fault_id=fault_id))
            await again.state(fault_pb2.CLEAN)
            assert resident_bytes(process.pid) - before < 30 * 2**20

    story(told, tmp_path)


def test_a_client_that_never_introduces_itself_is_under_the_policy_all_the_same(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        'version: 1\nenvironment: staging\nfaults: {"*": {allow: true}}\nprotect_processes: [python, python3]\n'
    )
    policy.chmod(0o600)

    async def told(folder: Path) -> None:
        tag = f"victim-{new_id()}"
        victim = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)", tag)
        comm = Path(f"/proc/{victim.pid}/comm").read_text().strip()
        assert comm in {"python", "python3"}
        try:
            async with injector(folder, "--policy", str(policy), embedded=False):
                client = Client(*await asyncio.open_unix_connection(folder / "s.sock"))
                clients.append(client)
                client.inject(new_id(), kind="process.pause", parameters={"command": to_value(tag)})
                reply = await client.reply()
                assert reply.outcome == REFUSED, reply
        finally:
            victim.kill()
            await victim.wait()

    story(told, tmp_path)


def test_a_hundred_sigterms_are_as_good_as_one(tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder) as process:
            client = await connect(folder)
            ids = [new_id() for _ in range(3)]
            for fault_id in ids:
                client.inject(fault_id)
            for _ in ids:
                await client.state(fault_pb2.ACTIVE)
            ended = asyncio.create_task(process.wait())
            injector_fd = os.pidfd_open(process.pid)
            while not ended.done():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(injector_fd, signal.SIGTERM)  # not by subprocess, which would collect it
                await asyncio.sleep(0.005)
            os.close(injector_fd)
            assert ended.result() == 0
            assert [pid for fault_id in ids for pid in holders(fault_id)] == []
        journal = Journal(folder / "state", wait_s=10)
        assert journal.unfinished == []
        journal.close()

    story(told, tmp_path)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: starts a program again as it ran")
def test_what_the_injector_could_not_undo_before_its_end_its_watchdog_undoes(tmp_path: Path) -> None:
    program = tmp_path / "sleeper"
    shutil.copy("/bin/sleep", program)

    async def told(folder: Path) -> None:
        victim = await asyncio.create_subprocess_exec(program, "3600", start_new_session=True)
        try:
            async with injector(folder) as process:
                client, fault_id = await connect(folder), new_id()
                parameters = {"command": to_value(str(program)), "restart": to_value(True)}
                client.inject(fault_id, kind="process.kill", parameters=parameters)
                await client.state(fault_pb2.ACTIVE)
                program.rename(folder / "away")
                process.terminate()
                assert await process.wait() == EXIT_NOT_CLEAN
            assert [entry.fault_id for entry in decode((folder / "state/journal").read_bytes()).entries.values()]
            (folder / "away").rename(program)
            async with asyncio.timeout(30):
                while not running(program):
                    await asyncio.sleep(0.05)
            journal = Journal(folder / "state", wait_s=10)
            assert journal.unfinished == []
            journal.close()
        finally:
            await victim.wait()
            for pid in running(program):
                os.kill(pid, signal.SIGKILL)

    story(told, tmp_path)


def has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(entry.readlink() == path for entry in Path(f"/proc/{pid}/fd").iterdir())
    return False


def holds(fault_id: str) -> bool:
    """Whether a living process holds this fault; a zombie that a frozen parent has not collected does not."""
    return any((stat := read_stat(pid)) is not None and stat.state not in "ZX" for pid in holders(fault_id))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


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
