"""process.kill against the kernel: real processes end, and come back as they were."""

import asyncio
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Record, Refusal
from brownout_agent.faults.process_match import read_process, read_processes
from brownout_agent.faults.process_start import Program, StartFailed, instances
from brownout_agent.kernel.processes import is_alive, key_of, send_signal, wait_dead

from tests.host.network_pair import inside, network_namespace, run
from tests.support.faultbench import Held, held

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="other users' processes need root")]

PYTHON = "/usr/bin/python3"  # any user may run it, unlike that of a virtual environment
# Writes what it is into `was-PID`, forks a worker with the same arguments, and waits.
SERVER = """
import json, os, signal, sys
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
facts = {"cwd": os.getcwd(), "environ": dict(os.environ), "uid": os.getuid(), "gid": os.getgid(),
         "groups": os.getgroups(), "argv": sys.argv[1:], "sid": os.getsid(0), "parent": os.getppid()}
if "worker" in sys.argv:
    os.fork()
name = f"was-{os.getpid()}.json"
with open(name + ".new", "w") as file:
    json.dump(facts, file)
os.rename(name + ".new", name)
signal.pause()
"""


@dataclass
class Served:
    """A server of the test, and whatever is started in its place."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    program: Program

    def running(self) -> list[int]:
        return [process.key.pid for process in instances(self.program, read_processes())]

    def start_again(self) -> "subprocess.Popen[bytes]":
        """What a supervisor does."""
        process = subprocess.Popen([*self.program.argv], executable=self.program.exe, cwd=self.folder)
        until(lambda: self.running() == [process.pid])
        return process

    def wrote(self, pid: int) -> dict[str, Any]:
        path = self.folder / f"was-{pid}.json"
        until(path.exists)
        plain: dict[str, Any] = json.loads(path.read_text())
        return plain


def until(is_so: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def gone(it: Held) -> float | None:
    it.meter.sample()
    return it.meter.effect().achieved


@contextmanager
def serving(folder: Path, *words: str, user: int = 0) -> Iterator[Served]:
    """A server in `folder`; at the end every instance of it is killed, whoever started it."""
    os.chown(folder, user, user)
    argv = [PYTHON, "-I", "-c", SERVER, *words]
    groups = [user, 4711] if user else [0]
    process = subprocess.Popen(
        argv, cwd=folder, env={"SECRET": "x=y", "EMPTY": ""}, user=user, group=user, extra_groups=groups
    )
    with process:
        try:
            until((folder / f"was-{process.pid}.json").exists)
            seen = read_process(process.pid)
            assert seen is not None
            served = Served(folder, process, Program.of(seen))
            yield served
        finally:
            process.kill()
            process.wait()
            _end_all(served.program)


def _end_all(program: Program) -> None:
    keys = [process.key for process in read_processes() if Program.of(process) == program]
    for key in keys:
        os.kill(key.pid, signal.SIGKILL)
    assert wait_dead(keys, 5) == []


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another user may enter, as they may not enter pytest's."""
    with tempfile.TemporaryDirectory(prefix="brownout-served-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def test_the_host_can_kill() -> None:
    assert catalogue()["process.kill"].detect(Host()).able


def test_it_is_gone_and_stays_gone_without_restart(folder: Path) -> None:
    async def scene() -> None:
        with serving(folder, "gone") as served:
            async with held("process.kill", pid=served.process.pid) as it:
                assert served.process.wait(timeout=2) == -signal.SIGKILL
                it.meter.sample()
                effect = it.meter.effect()
                assert (effect.asked, effect.achieved, effect.proved) == (1, 1, True)
            assert served.running() == []

    asyncio.run(scene())


def test_restart_brings_it_back_as_it_was_and_as_nobodys_child(folder: Path) -> None:
    async def scene() -> None:
        with serving(folder, "back", "two words", "", user=65534) as served:
            before = served.wrote(served.process.pid)
            async with held("process.kill", command="two words", user="65534", restart=True):
                served.process.wait(timeout=2)
                assert served.running() == []
            (again,) = served.running()
            after = served.wrote(again)
            assert {**after, "sid": 0, "parent": 0} == {**before, "sid": 0, "parent": 0}
            assert {"SECRET": "x=y", "EMPTY": ""}.items() <= after["environ"].items()
            assert after["argv"] == ["back", "two words", ""]
            assert after["groups"] == [4711, 65534]
            assert after["sid"] == again
            stat = read_process(again)
            assert stat is not None
            assert stat.parent_pid not in (os.getpid(), served.process.pid)
            assert {str(Path(f"/proc/{again}/fd/{number}").readlink()) for number in range(3)} == {os.devnull}

    asyncio.run(scene())


def test_workers_are_left_to_the_parent_that_comes_back(folder: Path) -> None:
    async def scene() -> None:
        with serving(folder, "worker", f"of-{os.getpid()}") as served:
            async with held("process.kill", command=f"of-{os.getpid()}", restart=True) as it:
                served.process.wait(timeout=2)
                until(lambda: gone(it) == 2)
            assert len(served.running()) == 1

    asyncio.run(scene())


def test_undo_twice_or_beside_a_supervisor_starts_no_second_one(folder: Path) -> None:
    fault = catalogue()["process.kill"]
    with serving(folder, "once") as served:
        parameters = fault.Parameters.model_validate({"pid": served.process.pid, "restart": True})
        record = Record("id", parameters, fault.prepare(parameters, Host()), 1.0)
        fault.undo(record)  # recorded and never applied: it still runs
        assert served.running() == [served.process.pid]
        served.process.kill()
        served.process.wait()
        assert fault.residue(record) == [f"1 of 1 {served.program.exe} did not come back; next: start it by hand"]
        fault.undo(record)
        fault.undo(record)
        assert fault.residue(record) == []
        assert len(served.running()) == 1


def test_a_worker_alone_is_left_to_its_parent(folder: Path) -> None:
    async def scene() -> None:
        with serving(folder, "worker", f"alone-{os.getpid()}") as served:
            worker = next(one for one in read_processes() if one.parent_pid == served.process.pid)
            async with held("process.kill", pid=worker.key.pid, restart=True) as it:
                until(lambda: gone(it) == 1)
                assert "as many again" not in it.meter.effect().explanation
            assert served.running() == [served.process.pid]

    asyncio.run(scene())


def test_an_equal_process_that_was_there_before_does_not_pass_for_the_killed_one(folder: Path) -> None:
    async def scene() -> None:
        with serving(folder, "twin") as first, serving(folder, "twin") as second:
            async with held("process.kill", pid=first.process.pid, restart=True):
                first.process.wait(timeout=2)
                assert first.running() == [second.process.pid]
            assert len(first.running()) == 2

    asyncio.run(scene())


def test_a_comeback_by_a_supervisor_is_seen_with_its_time_and_left_alone(folder: Path) -> None:
    async def scene() -> None:
        with serving(folder, "supervised") as served:
            async with held("process.kill", pid=served.process.pid, restart=True) as it:
                served.process.wait(timeout=2)
                it.meter.sample()
                assert "started as many again" not in it.meter.effect().explanation
                supervised = served.start_again()
                it.meter.sample()
                assert "somebody had started as many again within 0." in it.meter.effect().explanation
                assert it.meter.effect().proved
            assert served.running() == [supervised.pid]
            supervised.kill()
            supervised.wait()

    asyncio.run(scene())


def test_a_process_that_does_not_care_for_the_signal_is_not_proved(folder: Path) -> None:
    async def scene() -> None:
        with serving(folder, "deaf") as served:
            async with held("process.kill", pid=served.process.pid, signal="sigterm", restart=True) as it:
                it.meter.sample()
                effect = it.meter.effect()
                assert (effect.achieved, effect.proved) == (0, False)
                assert f"still running: python3 (pid {served.process.pid})" in effect.explanation
            assert served.running() == [served.process.pid]

    asyncio.run(scene())


@contextmanager
def nginx_serving(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """An nginx alone in a network of its own: `process: nginx` means no other, and what runs there is the test's."""
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"pid {folder}/pid; error_log {folder}/error.log; worker_processes 2; events {{}}\n"
        f"http {{ access_log off; server {{ listen 127.0.0.1:{port}; return 200 mine; }} }}\n"
    )
    argv = ["nginx", "-p", str(folder), "-c", str(configuration), "-g", "daemon off; master_process on;"]
    with network_namespace() as name, inside(name), subprocess.Popen(argv) as nginx:
        try:
            yield nginx
        finally:
            pids = [int(pid) for pid in run("ip", "netns", "pids", name).split()]
            left = [key for pid in pids if pid != os.getpid() and (key := key_of(pid)) is not None]
            for key in left:
                send_signal(key, signal.SIGKILL)
            assert wait_dead(left, 5) == []


def fetch(port: int) -> str:
    argv = ["curl", "--silent", "--max-time", "2", f"http://127.0.0.1:{port}/"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def test_nginx_comes_back_with_its_configuration_though_it_has_overwritten_its_arguments(tmp_path: Path) -> None:
    async def scene() -> None:
        with nginx_serving(tmp_path, 8080) as nginx:
            until(lambda: fetch(8080) == "mine")
            async with held("process.kill", process="nginx", restart=True) as it:
                nginx.wait(timeout=2)
                until(lambda: fetch(8080) == "")
                until(lambda: gone(it) == 3)  # the master and two workers
            until(lambda: fetch(8080) == "mine")
            (master,) = instances(program_of(it.record), read_processes())
            assert master.argv[0].endswith("-g daemon off; master_process on;")

    asyncio.run(scene())


def program_of(record: Record[Any]) -> Program:
    comeback = record.facts["comebacks"][0]
    return Program(comeback["exe"], tuple(comeback["argv"]))


def test_a_failed_restart_says_why_and_remains_as_residue(folder: Path) -> None:
    fault = catalogue()["process.kill"]
    with serving(folder, "lost") as served:
        parameters = fault.Parameters.model_validate({"pid": served.process.pid, "restart": True})
        record = Record("id", parameters, fault.prepare(parameters, Host()), 1.0)
        record.facts["comebacks"][0]["images"][0]["cwd"] = str(folder / "gone")
        served.process.kill()
        served.process.wait()
        with pytest.raises(StartFailed, match="No such file or directory"):
            fault.undo(record)
        assert len(fault.residue(record)) == 1


def test_a_restart_that_could_not_be_true_is_refused(tmp_path: Path) -> None:
    fault = catalogue()["process.kill"]
    program = tmp_path / "short-lived"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "60"]) as child:
        try:
            # Its name is there before its arguments are (execve(2)).
            until(lambda: Path(f"/proc/{child.pid}/cmdline").read_bytes().startswith(bytes(program)))
            parameters = fault.Parameters.model_validate({"pid": child.pid, "restart": True})
            assert fault.prepare(parameters, Host())["comebacks"][0]["images"]
            program.unlink()
            with pytest.raises(Refusal, match="is not a file here"):
                fault.prepare(parameters, Host())
        finally:
            child.kill()


def test_a_pid_that_somebody_else_has_now_is_not_hit(folder: Path) -> None:
    """The start time differs: to the fault it is another process, and it lives on."""
    fault = catalogue()["process.kill"]
    with serving(folder, "stranger") as served:
        parameters = fault.Parameters.model_validate({"pid": served.process.pid})
        facts = fault.prepare(parameters, Host())
        facts["processes"][0][1] -= 1

        class NoHold:
            fault_id = "id"
            duration_s = 1.0

        with pytest.raises(Refusal, match="ended before it could be signalled"):
            fault.apply(parameters, facts, NoHold())  # type: ignore[arg-type]
        key = key_of(served.process.pid)
        assert key is not None
        assert is_alive(key)
