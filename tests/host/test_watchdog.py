"""The watchdog of an injector that died between fork and exec: for a while the fork has the journal's lock as well."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from brownout_agent.injector.journal import Journal, JournalHeld, Mark, decode
from brownout_agent.injector.reaper import watch
from brownout_agent.kernel.processes import ProcessKey, is_alive, key_of

from tests.support.polling import wait_until

_INJECTOR = """
import os, sys
from pathlib import Path
from brownout_agent.injector.journal import Entry, Journal, Mark
journal = Journal(Path(sys.argv[1]))
facts = {"processes": [], "names": []}
journal.record(Entry("a-fault", Mark.RECORDED, "process.pause", parameters={"command": "x"}, facts=facts))
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print("forked", flush=True)
os.kill(os.getpid(), 9)
"""
WITHIN_S = 20.0


def test_it_waits_for_a_fork_that_has_the_lock_yet_and_undoes(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    argv = [sys.executable, "-c", _INJECTOR, str(folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as injector:
        key = key_of(injector.pid)
        assert key is not None
        assert injector.stdout is not None
        assert injector.stdout.readline() == b"forked\n"
        wait_until(lambda: not is_alive(key), "the injector is dead")
        with pytest.raises(JournalHeld):
            Journal(folder)
        codes: list[int] = []
        watchdog = threading.Thread(target=lambda: codes.append(watch(folder, key)))
        watchdog.start()
        watchdog.join(timeout=0.5)
        assert watchdog.is_alive(), "it gave up, though nobody else will undo"
        assert injector.stdin is not None
        injector.stdin.close()  # the fork ends
        watchdog.join(WITHIN_S)
    assert codes == [0]
    assert decode((folder / "journal").read_bytes()).entries["a-fault"].mark is Mark.CLEAN


def test_it_leaves_the_journal_to_an_injector_that_was_started_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert watch(tmp_path, ProcessKey(os.getpid(), 0)) == 0  # one of that pid which is long gone
    journal.close()
