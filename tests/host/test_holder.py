"""A holder ends by itself when nobody tells it what to do; telling one that is dying does no harm."""

import os
import signal
import subprocess
import sys
import threading
import time

from brownout_agent.injector.holder import Holder
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.processes import key_of

HOLDER = [sys.executable, "-I", "-m", "brownout_agent.injector.holder", "cpu.load", "an-id"]
DEATHS = 100


def test_a_holder_that_gets_no_order_is_killed_by_its_timer_though_its_injector_lives() -> None:
    order_by_ns = boottime_ns() + 3_000_000_000
    argv = [*HOLDER, str(os.getpid()), str(order_by_ns)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        assert process.wait(30) == -signal.SIGKILL
    assert boottime_ns() >= order_by_ns


def test_a_holder_that_comes_up_too_late_for_an_order_ends_at_once() -> None:
    with subprocess.Popen([*HOLDER, str(os.getpid()), str(boottime_ns() - 1)], stdin=subprocess.PIPE) as process:
        begun_s = time.monotonic()
        assert process.wait(30) == -signal.SIGKILL
    assert time.monotonic() - begun_s < 20


def test_to_extend_a_holder_that_dies_just_then_writes_nowhere_and_raises_nothing() -> None:
    for _ in range(DEATHS):  # each is a race, and one in ten was lost
        process = subprocess.Popen(["sleep", "60"], bufsize=0, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        key = key_of(process.pid)
        assert key is not None
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        holder = Holder(process, key)
        threading.Thread(target=process.kill).start()
        while not process.stdin.closed:
            holder.extend(boottime_ns())
