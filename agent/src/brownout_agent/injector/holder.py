"""The holder: a process that *is* a fault. When it dies, the fault is over, and the kernel sees to its death.

It is started inert, so that the journal can name it before it has done anything::

    injector                              holder
    spawn ------------------------------> asks the kernel to die with the injector and in READY_TIMEOUT_S, then waits
                                          on stdin
    journal: holder is (pid, start time)
    {"parameters", "facts", ...} -------> sets its own timer, applies the fault
    <------------- {"since_ns", "facts"}  holds it until killed
    a time of CLOCK_BOOTTIME -----------> sets its timer to it, never beyond the fault's own duration
    ... and so on with every renewal of the lease

Two things end it without any of our code, even when it or the injector is stopped: PR_SET_PDEATHSIG (the injector died)
and a timer of the kernel (the time is up, or the injector extends it no more), both by SIGKILL.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from brownout_agent.faults.contract import TRIAL_S, Facts, Hold, Json, Refusal
from brownout_agent.injector.deadlines import KERNEL_MARGIN_S
from brownout_agent.injector.threads import in_thread
from brownout_agent.kernel import limits
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.kernel.death_timer import DeathTimer, die_at
from brownout_agent.kernel.processes import ProcessKey, key_of, send_signal, wait_dead

READY_TIMEOUT_S = 20.0
END_TIMEOUT_S = 5.0
_READY_TIMEOUT_NS = int(READY_TIMEOUT_S * 1e9)
_MARGIN_NS = int(KERNEL_MARGIN_S * 1e9)
_STDERR_KEPT = 2_000
_READY_BYTES_MAX = 2**16


class HolderFailed(Exception):
    """The holder ended before the fault was in effect; the text says why."""


@dataclass(frozen=True, slots=True)
class _Death:
    at_ns: int
    code: int
    """As subprocess has it: negative for a signal."""
    words: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The fault is in effect: what `apply` reported, and every process that the holder made."""

    since_ns: int
    """CLOCK_BOOTTIME."""
    facts: Facts
    children: tuple[ProcessKey, ...]


class Holder:
    """The injector's end of one holder process.

    Its pipes are read in threads: asyncio takes a process for alive as long as anybody keeps one of them open.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", key: ProcessKey) -> None:
        self._process = process
        self._children: tuple[ProcessKey, ...] = ()
        # A number that one thread writes to while another closes it may be another file's by then.
        self._writing = threading.Lock()
        self._death = in_thread(partial(_see_die, process, self._writing))
        self.key = key

    @classmethod
    async def spawn(cls, kind: str, fault_id: str) -> "Holder":
        """Start an inert holder. Call it from the main thread: the kernel ties its life to the calling thread.

        Raises:
            HolderFailed: it could not be started.
        """
        order_by_ns = boottime_ns() + _READY_TIMEOUT_NS
        argv = [sys.executable, "-I", "-m", __name__, kind, fault_id, str(os.getpid()), str(order_by_ns)]
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - it must be this thread, and takes milliseconds
                argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise HolderFailed(f"cannot start {argv}: {error}") from error
        key = key_of(process.pid)
        assert key is not None, "an unreaped child has an entry in /proc"
        holder = cls(process, key)
        if holder._death.done() and holder._death.exception() is not None:
            process.kill()
            process.wait()
            raise HolderFailed(f"nobody could watch over it: {holder._death.exception()}")
        return holder

    async def go(
        self, parameters: dict[str, Any], facts: Facts, duration_s: float, *, lease_ends_ns: int, on_trial: bool
    ) -> Ready:
        """Have the fault applied; returns when it is in effect. From then on it must be extended in time.

        Raises:
            HolderFailed: it is not in effect, and the holder is dead.
        """
        order = {"parameters": parameters, "facts": facts, "duration_s": duration_s}
        order |= {
            "ready_by_ns": boottime_ns() + _READY_TIMEOUT_NS,
            "lease_ends_ns": lease_ends_ns,
            "on_trial": on_trial,
        }
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                line = await asyncio.wrap_future(in_thread(partial(_ask, self._process, self._writing, order)))
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
            children = tuple(ProcessKey.from_json(pair) for pair in said["children"])
            ready = Ready(int(said["since_ns"]), dict(said["facts"]), children)
        except (ValueError, KeyError, TypeError) as error:
            await self.end()
            raise HolderFailed(f"instead of being ready the holder said {line[:100]!r}") from error
        self._children = ready.children
        return ready

    def extend(self, until_ns: int) -> None:
        """Let the kernel's timer be for then (CLOCK_BOOTTIME). One that is dead or does not read is left to its end."""
        assert self._process.stdin is not None
        if not self._writing.acquire(blocking=False):
            return  # its order is being written, or its pipe closed: the event loop waits for neither
        try:
            with suppress(BrokenPipeError, ValueError):  # it died just now; its pipe is closed
                self._process.stdin.write(b"%d\n" % until_ns)
        finally:
            self._writing.release()

    @property
    def keys(self) -> tuple[ProcessKey, ...]:
        """The holder and all that it made."""
        return (self.key, *self._children)

    async def died(self) -> str:
        """Wait until the holder is dead; returns how, with its last words."""
        return (await asyncio.wrap_future(self._death)).words

    @property
    def killed_ns(self) -> int | None:
        """When the holder was seen dead by SIGKILL, which may have been the kernel's timer; None in other cases."""
        if not self._death.done() or self._death.result().code != -signal.SIGKILL:
            return None
        return self._death.result().at_ns

    async def end(self) -> list[ProcessKey]:
        """Kill the holder and what it made; returns what still lives after END_TIMEOUT_S, which should be nothing."""
        left = await asyncio.wrap_future(in_thread(partial(end_by_key, self.keys), or_here=True))
        if self.key not in left:
            await self.died()
        return left


