"""The holder: a process that *is* a fault. When it dies, the fault is over, and the kernel sees to its death.

It is started inert, so that the journal can name it before it has done anything::

    injector                              holder
    spawn ------------------------------> asks the kernel to die with the injector, then waits on stdin
    journal: holder is (pid, start time)
    {"parameters", "facts", ...} -------> sets its own timer, applies the fault
    <------------------------ {"ready"}   holds it until killed

Two things end it without any of our code: PR_SET_PDEATHSIG (the injector died) and ITIMER_REAL (time is up).
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from brownout_agent.faults.contract import Facts, Hold, Json, Refusal
from brownout_agent.injector.threads import in_thread
from brownout_agent.kernel import limits
from brownout_agent.kernel.processes import ProcessKey, key_of, send_signal, wait_dead

KERNEL_MARGIN_S = 0.5
"""The kernel's timer fires this much after the injector's, so that the orderly way is the usual one."""
READY_TIMEOUT_S = 20.0
END_TIMEOUT_S = 5.0
_STDERR_KEPT = 2_000
_READY_BYTES_MAX = 2**16


class HolderFailed(Exception):
    """The holder ended before the fault was in effect; the text says why."""


@dataclass(frozen=True, slots=True)
class _Death:
    code: int
    """As subprocess has it: negative for a signal."""
    words: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The fault is in effect: what `apply` reported, and every process that the holder made."""

    facts: Facts
    children: tuple[ProcessKey, ...]


class Holder:
    """The injector's end of one holder process.

    Its pipes are read in threads: asyncio takes a process for alive as long as anybody keeps one of them open.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", key: ProcessKey) -> None:
        self._process = process
        self._children: tuple[ProcessKey, ...] = ()
        self._death = in_thread(partial(_see_die, process))
        self.key = key

    @classmethod
    async def spawn(cls, kind: str, fault_id: str) -> "Holder":
        """Start an inert holder. Call it from the main thread: the kernel ties its life to the calling thread.

        Raises:
            HolderFailed: it could not be started.
        """
        argv = [sys.executable, "-I", "-m", __name__, kind, fault_id, str(os.getpid())]
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - it must be this thread, and takes milliseconds
                argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise HolderFailed(f"cannot start {argv}: {error}") from error
        key = key_of(process.pid)
        assert key is not None, "an unreaped child has an entry in /proc"
        return cls(process, key)

    async def go(self, parameters: dict[str, Any], facts: Facts, duration_s: float) -> Ready:
        """Have the fault applied; returns when it is in effect.

        Raises:
            HolderFailed: it is not in effect, and the holder is dead.
        """
        order = {"parameters": parameters, "facts": facts, "duration_s": duration_s}
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                line = await asyncio.wrap_future(in_thread(partial(_ask, self._process, order)))
        except TimeoutError:
            await self.end()
            raise HolderFailed(f"the fault was not in effect after {READY_TIMEOUT_S:g} s") from None
        except (OSError, ValueError):  # its pipes are closed
            line = b""
        if not line:
            left = await self.end()
            raise HolderFailed("the holder closed its pipe and lives on" if left else await self.died())
        try:
            said = json.loads(line)
            ready = Ready(dict(said["facts"]), tuple(ProcessKey.from_json(pair) for pair in said["children"]))
        except (ValueError, KeyError, TypeError) as error:
            await self.end()
            raise HolderFailed(f"instead of being ready the holder said {line[:100]!r}") from error
        self._children = ready.children
        return ready

    @property
    def keys(self) -> tuple[ProcessKey, ...]:
        """The holder and all that it made."""
        return (self.key, *self._children)

    async def died(self) -> str:
        """Wait until the holder is dead; returns how, with its last words."""
        return (await asyncio.wrap_future(self._death)).words

    @property
    def ended_by_timer(self) -> bool:
        """Whether the holder is dead and the kernel's timer did it: its time was up."""
        return self._death.done() and self._death.result().code == -signal.SIGALRM

    async def end(self) -> list[ProcessKey]:
        """Kill the holder and what it made; returns what still lives after END_TIMEOUT_S, which should be nothing."""
        left = await asyncio.wrap_future(in_thread(partial(end_by_key, self.keys)))
        if self.key not in left:
            await self.died()
        return left


