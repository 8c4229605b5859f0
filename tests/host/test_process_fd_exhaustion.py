"""process.fd_exhaustion judged by its victims: EMFILE in a program that is told to open, nginx that cannot accept."""

import asyncio
import os
import resource
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Record, Refusal
from brownout_agent.frames import to_value
from brownout_agent.kernel.descriptors import Limit, read_limit, set_limit
from brownout_agent.kernel.processes import send_signal, wait_dead
from brownout_protos.v1 import fault_pb2

from tests.support.faultbench import held
from tests.support.injectors import ACCEPTED, REFUSED, connect, injector, new_id, story
from tests.support.services import app_server, free_port, listens
from tests.support.told_program import Told, pids_group, told_program

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="limits others' processes")]
NOBODY = 65_534


def recorded(host: Host | None = None, **parameters: Any) -> Record[Any]:
    """As the journal has it before anything is applied."""
    fault = catalogue()["process.fd_exhaustion"]
    model = fault.Parameters.model_validate(parameters)
    return Record("id", model, fault.prepare(model, host or Host()), 1.0)


def opens(told: Told, most: int = 20) -> int:
    """How many more descriptors it gets, until EMFILE. They stay open."""
    for count in range(most):
        answer = told.does("open")
        if answer != "ok":
            assert answer == "EMFILE"
            return count
    return most


@pytest.mark.parametrize("user", [0, NOBODY])
@pytest.mark.parametrize("leave", [0, 3])
def test_it_gets_as_many_as_were_left_and_all_again_afterwards(leave: int, user: int) -> None:
    async def scene() -> None:
        with told_program(user=user) as told:
            before = read_limit(told.pid)
            async with held("process.fd_exhaustion", pid=told.pid, leave=leave) as it:
                assert opens(told) == leave
                it.meter.sample()
                effect = it.meter.effect()
                assert effect.proved, effect
                assert (effect.asked, effect.achieved) == (100, 100)
                assert told.does("close" if leave else "open") == ("ok" if leave else "EMFILE")
                assert opens(told) == min(leave, 1), "a number that was closed may be had again"
            assert read_limit(told.pid) == before
            assert opens(told) == 20

    asyncio.run(scene())


def test_free_numbers_below_a_high_one_are_counted() -> None:
    async def scene() -> None:
        with told_program() as told:
            assert told.does("spread") == "ok"
            async with held("process.fd_exhaustion", pid=told.pid, leave=1):
                assert opens(told) == 1

    asyncio.run(scene())


def test_a_web_server_of_another_user_accepts_nobody_and_says_why() -> None:
    port = free_port()

    def fetch() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1) as answer:
            content: bytes = answer.read()
            return content

    async def scene() -> None:
        with app_server("busy", port) as server:
            assert fetch() == b"ok\n"
            async with held("process.fd_exhaustion", pid=server.process.pid) as it:
                assert listens(port), "the kernel goes on accepting for it"
                with pytest.raises(OSError, match="timed out"):
                    fetch()
                it.meter.sample()
                assert it.meter.effect().proved, it.meter.effect()
            assert "(24: Too many open files)" in (server.folder / "nginx.stderr").read_text()
            assert fetch() == b"ok\n"

    asyncio.run(scene())


def test_what_it_started_meanwhile_gets_the_old_limit_too_even_when_its_parent_died() -> None:
    async def scene() -> None:
        with pids_group() as group, told_program(group=group) as told, told_program(group=group) as bystander:
            before = read_limit(told.pid)
            assert before is not None
            async with held("process.fd_exhaustion", pid=told.pid, leave=4) as it:
                child, orphan = int(told.does("start")), int(told.does("orphan"))
                lowered = read_limit(told.pid)
                assert lowered == read_limit(child) == read_limit(orphan) != before
                assert read_limit(bystander.pid) == before
                assert len(it.fault.residue(it.record)) == 3
            assert before == read_limit(told.pid) == read_limit(child) == read_limit(orphan)

    asyncio.run(scene())


