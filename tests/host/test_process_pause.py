"""process.pause against the kernel: real children of the test, judged by the beats that they send."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host, Record, Refusal
from brownout_agent.kernel import ptrace
from brownout_agent.kernel.processes import all_pids, key_of, read_stat, send_signal

from tests.support.faultbench import held

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="tracing others needs root")]

# One byte every 5 ms; a second thread works without rest, and a new thread is born with every beat.
BEATING = """
import os, threading, time
def work():
    while True:
        pass
threading.Thread(target=work, daemon=True).start()
while True:
    os.write(1, b".")
    threading.Thread(target=time.sleep, args=(0.001,)).start()
    time.sleep(0.005)
"""


class Beating:
    """A process whose beats can be listened to."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        self.process = process
        self.pid = process.pid
        self._beats = process.stdout.fileno()
        os.set_blocking(self._beats, False)

    def beats_within(self, seconds: float) -> bool:
        """Whether a fresh beat comes; those that were sent before are thrown away first."""
        self._read()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._read():
                return True
            time.sleep(0.005)
        return False

    def _read(self) -> bytes:
        try:
            return os.read(self._beats, 65_536)
        except BlockingIOError:
            return b""


@contextmanager
def beating(*words: str) -> Iterator[Beating]:
    process = subprocess.Popen([sys.executable, "-I", "-c", BEATING, *words], stdout=subprocess.PIPE)
    with process:
        try:
            child = Beating(process)
            assert child.beats_within(5)
            yield child
        finally:
            process.kill()


def test_the_host_can_pause_and_finding_that_out_leaves_nothing() -> None:
    assert catalogue()["process.pause"].detect(Host()).able


def test_asking_whether_it_can_be_done_leaves_no_zombie() -> None:
    fault = catalogue()["process.pause"]
    before = children()
    for _ in range(5):
        fault.detect(Host())
    assert children() == before


def children() -> set[int]:
    """Ours, the dead that nobody has waited for included."""
    stats = ((pid, read_stat(pid)) for pid in all_pids())
    return {pid for pid, stat in stats if stat is not None and stat.parent_pid == os.getpid()}


def test_every_thread_stands_still_inside_and_runs_on_after() -> None:
    async def scene() -> None:
        with beating() as child, beating() as bystander:
            async with held("process.pause", pid=child.pid) as it:
                ticks = read_stat(child.pid)
                for _ in range(3):
                    assert not child.beats_within(0.1)
                    it.meter.sample()
                assert bystander.beats_within(5)
                assert ticks == read_stat(child.pid)
                assert set(ptrace.thread_states(child.pid).values()) == {"t"}
                assert len(ptrace.thread_states(child.pid)) >= 2
                effect = it.meter.effect()
                assert effect.proved
                assert effect.achieved == 100
                assert f"pid {child.pid}" in effect.explanation
            assert child.beats_within(5)

    asyncio.run(scene())


def test_the_kernel_lets_it_run_on_when_the_holder_is_killed() -> None:
    async def scene() -> None:
        with beating() as child:
            async with held("process.pause", pid=child.pid) as it:
                assert not child.beats_within(0.1)
                killed_s = time.monotonic()
                send_signal(it.holder.key, signal.SIGKILL)
                assert child.beats_within(1)
                assert time.monotonic() - killed_s < 1
                it.meter.sample()
                assert not it.meter.effect().proved

    asyncio.run(scene())


def test_its_parent_learns_at_once_when_somebody_kills_a_paused_process() -> None:
    async def scene() -> None:
        with beating() as child:
            async with held("process.pause", pid=child.pid) as it:
                it.meter.sample()
                child.process.kill()
                assert child.process.wait(timeout=2) == -signal.SIGKILL
                it.meter.sample()
                effect = it.meter.effect()
                assert not effect.proved
                assert "was gone at reading 2" in effect.explanation

    asyncio.run(scene())


def test_signals_wait_until_it_runs_on() -> None:
    async def scene() -> None:
        with beating() as child:
            async with held("process.pause", pid=child.pid):
                child.process.terminate()
                child.process.send_signal(signal.SIGCONT)
                assert not child.beats_within(0.1)
                assert child.process.poll() is None
            assert child.process.wait(timeout=2) == -signal.SIGTERM

    asyncio.run(scene())


def test_all_that_match_are_paused_and_no_other() -> None:
    async def scene() -> None:
        token = f"brownout-test-{os.getpid()}"
        with beating(token) as first, beating(token) as second, beating() as bystander:
            async with held("process.pause", command=token, user="root"):
                assert not first.beats_within(0.1)
                assert not second.beats_within(0.1)
                assert bystander.beats_within(5)
            assert first.beats_within(5)
            assert second.beats_within(5)

    asyncio.run(scene())


def test_what_stands_still_already_is_refused_and_a_stop_by_somebody_else_is_reported_afterwards() -> None:
    fault = catalogue()["process.pause"]
    with beating() as child:
        parameters = fault.Parameters.model_validate({"pid": child.pid})
        record = Record("id", parameters, fault.prepare(parameters, Host()), 1.0)
        child.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(Refusal, match="already stopped") as caught:
            fault.prepare(parameters, Host())
        assert caught.value.remedy == f"kill -CONT {child.pid}"
        assert fault.residue(record) == [f"python (pid {child.pid}) is still stopped; next: kill -CONT {child.pid}"]
        child.process.send_signal(signal.SIGCONT)
        fault.undo(record)
        assert fault.residue(record) == []


def test_a_process_that_somebody_traces_is_refused() -> None:
    async def scene() -> None:
        with beating() as child:
            async with held("process.pause", pid=child.pid) as it:
                with pytest.raises(Refusal, match=f"already traced, by process {it.holder.key.pid}"):
                    it.fault.prepare(it.record.parameters, Host())

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("given", "host", "reason"),
    [
        ({"pid": 1}, Host(), "pid 1 is this host's init"),
        ({"pid": os.getpid()}, Host(), "part of Brownout or an ancestor"),
        pytest.param({"pid": os.getppid()}, Host(), "part of Brownout or an ancestor", marks=pytest.mark.alone),
        pytest.param({"pid": 2}, Host(), "kernel thread", marks=pytest.mark.alone),  # none is in a pid namespace
        ({"process": "brownout-none"}, Host(), "no process matches process brownout-none"),
        ({"process": "kthreadd"}, Host(), "no process matches"),
        ({"user": "brownout-none"}, Host(), "no user brownout-none"),
    ],
)
def test_what_must_not_be_paused_is_refused(given: dict[str, object], host: Host, reason: str) -> None:
    fault = catalogue()["process.pause"]
    with pytest.raises(Refusal, match=reason):
        fault.prepare(fault.Parameters.model_validate(given), host)


def test_a_process_of_another_network_namespace_is_reached_by_pid_only() -> None:
    fault = catalogue()["process.pause"]
    token = f"brownout-elsewhere-{os.getpid()}"
    argv = ["unshare", "--net", sys.executable, "-I", "-c", BEATING, token]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert Beating(process).beats_within(5)
        with pytest.raises(Refusal, match="only in other network namespaces"):
            fault.prepare(fault.Parameters.model_validate({"command": token}), Host())
        facts = fault.prepare(fault.Parameters.model_validate({"pid": process.pid}), Host())
        key = key_of(process.pid)
        assert key is not None
        assert facts["processes"] == [key.as_json()]
        process.kill()
