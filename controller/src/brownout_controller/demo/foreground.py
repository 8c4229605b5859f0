"""What the one who runs the demo sees: our lines, and a program of ours live on the same terminal."""

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
    """A program on our terminal and in our process group, so that it shows its progress and hears Ctrl-C itself.

    Leaving waits for its end. Leaving by an exception first lets it undo its faults.
    """
    process = subprocess.Popen(argv, env=environment)
    try:
        yield process
        process.wait()
    except BaseException:
        _let_it_undo(process)
        raise


def _let_it_undo(process: "subprocess.Popen[bytes]") -> None:
    """Ctrl-C reached it already, and a second one would detach it: so wait first, and only then pass a signal on."""
    for end in (None, process.terminate, process.kill):
        if end is not None:
            end()
        try:
            process.wait(INTERRUPT_WITHIN_S)
        except subprocess.TimeoutExpired:
            continue
        return
