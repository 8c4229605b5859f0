"""exec.run with real programs: what they bring about is there, proved, and undone, whoever dies in between."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Commands, Host, Record, Refusal
from brownout_agent.frames import to_value
from brownout_agent.injector.journal import decode
from brownout_agent.injector.undoing import undo_entry
from brownout_agent.kernel.processes import ProcessKey, key_of, send_signal, wait_dead
from brownout_protos.v1 import fault_pb2

from tests.support.control_groups import fault_parents
from tests.support.executed import NAME, commands, section
from tests.support.faultbench import held
from tests.support.injectors import ACCEPTED, BIN, Client, connect, injector, new_id, story, watchdogs_done
from tests.support.polling import wait_until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="makes control groups")]
POLICY = "version: 1\nenvironment: staging\nfaults: {exec.run: {allow: true}}\nlimits: {concurrent: 4}\n"
PARAMETERS = {"name": to_value(NAME)}
PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")
_LEAVES = """import os, sys, time
open(sys.argv[1], "w").close()
pid = os.fork()
if pid:
    open(sys.argv[2], "w").write(f"{pid}\\n")
    time.sleep(float(sys.argv[3]))
else:
    os.setsid()
    time.sleep(600)
"""
"""Makes one file, leaves a process of a session of its own whose pid is in the other, and takes so many seconds."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def leftover(pid_file: Path) -> ProcessKey:
    """The process that `apply` has left running."""
    wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), "it has said its pid")
    key = key_of(int(pid_file.read_text()))
    assert key is not None
    return key


def groups_of(fault_id: str) -> list[Path]:
    return [parent / f"brownout-fault-{fault_id}" for parent in fault_parents()]


@asynccontextmanager
async def serving(folder: Path, *named: Commands) -> AsyncIterator[tuple[asyncio.subprocess.Process, Client]]:
    """An injector whose policy names these programs."""
    (folder / "policy.yaml").write_text(POLICY + section(*named))
    async with injector(folder, "--policy", str(folder / "policy.yaml"), embedded=False) as process:
        yield process, await connect(folder)
    await watchdogs_done(folder)


async def begin(client: Client, **more: object) -> str:
    """Order it; its id once it is active."""
    fault_id = new_id()
    client.inject(fault_id, kind="exec.run", parameters=PARAMETERS, **more)
    assert (await client.reply()).outcome == ACCEPTED
    await client.state(fault_pb2.ACTIVE)
    return fault_id


# ---- what it does ------------------------------------------------------------------------------------------------


def test_what_it_brings_about_is_there_is_proved_and_goes(file: Path) -> None:
    async def scene() -> None:
        async with held("exec.run", Host(commands=(commands(file),)), name=NAME) as it:
            assert file.exists()
            it.meter.sample()
            effect = it.meter.effect()
            assert effect.proved, effect
            file.unlink()  # somebody else's doing
            it.meter.sample()
            effect = it.meter.effect()
            assert not effect.proved
            assert "in 1 of 2 readings" in effect.explanation
            assert "at reading 2 `/usr/bin/test -e" in effect.explanation
            file.touch()
        assert not file.exists()

    asyncio.run(scene())


def test_undo_is_done_from_the_record_alone_twice_and_after_the_holder_was_killed(file: Path) -> None:
    async def scene() -> None:
        async with held("exec.run", Host(commands=(commands(file),)), name=NAME) as it:
            send_signal(it.holder.key, signal.SIGKILL)
            assert wait_dead([it.holder.key], 5) == []
            assert file.exists(), "no death of a process undoes it"
            (said,) = [left for left in it.fault.residue(it.record) if "is still there: `/usr/bin/test" in left]
            assert "what mark has brought about" in said
            for _ in range(2):
                it.fault.undo(it.record)
                assert not file.exists()
                assert it.fault.residue(it.record) == []

    asyncio.run(scene())