def _ask(process: "subprocess.Popen[bytes]", order: dict[str, Any]) -> bytes:
    """Give the order, and read one line; empty when there will be none."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(order).encode() + b"\n")
    return process.stdout.readline(_READY_BYTES_MAX)


def _see_die(process: "subprocess.Popen[bytes]") -> _Death:
    """Wait for the process's end and close its pipes, without waiting for others that may keep them open."""
    assert process.stderr is not None
    code = process.wait()
    os.set_blocking(process.stderr.fileno(), False)
    raw = b""
    while chunk := process.stderr.read(_STDERR_KEPT):
        raw = (raw + chunk)[-_STDERR_KEPT:]
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    words = raw.decode(errors="replace").strip()
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return _Death(code, f"{words} ({how})" if words else f"the holder ended with {how}")


def end_by_key(keys: Iterable[ProcessKey]) -> list[ProcessKey]:
    """Kill holders as a journal names them; returns those that still live after END_TIMEOUT_S."""
    keys = tuple(keys)
    for key in keys:
        send_signal(key, signal.SIGKILL)
    return wait_dead(keys, END_TIMEOUT_S)


# ---- inside the holder process ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Hold(Hold):
    fault_id: str
    duration_s: float
    _ends_s: float = 0.0
    """By `time.monotonic()`: when the kernel's timer ends this process, KERNEL_MARGIN_S not counted."""
    _children: list[ProcessKey] = field(default_factory=list)
    _is_ready: bool = False

    def __post_init__(self) -> None:
        self._end_in(READY_TIMEOUT_S + self.duration_s)

    def ready(self, **facts: Json) -> None:
        if self._is_ready:
            raise RuntimeError("ready() was called twice")
        self._is_ready = True
        self._end_in(self.duration_s)
        line = {"facts": facts, "children": [key.as_json() for key in self._children]}
        os.write(1, json.dumps(line).encode() + b"\n")

    def wait(self) -> NoReturn:
        if self._children:
            pid, status = os.wait()
            code = os.waitstatus_to_exitcode(status)
            if code != -signal.SIGALRM:  # its timer may fire at the same time as ours
                raise SystemExit(f"worker {pid} ended early with status {code}")
        while True:
            signal.pause()

    def fork(self, work: Callable[[], None]) -> ProcessKey:
        holder_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            _live_as_worker(work, holder_pid, self._ends_s - time.monotonic())
        key = key_of(pid)
        assert key is not None, "an unreaped child has an entry in /proc"
        self._children.append(key)
        return key

    def _end_in(self, seconds: float) -> None:
        """The time counts from when the fault is in effect; until then, from when it must be."""
        self._ends_s = time.monotonic() + seconds
        limits.die_after(seconds + KERNEL_MARGIN_S)


def _live_as_worker(work: Callable[[], None], holder_pid: int, seconds_left: float) -> NoReturn:
    code = 1
    try:
        limits.die_with_parent(holder_pid)
        limits.die_after(max(seconds_left, 0.001) + KERNEL_MARGIN_S)
        work()
        code = 0
    except Refusal as refusal:
        os.write(2, f"{refusal.reason}\n".encode())
    except OSError as error:
        os.write(2, f"{error}\n".encode())
    except BaseException:  # noqa: BLE001 - the process ends here; its holder tells the injector
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    """`python -m brownout_agent.injector.holder KIND FAULT_ID INJECTOR_PID`; never run by hand."""
    kind, fault_id, injector_pid = sys.argv[1:4]
    limits.die_with_parent(int(injector_pid))
    line = sys.stdin.readline()
    if not line:
        raise SystemExit("the injector closed the pipe before it gave an order")
    order = json.loads(line)
    hold = _Hold(fault_id, order["duration_s"])
    limits.be_first_victim_of_oom()
    # Imported this late so that an order which never comes costs nothing.
    from brownout_agent.faults import catalogue  # noqa: PLC0415

    fault = catalogue()[kind]
    parameters = fault.Parameters.model_validate(order["parameters"])
    try:
        fault.apply(parameters, order["facts"], hold)
    except Refusal as refusal:
        raise SystemExit(refusal.reason) from refusal


if __name__ == "__main__":
    main()
