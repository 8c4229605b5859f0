"""What the one who runs the demo sees: our lines, and a program of ours live on the same terminal."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

INTERRUPT_WITHIN_S = 15.0
"""How long an interrupted run may take to undo its faults and say so."""


def say(text: str = "") -> None:
    """One line of the story: progress, so on standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def program(name: str) -> Path:
    """One of our own commands, from where this one runs."""
    return Path(sys.executable).parent / name


def experiment(name: str) -> Path:
    """A ready-made experiment, such as `getting-started/lose-an-app-server`."""
    return Path(str(resources.files("brownout_controller") / "experiments" / f"{name}.yaml"))


@contextmanager
def foreground(
    argv: Sequence[str | Path], environment: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that shows its progress on our terminal. Leaving waits for its end.

    Leaving by an exception interrupts it first, so that it undoes its faults. It has a process group of its own: Ctrl-C
    is ours alone to pass on, once, since a second one would make it leave the undoing to the hosts.
    """
    process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, process_group=0)
    try:
        yield process
        process.wait()
    except BaseException:
        _interrupt(process)
        raise


def _interrupt(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        process.send_signal(number)
        try:
            process.wait(INTERRUPT_WITHIN_S)
        except subprocess.TimeoutExpired:
            continue
        return
