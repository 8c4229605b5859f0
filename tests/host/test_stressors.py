"""Who stressors are and what holds them: their user, their rights, their control groups, judged from /proc."""

import asyncio
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Record
from brownout_agent.frames import to_value
from brownout_agent.kernel import own_groups
from brownout_agent.kernel.credentials import STRESS_USER, _is_mapped
from brownout_agent.kernel.processes import ProcessKey, is_alive, send_signal
from brownout_protos.v1 import fault_pb2

from tests.support.faultbench import Held, held
from tests.support.injectors import connect, injector, new_id, story
from tests.support.polling import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user and make control groups"),
]
STRESSORS: dict[str, dict[str, Any]] = {
    "cpu.load": {"percent": 5, "cores": "0", "nice": -5},
    "memory.load": {"size": "32MiB"},
    "memory.leak": {"rate": "20MiB/s", "size": "32MiB"},
    "disk.io": {"write": "1MiB/s", "read": "1MiB/s", "file_size": "4MiB"},
}
every_stressor = pytest.mark.parametrize("kind", STRESSORS)


def status(key: ProcessKey) -> dict[str, str]:
    lines = Path(f"/proc/{key.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def stress_uid() -> int:
    names = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
    return names.get(STRESS_USER, names["nobody"])


def groups_of(fault: Held) -> list[Path]:
    name = f"brownout-fault-{fault.record.fault_id}"
    return [Path(parent) / name for parent in fault.record.facts["group_parents"]]


def have_given_up(fault: Held) -> bool:
    """Forks of a holder give up root by themselves, a moment after the holder said that it is ready."""
    return all(status(key)["Uid"].split()[0] != "0" for key in fault.record.holders)


def is_measured(fault: Held) -> bool:
    fault.meter.sample()
    return fault.meter.effect().achieved is not None


@every_stressor
def test_every_process_of_it_is_somebody_without_any_right(kind: str) -> None:
    async def scenario() -> None:
        async with held(kind, **STRESSORS[kind]) as fault:
            wait_until(lambda: have_given_up(fault), "all have given up root")
            for key in fault.record.holders:
                found = status(key)
                assert set(found["Uid"].split()) == {str(stress_uid())}
                assert found["Groups"] == ""
                assert {found[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
                assert found["NoNewPrivs"] == "1"
                assert Path(f"/proc/{key.pid}/oom_score_adj").read_text().strip() == "1000"
            wait_until(lambda: is_measured(fault), "root can still measure it")

    asyncio.run(scenario())


@every_stressor
def test_it_lives_in_limited_groups_of_its_own_that_go_with_it(kind: str) -> None:
    async def scenario() -> list[Path]:
        async with held(kind, **STRESSORS[kind]) as fault:
            groups = groups_of(fault)
            assert groups
            for group in groups:
                members = {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
                assert members == {key.pid for key in fault.record.holders}
            limits = {path.name for group in groups for path in group.iterdir()}
            controllers = {"pids.max": "pids.max", "memory.limit_in_bytes": "memory", "memory.max": "memory"}
            for name in limits & set(controllers):
                (limited,) = (group / name for group in groups if (group / name).exists())
                assert int(limited.read_text()) < 2**30, f"{limited} sets no limit"
        return groups

    assert not any(group.exists() for group in asyncio.run(scenario()))


@every_stressor
def test_it_dies_with_the_injector_although_it_is_another_users(kind: str, tmp_path: Path) -> None:
    async def told(folder: Path) -> None:
        async with injector(folder) as process:
            client, fault_id = await connect(folder), new_id()
            parameters = {name: to_value(value) for name, value in STRESSORS[kind].items()}
            client.inject(fault_id, kind=kind, parameters=parameters)
            await client.state(fault_pb2.ACTIVE)
            groups = [parent / f"brownout-fault-{fault_id}" for parent in own_groups.parents()]
            pids = {int(pid) for group in groups for pid in (group / "cgroup.procs").read_text().split()}
            assert pids
            process.kill()
            await process.wait()
            wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), "they are dead", 2.0)
            wait_until(lambda: not any(group.exists() for group in groups), "the watchdog has removed the groups", 10.0)

    story(told, tmp_path)


def test_a_fork_whose_holder_dies_before_it_has_given_up_root_does_not_live_on() -> None:
    """The holder is another user by then, so that the kernel lets its death pass unheard."""
    code = """
import os, signal, sys, time
from brownout_agent.faults.stressor import as_stressor, become_stressor
from brownout_agent.kernel.limits import die_with_parent
parent = os.getpid()
holder = os.fork()
if holder == 0:
    die_with_parent(parent)
    holder_pid, (read, write) = os.getpid(), os.pipe()
    work = as_stressor(lambda: time.sleep(60))
    worker = os.fork()
    if worker == 0:
        os.close(write)
        die_with_parent(holder_pid)
        os.read(read, 1)  # until the holder is dead: the pipe ends
        work()
        os._exit(0)
    os.close(read)
    become_stressor()
    print(worker, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(holder, 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    worker = int(done.stdout)
    wait_until(lambda: not Path(f"/proc/{worker}/exe").exists(), "the fork has ended", 5.0)


def test_undo_ends_whatever_is_in_the_group_and_may_be_repeated() -> None:
    fault = catalogue()["cpu.load"]
    parameters = fault.Parameters.model_validate(STRESSORS["cpu.load"])
    record = Record(new_id(), parameters, fault.prepare(parameters, Host()), 10.0)
    groups = [Path(parent) / f"brownout-fault-{record.fault_id}" for parent in record.facts["group_parents"]]
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stray:
        for group in groups:
            group.mkdir()
            (group / "cgroup.procs").write_text(str(stray.pid))
        assert fault.residue(record), "groups that are there are residue"
        fault.undo(record)
        assert stray.wait(5) == -signal.SIGKILL
    assert fault.residue(record) == []
    fault.undo(record)
    assert not any(group.exists() for group in groups)


def test_no_group_but_ours_is_ever_removed(tmp_path: Path) -> None:
    foreign = tmp_path / "system.slice"
    foreign.mkdir()
    with pytest.raises(ValueError, match="not a control group of ours"):
        own_groups.remove([foreign])
    assert foreign.exists()


def test_a_stopped_holder_is_ended_all_the_same() -> None:
    async def scenario() -> None:
        async with held("cpu.load", **STRESSORS["cpu.load"]) as fault:
            send_signal(fault.holder.key, signal.SIGSTOP)
            assert await fault.holder.end() == []
            wait_until(lambda: not any(map(is_alive, fault.record.holders)), "all are dead", 2.0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("uid_map", "mapped"), [("         0          0 4294967295\n", True), ("         0       1000          1\n", False)]
)
def test_a_user_namespace_may_have_nobody_else_to_become(uid_map: str, mapped: bool) -> None:
    assert _is_mapped(65534, uid_map) is mapped