def test_what_apply_leaves_running_runs_until_the_end_and_is_killed_then(file: Path, tmp_path: Path) -> None:
    async def scene() -> None:
        pid_file = tmp_path / "pid"
        named = replace(commands(file), apply=(*PYTHON, _LEAVES, str(file), str(pid_file), "0"))
        async with held("exec.run", Host(commands=(named,)), name=NAME) as it:
            left = leftover(pid_file)
            send_signal(it.holder.key, signal.SIGKILL)
            assert wait_dead([it.holder.key], 5) == []
            assert wait_dead([left], 0.1) == [left]
            it.fault.undo(it.record)
            assert wait_dead([left], 5) == []

    asyncio.run(scene())


def test_half_an_apply_is_ended_before_it_is_undone(file: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    async def told(folder: Path) -> None:
        named = replace(commands(file), apply=(*PYTHON, _LEAVES, str(file), str(pid_file), "600"))
        async with serving(folder, named) as (_, client):
            fault_id = new_id()
            client.inject(fault_id, kind="exec.run", parameters=PARAMETERS)
            assert (await client.reply()).outcome == ACCEPTED
            half = await asyncio.to_thread(leftover, pid_file)
            client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="enough"))
            await client.state(fault_pb2.CLEAN)
            assert wait_dead([half], 5) == []
            assert not file.exists()
            assert not any(group.exists() for group in groups_of(fault_id))

    story(told, tmp_path)


def test_nothing_that_the_policy_does_not_name_is_executed(file: Path, tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with serving(folder, commands(file)) as (_, client):
            for parameters in (
                {"name": to_value("other")},
                {"name": to_value(NAME), "apply": to_value("/usr/bin/touch")},
                {"name": to_value(f"{NAME}; touch {file}")},
            ):
                client.inject(new_id(), kind="exec.run", parameters=parameters)
                reply = await client.reply()
                assert reply.outcome == fault_pb2.OrderReply.REFUSED, reply
            assert not file.exists()

    story(told, tmp_path)


# ---- when it fails -----------------------------------------------------------------------------------------------


def test_an_apply_that_fails_tells_all_and_is_undone(file: Path, tmp_path: Path) -> None:
    program = "import sys; open(sys.argv[1], 'w').close(); print('half done'); sys.exit('no more')"

    async def told(folder: Path) -> None:
        async with serving(folder, replace(commands(file), apply=(*PYTHON, program, str(file)))) as (_, client):
            client.inject(new_id(), kind="exec.run", parameters=PARAMETERS)
            ended = await client.until(lambda message: message.report.end_cause != 0)
            assert ended.report.end_cause == fault_pb2.APPLY_FAILED
            for words in ("apply of mark failed: `/usr/bin/python3", "exit code 1; stdout: half done; stderr: no more"):
                assert words in ended.report.message
            await client.state(fault_pb2.CLEAN)
            assert not file.exists()

    story(told, tmp_path)


def test_an_undo_that_fails_is_residue_with_its_words_and_is_tried_again(file: Path, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    program = "import os, sys; os.path.exists(sys.argv[2]) or sys.exit('not now'); os.unlink(sys.argv[1])"

    async def told(folder: Path) -> None:
        named = replace(commands(file), undo=(*PYTHON, program, str(file), str(mended)))
        async with serving(folder, named) as (_, client):
            fault_id = await begin(client)
            client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="enough"))
            report = await client.state(fault_pb2.RESIDUE)
            assert "undo of mark failed: `/usr/bin/python3" in report.residue[0]
            assert "exit code 1; stdout: nothing; stderr: not now" in report.residue[0]
            assert "what mark has brought about is still there" in report.residue[1]
            client.inject(new_id(), kind="exec.run", parameters=PARAMETERS)
            assert "mark is on already, or is not undone yet" in (await client.reply()).reason
            mended.touch()
            await client.state(fault_pb2.CLEAN)
            assert not file.exists()

    story(told, tmp_path)


