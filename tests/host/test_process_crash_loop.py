"""process.crash_loop against nginx, whose master starts its worker again and writes down how it died."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Effect, Host, Meter, Refusal
from brownout_agent.kernel.processes import is_alive, key_of, send_signal, wait_dead

from tests.host.network_pair import inside, network_namespace, run
from tests.support.faultbench import held
from tests.support.injectors import running
from tests.support.polling import wait_until

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces, other users' processes")]
BEAT_S = 1.0
_DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()"


@contextmanager
def nginx_of_its_own(folder: Path) -> Iterator[Path]:
    """An nginx that is nobody's child, with one worker, alone in a network; its error log."""
    folder.chmod(0o755)
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid; error_log {folder}/error.log notice; worker_processes 1; events {{}}\n"
        "http { access_log off; server { listen 127.0.0.1:8080; return 200 mine; } }\n"
    )
    with network_namespace() as name, inside(name):
        try:
            run("nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"))
            yield folder / "error.log"
        finally:
            _end([int(pid) for pid in run("ip", "netns", "pids", name).split() if int(pid) != os.getpid()])


def deaths_in(log: Path) -> int:
    return log.read_text().count("exited on signal 9")


def fetch() -> str:
    argv = ["curl", "--silent", "--max-time", "2", "http://127.0.0.1:8080/"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def token() -> Iterator[str]:
    """A word for command lines; whoever bears it at the end is killed."""
    word = f"brownout-loop-{os.getpid()}-{time.monotonic_ns()}"
    yield word
    _end(bearing(word))


def start(*words: str, program: str = "while True: __import__('time').sleep(9)") -> int:
    """A program with these words on its command line, as nobody's child: nothing that this test, which stands for the
    injector, has started is ever killed."""
    before = bearing(words[-1])
    subprocess.run(["setsid", "--fork", "/usr/bin/python3", "-S", "-c", program, *words], check=True)
    seen: list[set[int]] = []

    def runs() -> bool:
        seen.append(set(bearing(words[-1])) - set(before))
        return bool(seen[-1])

    wait_until(runs, f"{words} runs")
    (pid,) = seen[-1]
    return pid


def launch(program: Path) -> int:
    """A program of this name, as nobody's child."""
    shutil.copy("/bin/sleep", program)
    subprocess.run(["setsid", "--fork", program, "60"], check=True)
    wait_until(lambda: len(running(program)) == 1, f"{program} runs")
    return running(program)[0]


def bearing(word: str) -> list[int]:
    """Pids of living programs with this word as an argument."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            if word.encode() in argv and argv[0] == b"/usr/bin/python3":
                found.append(int(entry.name))
    return found


def _end(pids: list[int]) -> None:
    keys = [key for pid in pids if (key := key_of(pid)) is not None]
    for key in keys:
        send_signal(key, signal.SIGKILL)
    assert wait_dead(keys, 5) == []


async def read_until(meter: Meter, enough: Callable[[Effect], bool], within_s: float = 10.0) -> Effect:
    """Readings, as the injector takes them but more often."""
    deadline_s = time.monotonic() + within_s
    while True:
        meter.sample()
        effect = meter.effect()
        if enough(effect):
            return effect
        assert time.monotonic() < deadline_s, effect
        await asyncio.sleep(0.05)


def died(pid: int) -> Callable[[Effect], bool]:
    key = key_of(pid)
    return lambda _effect: key is None or not is_alive(key)


def test_a_worker_dies_at_each_beat_its_master_counts_the_deaths_and_afterwards_it_lives(tmp_path: Path) -> None:
    async def scene(log: Path) -> None:
        await asyncio.to_thread(wait_until, lambda: fetch() == "mine", "nginx serves")
        async with held("process.crash_loop", command="nginx: worker process", every="1s") as it:
            begun_s = time.monotonic()
            effect = await read_until(it.meter, lambda _: deaths_in(log) >= 4)
            assert time.monotonic() - begun_s > 2.5 * BEAT_S, "the fourth death is that of the third beat"
            assert effect.proved, effect
            assert 3 <= (effect.achieved or 0) <= deaths_in(log)
            assert effect.asked == effect.achieved
        counted = deaths_in(log)
        assert fetch() == "mine"
        with pytest.raises(AssertionError, match="another death"):
            wait_until(lambda: deaths_in(log) > counted, "another death", 1.5 * BEAT_S)

    with nginx_of_its_own(tmp_path) as log:
        asyncio.run(scene(log))


def test_a_program_that_nobody_starts_again_is_no_loop(token: str) -> None:
    async def scene() -> None:
        victim = start(token)
        async with held("process.crash_loop", command=token, every="1s") as it:
            effect = await read_until(it.meter, died(victim))
            effect = await read_until(it.meter, lambda effect: effect.achieved == 1)
            assert not effect.proved
            assert "nobody has started it again so far, so there is no loop" in effect.explanation

    asyncio.run(scene())


def test_a_program_that_lives_on_under_the_signal_is_not_proved(token: str) -> None:
    async def scene() -> None:
        victim = start(token, program=_DEAF)
        async with held("process.crash_loop", command=token, every="1s", signal="TERM") as it:
            effect = await read_until(it.meter, lambda effect: "lived beyond the beat" in effect.explanation)
            assert (effect.asked, effect.achieved, effect.proved) == (1, 0, False)
            assert not died(victim)(effect)

    asyncio.run(scene())


def test_nobody_kills_when_the_holder_is_dead(token: str) -> None:
    async def scene() -> None:
        start(token)
        async with held("process.crash_loop", command=token, every="1s") as it:
            send_signal(it.holder.key, signal.SIGKILL)
            assert wait_dead([it.holder.key], 5) == []
            again = start(token)
            effect = await read_until(it.meter, lambda effect: "lived beyond the beat" in effect.explanation)
            assert not effect.proved
            assert not died(again)(effect)

    asyncio.run(scene())


def test_what_the_injector_starts_meanwhile_is_spared(token: str) -> None:
    async def scene() -> None:
        start(token)
        async with held("process.crash_loop", command=token, every="1s") as it:
            ours = await asyncio.create_subprocess_exec("/usr/bin/python3", "-S", "-c", _DEAF, token)
            # Its descriptors are closed, which ends the wait above, before its arguments can be read.
            wait_until(lambda: ours.pid in bearing(token), "our own child bears the token")
            await read_until(it.meter, died(start(token)))
            assert ours.returncode is None
            ours.kill()
            assert await ours.wait() == -signal.SIGKILL

    asyncio.run(scene())


def test_a_part_of_brownout_that_was_started_again_meanwhile_is_spared(token: str) -> None:
    async def scene() -> None:
        part = start("agent", token)
        start("victim", token)
        host = Host(protected_pids=frozenset({part}))
        async with held("process.crash_loop", host, command=token, every="1s") as it:
            _end([part])
            part_again = start("agent", token)
            effect = await read_until(it.meter, died(start("victim", token)))
            assert not died(part_again)(effect)

    asyncio.run(scene())


def test_what_cannot_be_told_from_a_part_of_brownout_is_refused(token: str) -> None:
    part = start("same", token)
    start("same", token)
    fault = catalogue()["process.crash_loop"]
    with pytest.raises(Refusal, match="runs what a part of Brownout"):
        fault.prepare(fault.Parameters.model_validate({"command": token}), Host(protected_pids=frozenset({part})))


def test_a_protected_command_that_matches_later_ends_the_fault_and_is_spared(tmp_path: Path) -> None:
    async def scene() -> None:
        launch(tmp_path / "victim")
        async with held("process.crash_loop", command=str(tmp_path), every="1s") as it:
            pid = launch(tmp_path / "sshd")
            words = await asyncio.wait_for(it.holder.died(), 5)
            assert f"sshd (pid {pid}) is protected" in words
            assert running(tmp_path / "sshd") == [pid]

    try:
        asyncio.run(scene())
    finally:
        _end([pid for name in ("victim", "sshd") for pid in running(tmp_path / name)])
