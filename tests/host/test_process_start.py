"""What process.kill starts again is started once, whatever dies on the way and whoever else is starting it.

strace(1) holds a starter up, or has it killed, at the entry of a system call: at every one that it or its fork makes
from its lock to its exec.
"""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from brownout_agent.faults.contract import Refusal
from brownout_agent.faults.process_match import read_process, read_processes
from brownout_agent.faults.process_start import Image, Program, instances, record_image, start
from brownout_agent.kernel.processes import key_of, read_stat, wait_dead

from tests.support.polling import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: groups and control groups of others"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]

STARTER = [sys.executable, "-I", "-m", "brownout_agent.faults.process_start"]
HELD_UP_S = 1.5
STEPS = {
    "fcntl": "its lock is not taken yet",
    "clone": "it has not forked",
    "setsid": "its fork is about to leave it",
    "setgroups": "its fork is in the control groups",
    "chdir": "its fork is the user",
    "execve": "its fork is about to become the program",
}


@contextmanager
def killed(folder: Path) -> Iterator[tuple[Program, Image]]:
    """A program of the test's own that ran and was killed; at the end every instance of it is."""
    path = folder / "sleeper"
    shutil.copy("/bin/sleep", path)
    process = subprocess.Popen([path, "3600"], cwd="/")
    seen = read_process(process.pid)
    while seen is None or seen.exe != str(path) or not seen.argv:  # its arguments come a moment after its name
        seen = read_process(process.pid)
    program, image = Program.of(seen), record_image(seen)
    process.kill()
    process.wait()
    try:
        yield program, image
    finally:
        while keys := [one.key for one in read_processes() if one.exe == program.exe]:
            for key in keys:
                os.kill(key.pid, signal.SIGKILL)
            assert wait_dead(keys, 5) == []


def starter(program: Program, image: Image, *under: str) -> "subprocess.Popen[bytes]":
    """A starter that has been told to start the program once."""
    process = subprocess.Popen([*under, *STARTER], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"program": asdict(program), "count": 1, "images": [image.as_json()]}).encode())
    process.stdin.close()
    return process


def strace(folder: Path, call: str, what: str) -> list[str]:
    """Do it to each process of a starter at its first such call."""
    when = f"{what}:when=1"
    return ["strace", "-f", "-qq", "-o", str(folder / "trace"), "-e", f"trace={call}", "-e", f"inject={call}:{when}"]


def running(program: Program) -> list[int]:
    return [one.key.pid for one in instances(program, read_processes())]


def starting() -> set[int]:
    """Starters, their forks, and what runs them."""
    return {one.key.pid for one in read_processes() if "brownout_agent.faults.process_start" in one.argv}


def until_forked(program: Program) -> None:
    """Wait until a starter of the program has a fork."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        starters = starting()
        if any((stat := read_stat(pid)) is not None and stat.parent_pid in starters for pid in starters):
            return
        time.sleep(0.005)
    raise AssertionError("no starter has forked")


def test_a_starter_waits_for_the_fork_of_another_that_is_dead(tmp_path: Path) -> None:
    with killed(tmp_path) as (program, image):
        first = starter(program, image, *strace(tmp_path, "chdir", f"delay_enter={int(HELD_UP_S * 1e6)}"))
        until_forked(program)
        for one in read_processes():  # all of the first but its fork, which strace holds up
            if one.parent_pid == first.pid and "brownout_agent.faults.process_start" in one.argv:
                os.kill(one.key.pid, signal.SIGKILL)
        assert running(program) == []
        second = starter(program, image)
        assert second.wait(20) == 0
        wait_until(lambda: starting() <= {first.pid}, "the fork is dead, or has become the program", 20)
        assert len(running(program)) == 1
    first.wait(20)  # strace stays for as long as what the fork has become


@pytest.mark.parametrize("call", STEPS)
def test_killed_at_any_step_of_a_start_the_next_starter_starts_it_once(tmp_path: Path, call: str) -> None:
    with killed(tmp_path) as (program, image):
        only = ["-P", program.exe] if call == "execve" else []
        starter(program, image, *strace(tmp_path, call, "signal=KILL"), *only).wait(20)
        assert running(program) == []
        assert starter(program, image).wait(20) == 0
        assert "killed by SIGKILL" in (tmp_path / "trace").read_text()
        assert len(running(program)) == 1
        start(program, 1, [image.as_json()])
        assert len(running(program)) == 1


def test_many_starters_at_once_start_it_once(tmp_path: Path) -> None:
    with killed(tmp_path) as (program, image):
        starters = [starter(program, image) for _ in range(8)]
        assert [one.wait(30) for one in starters] == [0] * 8
        assert len(running(program)) == 1


def test_a_starter_dies_with_the_one_who_undoes(tmp_path: Path) -> None:
    with killed(tmp_path) as (program, image):
        told = "import os,subprocess,sys; p=subprocess.Popen([*sys.argv[1:], str(os.getpid())], stdin=subprocess.PIPE);"
        told += "print(p.pid, flush=True); os.read(0, 1)"
        argv = [sys.executable, "-c", told, *STARTER]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            key = key_of(int(parent.stdout.readline()))
            assert key is not None
            parent.kill()
        assert wait_dead([key], 10) == []
        assert running(program) == []
        start(program, 1, [image.as_json()])
        assert len(running(program)) == 1


@pytest.mark.parametrize("mode", [0o4755, 0o2755])
def test_what_has_its_rights_from_its_file_is_not_started_again_with_the_environment_of_whoever_ran_it(
    mode: int,
) -> None:
    """Else any user of the host could have code of theirs run as root, by LD_PRELOAD and a set-user-id program."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)  # another user runs what lies there
        path = Path(shutil.copy("/bin/sleep", f"{folder}/shop"))
        path.chmod(mode)
        nobody = pwd.getpwnam("nobody")
        process = subprocess.Popen(
            [path, "3600"], env={"LD_PRELOAD": "/tmp/evil.so"}, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=()
        )
        try:
            while (seen := read_process(process.pid)) is None or seen.exe != str(path) or not seen.argv:
                pass
            with pytest.raises(Refusal, match="set-user-id or set-group-id program"):
                record_image(seen)
            path.chmod(0o755)  # it has the rights that it was started with, whatever becomes of its file
            with pytest.raises(Refusal, match="set-user-id or set-group-id program"):
                record_image(seen)
        finally:
            process.kill()
            process.wait()


def test_what_becomes_another_program_while_it_is_recorded_is_not_recorded(tmp_path: Path) -> None:
    with killed(tmp_path) as (program, image):
        start(program, 1, [image.as_json()])
        (now,) = (one for one in read_processes() if Program.of(one) == program)
        with pytest.raises(Refusal, match="became another program"):
            record_image(replace(now, uid=now.uid + 1))
