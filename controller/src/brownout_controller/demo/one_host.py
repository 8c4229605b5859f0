"""What the demo shows without root: one service on this machine stands still, or the machine gets busy."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Host

from brownout_controller.demo.foreground import experiment, foreground, program, say


def run(report_dir: Path, obstacle: str) -> int:
    """Run what needs no privilege, and say what was left out and why; the run's exit code."""
    say(f"Left out: the staging network with HAProxy, its failover and every network fault, since {obstacle}.")
    say("Shown instead: one small web service on 127.0.0.1, and this machine's own faults.")
    pause = catalogue()["process.pause"].detect(Host())
    if pause.able:
        chosen = experiment("getting-started/pause-a-service")
    else:
        chosen = experiment("getting-started/busy-cpu")
        say(f"Left out: process.pause, since {pause.reason}.")
    with _web_service() as (pid, url), tempfile.TemporaryDirectory() as data:
        say(f"  service   python -m http.server, pid {pid}, {url}\n")
        argv: list[str | Path] = [program("brownout"), "run", chosen, "--data-dir", data, "--report-dir", report_dir]
        argv += ["--report", "html,md,json", "--var", f"url={url}"]
        argv += ["--var", f"pid={pid}"] if pause.able else []
        with foreground(argv) as process:
            pass
    say("\nThe service is stopped; nothing else was started.")
    return process.returncode


@contextmanager
def _web_service() -> Iterator[tuple[int, str]]:
    """A web server of our own: its pid and URL. It chooses its port itself and says which."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder]
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        try:
            assert process.stdout is not None
            announced = process.stdout.readline()  # Serving HTTP on 127.0.0.1 port 41789 (http://127.0.0.1:41789/) ...
            yield process.pid, announced.partition("(")[2].partition(")")[0]
        finally:
            process.terminate()
            process.communicate()