def test_the_limit_outlives_a_killed_holder_and_the_journal_gives_it_back_once_or_twice() -> None:
    async def scene() -> None:
        with told_program() as told:
            before = read_limit(told.pid)
            async with held("process.fd_exhaustion", pid=told.pid) as it:
                send_signal(it.holder.key, signal.SIGKILL)
                assert wait_dead([it.holder.key], 5) == []
                (left,) = it.fault.residue(it.record)
                assert left.endswith(f"next: prlimit --pid {told.pid} --nofile={before and before.soft}:")
                for _ in range(2):
                    it.fault.undo(it.record)
                    assert read_limit(told.pid) == before
                    assert it.fault.residue(it.record) == []

    asyncio.run(scene())


def test_half_an_apply_is_undone_and_what_was_never_applied_is_left_alone() -> None:
    token = f"half-{os.getpid()}"
    fault = catalogue()["process.fd_exhaustion"]
    with told_program(token) as first, told_program(token) as second:
        before = [read_limit(first.pid), read_limit(second.pid)]
        record = recorded(command=token)
        fault.undo(record)
        assert [read_limit(first.pid), read_limit(second.pid)] == before
        lowered = record.facts["victims"][0]
        set_limit(lowered["key"][0], Limit(lowered["lowered"], lowered["hard"]))
        fault.undo(record)
        assert [read_limit(first.pid), read_limit(second.pid)] == before


def test_a_limit_that_somebody_else_has_set_meanwhile_stays_and_is_not_proved() -> None:
    async def scene() -> None:
        with told_program() as told:
            async with held("process.fd_exhaustion", pid=told.pid) as it:
                it.meter.sample()
                resource.prlimit(told.pid, resource.RLIMIT_NOFILE, (77, 88))
                it.meter.sample()
                effect = it.meter.effect()
                assert (effect.achieved, effect.proved) == (50, False)
            assert read_limit(told.pid) == Limit(77, 88)

    asyncio.run(scene())


def test_a_hard_limit_that_the_process_has_lowered_itself_is_kept() -> None:
    async def scene() -> None:
        with told_program() as told:
            async with held("process.fd_exhaustion", pid=told.pid) as it:
                (victim,) = it.record.facts["victims"]
                resource.prlimit(told.pid, resource.RLIMIT_NOFILE, (victim["lowered"], 50))
            assert read_limit(told.pid) == Limit(50, 50)

    asyncio.run(scene())


def test_a_process_that_ends_meanwhile_is_told_of() -> None:
    async def scene() -> None:
        with told_program() as told:
            async with held("process.fd_exhaustion", pid=told.pid) as it:
                told.process.kill()
                told.process.wait()
                it.meter.sample()
                effect = it.meter.effect()
                assert not effect.proved
                assert "was gone at reading 1" in effect.explanation

    asyncio.run(scene())


def test_a_second_one_on_the_same_process_is_refused_as_neither_could_undo() -> None:
    with told_program() as told, told_program() as other:
        record = recorded(pid=told.pid)
        unfinished = Host(unfinished=(("process.fd_exhaustion", record.facts),))
        with pytest.raises(Refusal, match=r"has a process.fd_exhaustion already"):
            recorded(unfinished, pid=told.pid)
        assert recorded(unfinished, pid=other.pid).facts["victims"]


def test_the_injector_takes_a_second_one_on_when_the_first_is_undone(tmp_path: Path) -> None:
    async def scene(folder: Path) -> None:
        with told_program() as told:
            before = read_limit(told.pid)
            async with injector(folder):
                client = await connect(folder)
                for _ in range(2):
                    fault_id = new_id()
                    client.inject(fault_id, kind="process.fd_exhaustion", parameters={"pid": to_value(told.pid)})
                    assert (await client.reply()).outcome == ACCEPTED
                    await client.state(fault_pb2.ACTIVE)
                    client.inject(new_id(), kind="process.fd_exhaustion", parameters={"pid": to_value(told.pid)})
                    reply = await client.reply()
                    assert reply.outcome == REFUSED
                    assert "has a process.fd_exhaustion already" in reply.reason
                    client.send(stop=fault_pb2.Stop(fault_id=fault_id))
                    await client.state(fault_pb2.CLEAN)
                    assert read_limit(told.pid) == before

    story(scene, tmp_path)


def test_who_has_no_more_left_anyway_is_refused() -> None:
    with told_program() as told:
        with pytest.raises(Refusal, match=r"can get \d+ more descriptors; that is no more than `leave`"):
            recorded(pid=told.pid, leave=100_000)
        with pytest.raises(Refusal, match="pid 1 is this host's init"):
            recorded(pid=1)
