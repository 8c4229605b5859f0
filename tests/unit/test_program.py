"""Running a program: what it finds, what is kept of what it says, and that it ends when it should."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from brownout_agent.kernel.processes import is_alive, key_of, wait_dead
from brownout_agent.kernel.program import ENVIRONMENT, OUTPUT_KEPT, Ended, run

PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")


def said(program: str, *words: str, within_s: float = 20.0, leaves_nothing: bool = False) -> Ended:
    return run([*PYTHON, program, *words], within_s, leaves_nothing=leaves_nothing)


def test_it_finds_a_clean_environment_no_terminal_and_nothing_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of ours")
    monkeypatch.setenv("LD_PRELOAD_OF_OURS", "x")
    shown = said(
        "import os, sys, signal\n"
        "print([*map(str, (dict(os.environ), os.getcwd(), os.getsid(0) == os.getpid(), sys.stdin.read()))])\n"
        "try: os.open('/dev/tty', os.O_RDWR)\n"
        "except OSError as error: print('no terminal')"
    )
    assert shown.code == 0, shown
    assert shown.stdout == f"{[str(ENVIRONMENT), '/', 'True', '']}\nno terminal"


def test_no_argument_is_taken_for_anything_but_itself() -> None:
    words = ("$HOME", "*", "; touch /nowhere", "`id`", "a b", "", "-c", "\udcff")
    shown = said("import sys; print(ascii(sys.argv[1:]))", *words)
    assert shown.stdout == ascii([*words])


def test_a_broken_pipe_ends_it_as_it_would_anywhere_else() -> None:
    shown = run(["/usr/bin/grep", "SigIgn", "/proc/self/status"], 20.0)
    ignored = int(shown.stdout.split()[1], 16)
    assert not ignored >> (signal.SIGPIPE - 1) & 1
    assert not ignored >> (signal.SIGXFSZ - 1) & 1


def test_of_much_output_the_end_is_kept_and_it_keeps_nobody_waiting() -> None:
    shown = said("import sys\nfor stream in (sys.stdout, sys.stderr): stream.write('x' * 10**6 + 'ü' * 700)")
    assert (shown.code, shown.stdout, shown.stderr) == (0, "ü" * OUTPUT_KEPT, "ü" * OUTPUT_KEPT)


@pytest.mark.parametrize(
    ("argv", "code", "how"),
    [
        ((*PYTHON, "raise SystemExit(3)"), 3, "ended with exit code 3"),
        ((*PYTHON, "import os; os.kill(os.getpid(), 15)"), -15, "ended with signal 15"),
        (("/no/such/program",), 127, "stderr: it cannot be executed: No such file or directory"),
    ],
)
def test_how_it_ended_is_told_with_its_command_line(argv: tuple[str, ...], code: int, how: str) -> None:
    ended = run(argv, 20.0)
    assert ended.code == code
    assert how in ended.text
    assert ended.text.startswith(f"`{argv[0]}")


def test_one_whose_time_is_up_is_killed_with_all_that_it_started() -> None:
    begun_s = time.monotonic()
    ended = said("import os, time\nprint(os.fork(), flush=True)\ntime.sleep(600)", within_s=1.0)
    assert time.monotonic() - begun_s < 20
    assert ended.code is None
    assert "had not ended after 1 s and was killed" in ended.text
    child = key_of(max(map(int, ended.stdout.split())))
    assert child is None or wait_dead([child], 5.0) == []


@pytest.mark.parametrize("leaves_nothing", [False, True])
def test_what_it_started_lives_on_unless_nothing_may_be_left(leaves_nothing: bool) -> None:
    program = "import os, time\npid = os.fork()\nif pid: print(pid)\nelse: time.sleep(600)"
    begun_s = time.monotonic()
    ended = said(program, leaves_nothing=leaves_nothing)
    assert time.monotonic() - begun_s < 20, "who has its pipe yet is not waited for"
    key = key_of(int(ended.stdout))
    if leaves_nothing:
        assert key is None or wait_dead([key], 5.0) == []
        return
    assert key is not None
    assert is_alive(key)
    os.kill(key.pid, signal.SIGKILL)


def test_it_dies_with_whoever_waits_for_it(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    program = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid()) + chr(10)); time.sleep(600)"
    waiting = f"from brownout_agent.kernel.program import run; run({[*PYTHON, program]!r}, 600.0)"
    with subprocess.Popen([sys.executable, "-c", waiting]) as waiter:
        deadline_s = time.monotonic() + 20
        while not (told.exists() and told.read_text().endswith("\n")):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        key = key_of(int(told.read_text()))
        assert key is not None
        waiter.kill()
    assert wait_dead([key], 5.0) == []
