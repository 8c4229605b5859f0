"""`process.pause`: processes stand still, as in a long garbage collection, a stuck disk or a starved virtual machine.

Their sockets stay open and the kernel goes on accepting connections for them, so that a health check hangs instead of
being refused. A traced stop (ptrace) and not SIGSTOP: when its holder dies, the kernel sets the processes going again.
A system call in which they blocked may return EINTR then, as after SIGSTOP and SIGCONT (signal(7)).
"""

import signal
import subprocess
import time
from pathlib import Path

from brownout_agent.faults.contract import ABLE, Capability, Effect, Facts, Fault, Hold, Host, Meter, Record, Refusal
from brownout_agent.faults.process_match import ProcessParameters, match
from brownout_agent.kernel import ptrace
from brownout_agent.kernel.credentials import has_capability
from brownout_agent.kernel.processes import ProcessKey, is_alive, key_of, read_stat, send_signal, wait_dead

_STOP_TIMEOUT_S = 5.0
_RESUME_TIMEOUT_S = 2.0
_POLL_S = 0.005
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_CAP_SYS_PTRACE = 19


class PauseParameters(ProcessParameters):
    """Which processes stand still. Children are paused only when they match too, or with `tree`."""


class ProcessPause(Fault[PauseParameters]):
    """Stops every thread of the matched processes."""

    kind = "process.pause"
    summary = "Stop processes without ending them: they hang, their sockets stay open."
    reverts = "The kernel: it sets the processes going again when the tracing holder dies, whatever kills it."
    Parameters = PauseParameters

    def detect(self, host: Host) -> Capability:
        if _YAMA.exists() and _YAMA.read_text().strip() != "0" and not has_capability(_CAP_SYS_PTRACE):
            return Capability(
                False, f"{_YAMA} allows tracing of other processes only with CAP_SYS_PTRACE", "run the injector as root"
            )
        # `cat` waits for its input for ever.
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as trial:
            try:
                ptrace.stop(trial.pid, _STOP_TIMEOUT_S)
            except OSError as error:
                return Capability(
                    False, f"ptrace is refused: {error}", "allow ptrace in the injector's seccomp profile"
                )
            finally:
                # Not by Popen.kill, which looks first, is told of the stop, takes it for the end, and leaves a zombie.
                key = key_of(trial.pid)
                assert key is not None, "an unreaped child has an entry in /proc"
                send_signal(key, signal.SIGKILL)
                wait_dead([key], _STOP_TIMEOUT_S)
        return ABLE

    def prepare(self, parameters: PauseParameters, host: Host) -> Facts:
        chosen = match(parameters, host)
        for process in chosen:
            tracer = ptrace.tracer_of(process.key.pid)
            if tracer:
                raise Refusal(f"{process.text} is already traced, by process {tracer}", f"end process {tracer} first")
            if process.state in "Tt":
                raise Refusal(f"{process.text} is already stopped", f"kill -CONT {process.key.pid}")
        return {
            "processes": [process.key.as_json() for process in chosen],
            "names": [process.text for process in chosen],
        }

    def apply(self, parameters: PauseParameters, facts: Facts, hold: Hold) -> None:
        keys = _keys(facts)
        try:
            stopped = [key for key in keys if is_alive(key) and ptrace.stop(key.pid, _STOP_TIMEOUT_S)]
        except OSError as error:
            raise Refusal(str(error), "see `explain process.pause`") from error
        # A pid that changed hands before the stop would be a stranger; afterwards it cannot change hands unseen.
        if strangers := [key.pid for key in stopped if not is_alive(key)]:
            raise Refusal(f"pid {strangers} went to another process while it was being stopped", "try again")
        if not stopped:
            raise Refusal(f"{', '.join(facts['names'])} ended before it could be paused", "try again")
        hold.ready()
        ptrace.reap_until_all_are_gone()
        hold.wait()

    def undo(self, record: Record[PauseParameters]) -> None:
        deadline = time.monotonic() + _RESUME_TIMEOUT_S
        while self.residue(record) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def residue(self, record: Record[PauseParameters]) -> list[str]:
        left = []
        for key, name in zip(_keys(record.facts), record.facts["names"], strict=True):
            stat = read_stat(key.pid)
            if stat is not None and stat.start_ticks == key.start_ticks and stat.state in "Tt":
                tracer = ptrace.tracer_of(key.pid)
                why = f"process {tracer} traces it" if tracer else f"next: kill -CONT {key.pid}"
                left.append(f"{name} is still stopped; {why}")
        return left

    def measure(self, record: Record[PauseParameters], host: Host) -> Meter:
        return _StopMeter(_keys(record.facts), record.facts["names"])


class _StopMeter(Meter):
    """Reads the state and the CPU time of every thread in /proc."""

    def __init__(self, keys: list[ProcessKey], names: list[str]) -> None:
        self._names = dict(zip(keys, names, strict=True))
        self._ticks: dict[ProcessKey, int] = {}
        self._samples = 0
        self._stopped = 0
        self._gone: dict[ProcessKey, int] = {}

    def sample(self) -> None:
        self._samples += 1
        stand_still = [self._stands_still(key) for key in self._names]
        self._stopped += all(stand_still)

    def _stands_still(self, key: ProcessKey) -> bool:
        stat = read_stat(key.pid)
        if stat is None or not is_alive(key):
            self._gone.setdefault(key, self._samples)
            return False
        return ptrace.is_stopped(key.pid) and stat.cpu_ticks == self._ticks.setdefault(key, stat.cpu_ticks)

    def effect(self) -> Effect:
        if not self._samples:
            return Effect(100.0, None, "% of readings", False, "the processes were never looked at")
        who = ", ".join(self._names.values())
        explanation = (
            f"in {self._stopped} of {self._samples} readings of /proc every thread of {who} stood in tracing stop "
            "and had used no CPU time"
        )
        for key, at in self._gone.items():
            explanation += f"; {self._names[key]} was gone at reading {at}: somebody ended it while it was paused"
        achieved = 100 * self._stopped / self._samples
        return Effect(
            100.0, achieved, "% of readings", self._stopped == self._samples, explanation, samples=self._samples
        )


def _keys(facts: Facts) -> list[ProcessKey]:
    return [ProcessKey.from_json(pair) for pair in facts["processes"]]
