"""Running somebody else's program: without a shell or a terminal, in a clean environment, in bounded time.

Run itself (`python -m brownout_agent.kernel.program PARENT_PID ARGV...`) this becomes that program: it first asks the
kernel to be killed with the thread that waits for it, and no shell has a part in it.
"""

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, NoReturn

from brownout_agent.kernel import limits

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
"""All that such a program finds in its environment."""
OUTPUT_KEPT = 500
"""Characters of the end of what it wrote, for stdout and stderr each; the rest is read and forgotten."""
_ARGV_SHOWN = 300
_NOT_EXECUTED = 127
_CHUNK_BYTES = 65_536
_LAST_CHUNKS = 16
"""What is read after its end, of others who have its pipe yet and may write for ever."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program came to its end. `code` is negative for a signal, None where its time was up and it was killed."""

    argv: tuple[str, ...]
    code: int | None
    within_s: float
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        """For people: its command line, how it ended, and what it said last."""
        line = shlex.join(self.argv)
        line = line if len(line) <= _ARGV_SHOWN else f"{line[:_ARGV_SHOWN]}..."
        return f"`{line}` {self._how}; stdout: {self.stdout or 'nothing'}; stderr: {self.stderr or 'nothing'}"

    @property
    def _how(self) -> str:
        if self.code is None:
            return f"had not ended after {self.within_s:g} s and was killed"
        return f"ended with signal {-self.code}" if self.code < 0 else f"ended with exit code {self.code}"


def run(argv: Sequence[str], within_s: float, *, leaves_nothing: bool = False) -> Ended:
    """Run a program, by its absolute path, and wait for its end; one whose time is up is killed with its session.

    It dies with the thread that calls this, so nobody else may wait for it.

    Args:
        argv: the program and its arguments; an argument is never taken for anything else.
        within_s: how long it may take.
        leaves_nothing: what it has started in its own session is killed at its end.

    Raises:
        OSError: the kernel makes no process now.
    """
    launcher = [sys.executable, "-I", "-m", __name__, str(os.getpid()), *argv]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        launcher, bufsize=0, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=ENVIRONMENT, cwd="/",
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    tails = {process.stdout: b"", process.stderr: b""}
    is_over = False
    try:
        is_over = _follow(process.pid, tails, time.monotonic() + within_s)
    finally:
        if leaves_nothing or not is_over:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # before it is waited for: until then its number is its own
        code = process.wait()
        for file in tails:
            file.close()
    stdout, stderr = (raw.decode(errors="replace").strip()[-OUTPUT_KEPT:] for raw in tails.values())
    return Ended(tuple(argv), code if is_over else None, within_s, stdout, stderr)


def _follow(pid: int, tails: dict[IO[bytes], bytes], deadline_s: float) -> bool:
    """Read what it writes until it has ended or its time is up; whether it has ended."""
    end = os.pidfd_open(pid)
    try:
        files = {file.fileno(): file for file in tails}
        poller = select.poll()
        poller.register(end, select.POLLIN)
        for descriptor in files:
            os.set_blocking(descriptor, False)
            poller.register(descriptor, select.POLLIN)
        while (left_s := deadline_s - time.monotonic()) > 0:
            ready = [descriptor for descriptor, _ in poller.poll(left_s * 1_000)]
            if end in ready:
                for file in tails:
                    _read_rest(file, tails)
                return True
            for descriptor in ready:
                if _read(files[descriptor], tails) == b"":  # everybody has closed it
                    poller.unregister(descriptor)
        return False
    finally:
        os.close(end)


def _read_rest(file: IO[bytes], tails: dict[IO[bytes], bytes]) -> None:
    for _ in range(_LAST_CHUNKS):
        if not _read(file, tails):
            return


def _read(file: IO[bytes], tails: dict[IO[bytes], bytes]) -> bytes | None:
    """What is there now: nothing at the end of the file, None where more may come."""
    chunk: bytes | None = file.read(_CHUNK_BYTES)
    if chunk:
        tails[file] = (tails[file] + chunk)[-4 * OUTPUT_KEPT :]  # a character has four bytes at most
    return chunk


# ---- inside the process that becomes the program -------------------------------------------------------------------


def main() -> NoReturn:
    """Become the program."""
    parent_pid, *argv = sys.argv[1:]
    limits.die_with_parent(int(parent_pid))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, which an exec would hand down
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(argv[0], argv)  # noqa: S606 - no shell is what we want
    except OSError as error:
        sys.stderr.write(f"it cannot be executed: {error.strerror}\n")
        raise SystemExit(_NOT_EXECUTED) from error


if __name__ == "__main__":
    main()