def _ask(process: "subprocess.Popen[bytes]", writing: threading.Lock, order: dict[str, Any]) -> bytes:
    """Give the order, and read one line; empty when there will be none."""
    assert process.stdin is not None
    assert process.stdout is not None
    with writing:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        os.set_blocking(process.stdin.fileno(), False)  # no extension may wait for a holder that does not read
    return process.stdout.readline(_READY_BYTES_MAX)


def _see_die(process: "subprocess.Popen[bytes]", writing: threading.Lock) -> _Death:
    """Wait for the process's end and close its pipes, without waiting for others that may keep them open."""
    assert process.stderr is not None
    code = process.wait()
    at_ns = boottime_ns()
    os.set_blocking(process.stderr.fileno(), False)
    raw = b""
    while chunk := process.stderr.read(_STDERR_KEPT):
        raw = (raw + chunk)[-_STDERR_KEPT:]
    with writing:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    words = raw.decode(errors="replace").strip()
    how = _how_ended(code)
    return _Death(at_ns, code, f"{words} ({how})" if words else f"the holder ended with {how}")


def _how_ended(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def end_by_key(keys: Iterable[ProcessKey], parting_s: float = 0.0) -> list[ProcessKey]:
    """Kill holders as a journal names them; returns those that still live after END_TIMEOUT_S.

    Those that may take their time to part are asked first.
    """
    keys = tuple(keys)
    if parting_s:
        for key in keys:
            send_signal(key, signal.SIGTERM)
        keys = tuple(wait_dead(keys, parting_s))
    for key in keys:
        send_signal(key, signal.SIGKILL)
    return wait_dead(keys, END_TIMEOUT_S)


# ---- inside the holder process ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Hold(Hold):
    fault_id: str
    duration_s: float
    lease_ends_ns: int
    on_trial: bool
    ready_by_ns: int
    timer: DeathTimer
    _ends_ns: int = 0
    """When its time is up. It counts from when the fault is in effect; until then, from when it must be."""
    _extension: Callable[[int], None] = lambda _: None
    _children: list[ProcessKey] = field(default_factory=list)
    _is_ready: bool = False

    def __post_init__(self) -> None:
        self._ends_ns = self.ready_by_ns + int(self.duration_s * 1e9)
        self.timer.set(self.ready_by_ns + _MARGIN_NS)

    def ready(self, **facts: Json) -> None:
        if self._is_ready:
            raise RuntimeError("ready() was called twice")
        self._is_ready = True
        since_ns = boottime_ns()
        self._ends_ns = since_ns + int(self.duration_s * 1e9)
        # The lease was renewed while the fault was being applied, or it was not: the injector soon says.
        first_ns = since_ns + int(TRIAL_S * 1e9)
        self.timer.set(self._bound_ns(first_ns if self.on_trial else max(self.lease_ends_ns, first_ns)))
        threading.Thread(target=self._heed_extensions, daemon=True).start()
        line = {"since_ns": since_ns, "facts": facts, "children": [key.as_json() for key in self._children]}
        os.write(1, json.dumps(line).encode() + b"\n")

    def on_extension(self, work: Callable[[int], None]) -> None:
        self._extension = work

    def wait(self) -> NoReturn:
        if self._children:
            pid, status = os.wait()
            raise SystemExit(f"worker {pid} ended early with {_how_ended(os.waitstatus_to_exitcode(status))}")
        while True:
            signal.pause()

    def fork(self, work: Callable[[], None]) -> ProcessKey:
        holder_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            _live_as_worker(work, holder_pid, self._ends_ns)
        key = key_of(pid)
        assert key is not None, "an unreaped child has an entry in /proc"
        self._children.append(key)
        return key

    def _bound_ns(self, until_ns: int) -> int:
        return min(until_ns, self._ends_ns) + _MARGIN_NS

    def _heed_extensions(self) -> None:
        """In a thread, since `apply` may be doing anything. Times are absolute: one that was read late does no harm."""
        try:
            for line in sys.stdin:
                until_ns = int(line)
                self.timer.set(self._bound_ns(until_ns))
                self._extension(max(min(until_ns, self._ends_ns) - boottime_ns(), 0) // 1_000_000)
        except Refusal as refusal:
            os.write(2, f"{refusal.reason}\n".encode())
            os._exit(1)
        except BaseException:  # noqa: BLE001 - the process ends here; the injector reads why
            traceback.print_exc()
            os._exit(1)


def _live_as_worker(work: Callable[[], None], holder_pid: int, ends_ns: int) -> NoReturn:
    code = 1
    try:
        limits.die_with_parent(holder_pid)
        # It dies with its holder; this is for a holder that is not let die. Not before it, as that would be early.
        die_at(ends_ns + 2 * _MARGIN_NS)
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
    """`python -m brownout_agent.injector.holder KIND FAULT_ID INJECTOR_PID ORDER_BY_NS`; never run by hand."""
    kind, fault_id, injector_pid, order_by_ns = sys.argv[1:5]
    limits.die_with_parent(int(injector_pid))
    timer = die_at(int(order_by_ns))  # an injector that is stopped gives no order and does not die either
    line = sys.stdin.readline()
    if not line:
        raise SystemExit("the injector closed the pipe before it gave an order")
    order = json.loads(line)
    times = (order["duration_s"], order["lease_ends_ns"], order["on_trial"], order["ready_by_ns"])
    hold = _Hold(fault_id, *times, timer)
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
