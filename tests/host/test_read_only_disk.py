"""What a dead injector left is undone also when the disk with its journal has become read-only."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host
from brownout_agent.faults.process_match import read_processes
from brownout_agent.injector.journal import Entry, Journal, JournalError, Mark
from brownout_agent.kernel.processes import ProcessKey, wait_dead

from tests.support.disks import MIB, ext4

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a disk")]

INJECTOR = Path(sys.executable).parent / "brownout-injector"
FAULT_ID = "3f0c5e1e-7f0b-4f52-9d5d-0a4f8f5a1d11"


def running(program: Path) -> list[ProcessKey]:
    return [process.key for process in read_processes() if process.argv and process.exe == str(program)]


def kill_with_a_record(program: Path, state: Path) -> None:
    """What an injector does that dies then."""
    victim = subprocess.Popen([program, "3600"], cwd="/")
    while not running(program):
        assert victim.poll() is None
    fault = catalogue()["process.kill"]
    parameters = {"command": str(program), "restart": True}
    facts = fault.prepare(fault.Parameters.model_validate(parameters), Host())
    journal = Journal(state)
    journal.record(Entry(FAULT_ID, Mark.RECORDED, "process.kill", parameters=parameters, facts=facts))
    journal.mark(FAULT_ID, Mark.ACTIVE)
    journal.close()
    victim.kill()
    victim.wait()


def reap(state: Path) -> tuple[int, list[str]]:
    done = subprocess.run([INJECTOR, "reap", "--state-dir", state], capture_output=True, text=True, check=False)
    return done.returncode, [line.split()[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("cause", ["remount", "error"])
def test_the_reaper_reads_and_undoes_and_says_that_it_could_not_mark(tmp_path: Path, cause: str) -> None:
    program = tmp_path / "sleeper"
    shutil.copy("/bin/sleep", program)
    with ext4(tmp_path, 32 * MIB) as disk:
        state = disk / "state"
        try:
            kill_with_a_record(program, state)
            if cause == "remount":
                subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            else:
                subprocess.run(["mount", "-o", "remount,errors=remount-ro", disk], check=True)
                device = next(
                    line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if str(disk) in line
                )
                Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("a test\n")
            for _ in range(2):  # not marked, so it is looked at again, and nothing is started twice
                assert reap(state) == (0, ["clean", "UNMARKED"])
                assert len(running(program)) == 1
            journal = Journal(state)
            with pytest.raises(JournalError, match="cannot write"):
                journal.mark(FAULT_ID, Mark.CLEAN)
            journal.close()
            if cause == "remount":
                subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
                assert reap(state) == (0, ["clean"])
                assert reap(state) == (0, [])
        finally:
            keys = running(program)
            for key in keys:
                os.kill(key.pid, 9)
            assert wait_dead(keys, 5) == []


def test_a_read_only_disk_without_a_journal_is_a_clear_error(tmp_path: Path) -> None:
    with ext4(tmp_path, 32 * MIB) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(JournalError, match="Read-only file system"):
            Journal(disk / "state")