def test_what_its_policy_names_no_more_is_undone_as_it_was_recorded(file: Path, tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with serving(folder, commands(file)) as (process, client):
            await begin(client)
            (folder / "policy.yaml").write_text(POLICY)
            process.kill()
            await process.wait()
            await watchdogs_done(folder)
            assert not file.exists()

    story(told, tmp_path)


def test_it_ends_when_nobody_renews_its_lease(file: Path, tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with serving(folder, commands(file)) as (_, client):
            await begin(client, lease_ms=1_000)
            report = await client.state(fault_pb2.CLEAN)
            assert report.end_cause == fault_pb2.LEASE_LOST
            assert not file.exists()

    story(told, tmp_path)


def test_after_a_reboot_it_is_undone_and_no_process_is_touched_that_has_a_holders_number(
    file: Path, tmp_path: Path
) -> None:
    async def told(folder: Path) -> None:
        async with serving(folder, commands(file)) as (_, client):
            fault_id = await begin(client)
            entry = decode((folder / "state/journal").read_bytes()).entries[fault_id]
            client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="enough"))
            await client.state(fault_pb2.CLEAN)
        file.touch()
        with subprocess.Popen(["sleep", "60"]) as stranger:  # noqa: ASYNC220 - nobody else is to be served
            key = key_of(stranger.pid)
            assert key is not None
            gone = str(tmp_path / "no such group")
            facts = {**entry.facts, "group_parents": [gone]}
            assert undo_entry(replace(entry, boot_id="of another boot", holders=(key,), facts=facts)) == []
            assert stranger.poll() is None
            stranger.kill()
        assert not file.exists()

    story(told, tmp_path)


def test_a_reap_that_cannot_undo_says_what_failed_and_ends_with_13(file: Path, tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with serving(folder, replace(commands(file), undo=("/usr/bin/false", "--with", "a b"))) as (_, client):
            fault_id = await begin(client)
            client.send(stop=fault_pb2.Stop(fault_id=fault_id, reason="enough"))
            await client.state(fault_pb2.RESIDUE)
        reap = [str(BIN / "brownout-injector"), "reap", "--state-dir", str(folder / "state")]
        done = await asyncio.to_thread(subprocess.run, reap, capture_output=True, text=True, check=False)
        assert done.returncode == 13
        assert f"RESIDUE  {fault_id}: undo of exec.run failed: undo of mark failed: `/usr/bin/false" in done.stdout
        assert "--with 'a b'` ended with exit code 1" in done.stdout

    story(told, tmp_path)


def test_doctor_says_whether_the_policy_names_anything(file: Path, tmp_path: Path) -> None:
    def row(policy: str) -> str:
        (tmp_path / "policy.yaml").write_text(policy)
        argv = [str(BIN / "brownout-injector"), "doctor", "--policy", str(tmp_path / "policy.yaml")]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return next(line for line in done.stdout.splitlines() if "exec.run" in line)

    assert row(POLICY).split(maxsplit=3) == [
        "✗",
        "cannot",
        "exec.run",
        "this host's policy names no program that may be executed",
    ]
    assert row(POLICY + section(commands(file))).split() == ["✓", "able", "exec.run"]


def test_a_group_that_cannot_be_made_begins_nothing(file: Path) -> None:
    fault = catalogue()["exec.run"]
    facts = fault.prepare(fault.Parameters(name=NAME), Host(commands=(commands(file),)))
    facts["group_parents"] = [str(file / "no such folder")]
    with pytest.raises(Refusal, match=r"mark could not be begun: .*No such file"):
        fault.apply(fault.Parameters(name=NAME), facts, _NoHold())
    record = Record("id", fault.Parameters(name=NAME), facts, 1.0)
    fault.undo(record)
    assert fault.residue(record) == []


class _NoHold:
    """For an `apply` that does not come that far."""

    fault_id = "id"
    duration_s = 1.0
