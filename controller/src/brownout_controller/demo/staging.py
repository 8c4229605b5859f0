"""A staging network on one machine: `edge` with HAProxy before `app-1` and `app-2` with nginx, and a place beside them.

Needs root. Everything carries the network's four hex digits, and `/run/brownout-staging/<digits>/owner.json` says
which process it belongs to, so that the next one can clear away what a killed one left and never what is in use.
"""

import errno
import json
import os
import secrets
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from types import TracebackType
from typing import Self

from brownout_agent.kernel.clock import boot_id
from brownout_agent.kernel.processes import ProcessKey, is_alive, key_of, send_signal

from brownout_controller.demo import network, services
from brownout_controller.demo.leftovers import FOLDERS, MARK, marked_processes, mount_points
from brownout_controller.demo.network import ADDRESSES

READY_WITHIN_S = 15.0
STOP_WITHIN_S = 5.0
"""How long a program may take to end after SIGTERM, before SIGKILL."""

REMOVAL_ROUNDS = 5


class StagingError(Exception):
    """The staging network could not be brought up; the text says which part, why, and what the part said."""


class Staging:
    """The network, up from `__enter__` to `__exit__`; `with Staging() as staging: ...`.

    Raises (on entry):
        StagingError: a program did not start or did not get ready within 15 s.
        network.CommandFailed: the kernel or `ip` refused a namespace or a link.
    """

    def __init__(self) -> None:
        self.name = ""
        self.folder = FOLDERS
        self._had_netns_mount = True
        self._running: list[subprocess.Popen[bytes]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        remove_abandoned()
        self._had_netns_mount = str(network.NETNS) in mount_points()
        self.name = _claim()
        self.folder = FOLDERS / self.name
        with self._stack:
            self._stack.callback(self._remove)
            network.create(self.name)
            self._start_services()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def url(self, host: str = "edge") -> str:
        """Where the shop answers, as seen from inside: the edge's, or one server's own."""
        return f"http://{ADDRESSES[host].v4}:{services.SHOP_PORT}"

    @property
    def haproxy_socket(self) -> Path:
        """HAProxy's runtime socket, for everybody, on the level that only looks."""
        return self.path("edge", "haproxy") / "runtime.sock"

    def path(self, host: str, name: str = "") -> Path:
        """A host's own folder, or a file in it."""
        return self.folder / host / name

    def popen(
        self,
        host: str,
        argv: Sequence[str | Path],
        *,
        log: str = "",
        as_nobody: bool = False,
        unprivileged: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start a program in a host's namespace; it is stopped with the network at the latest.

        What it says goes to `<host>/<log>.log`, named after the program unless said.
        """
        words = [str(word) for word in argv]
        with self.log(host, log or Path(words[0]).name).open("ab") as output:
            process = subprocess.Popen(
                self.command(host, words, as_nobody=as_nobody, unprivileged=unprivileged),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.path(host),
                env=self.environment,
                start_new_session=True,  # Ctrl-C reaches only us, and the programs are stopped in order
            )
        self._running.append(process)
        return process

    def command(
        self, host: str, argv: Sequence[str], *, as_nobody: bool = False, unprivileged: bool = False
    ) -> list[str]:
        """The argv that runs `argv` in a host's namespace; start it with `environment` to have it found again."""
        name = network.namespace(self.name, host)
        return network.inside(name, argv, as_nobody=as_nobody, unprivileged=unprivileged)

    @property
    def environment(self) -> dict[str, str]:
        """Ours, and the mark by which everything started in this network is found."""
        return os.environ | {MARK: self.name}

    def log(self, host: str, program: str) -> Path:
        """What a program on a host has said so far: `log("edge", "haproxy")` is HAProxy's own log."""
        return self.path(host, f"{program}.log")

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """End a program by SIGTERM, by SIGKILL after 5 s; its exit code."""
        process.terminate()
        try:
            return process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def await_ready(self, what: str, ready: Callable[[], bool], within_s: float = READY_WITHIN_S) -> None:
        """Poll until `ready` says so; an OSError counts as not yet.

        Raises:
            StagingError: time is up, or a program in the background has ended meanwhile; with the last lines of it.
        """
        deadline = time.monotonic() + within_s
        while not _quietly(ready):
            dead = [process for process in self._running if process.poll() not in (None, 0)]
            if dead or time.monotonic() > deadline:
                raise StagingError(f"{what} did not get ready within {within_s:g} s.\n{self._last_words()}")
            time.sleep(0.02)

    def _start_services(self) -> None:
        for host in ADDRESSES:
            self.path(host).mkdir()
        for host in ("app-1", "app-2"):
            folder = self._folder_of_nobody(host, "nginx")
            configuration = self.path(host, "nginx.conf")
            configuration.write_text(services.nginx_configuration(host, folder))
            nginx: list[str | Path] = ["nginx", "-p", folder, "-e", "stderr", "-c", configuration]
            self.popen(host, nginx, as_nobody=True)
        folder = self._folder_of_nobody("edge", "haproxy")
        configuration = self.path("edge", "haproxy.cfg")
        configuration.write_text(services.haproxy_configuration("edge", self.haproxy_socket))
        self.popen("edge", ["haproxy", "-db", "-f", configuration], as_nobody=True)
        # HAProxy's passed check of a server proves that server as well, through the network that users take.
        self.await_ready("the shop", self._both_servers_are_up)

    def _folder_of_nobody(self, host: str, program: str) -> Path:
        folder = self.path(host, program)
        folder.mkdir()
        os.chown(folder, network.NOBODY, network.NOBODY)
        return folder

    def _both_servers_are_up(self) -> bool:
        states = services.server_states(self.haproxy_socket)
        return len(states) == 2 and all(state == "UP (L7OK)" for state in states.values())

    def _last_words(self) -> str:
        logs = sorted(self.folder.glob("*/*.log"))
        tails = ((path, path.read_text(errors="replace").splitlines()[-3:]) for path in logs)
        return "\n".join(f"{path.relative_to(self.folder)}: {line}" for path, lines in tails for line in lines)

    def _remove(self) -> None:
        while self._running:
            self.stop(self._running.pop())
        remove(self.name)
        if not self._had_netns_mount:
            _unmount_netns()


def remove(name: str) -> None:
    """End what runs in a staging network, then delete its namespaces and its folder. Idempotent."""
    # One that is ending may have started another meanwhile, as an injector does its watchdog.
    for _ in range(REMOVAL_ROUNDS):
        _end(set(marked_processes(name)) | _inhabitants(name))
    network.remove(name)
    shutil.rmtree(FOLDERS / name, ignore_errors=True)
    with suppress(OSError):  # not empty: other networks live in it
        FOLDERS.rmdir()


def remove_abandoned() -> list[str]:
    """Remove every staging network whose owner is dead; the names of them."""
    names = [folder.name for folder in FOLDERS.glob("????") if _is_abandoned(folder)]
    for name in names:
        remove(name)
    return names


def _unmount_netns() -> None:
    """Undo what iproute2 does at its first use and leaves: it mounts /run/netns on itself (ip-netns(8)).

    A namespace that somebody adds meanwhile is safe: umount then finds the mount in use, or rmdir the folder.
    """
    if str(network.NETNS) in mount_points() and not any(network.NETNS.iterdir()):
        subprocess.run(["umount", network.NETNS], check=False, capture_output=True)
        with suppress(OSError):
            network.NETNS.rmdir()


def _claim() -> str:
    """A free name, and on disk whose it is, before anything else of it exists.

    The folder gets its name with the record in it, at one stroke: a folder without a record is nobody's.
    """
    FOLDERS.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="claim-", dir=FOLDERS))
    folder.chmod(0o755)
    owner = key_of(os.getpid())
    assert owner is not None
    (folder / "owner.json").write_text(json.dumps({"boot": boot_id(), "process": owner.as_json()}))
    while True:
        name = secrets.token_hex(2)
        try:
            folder.rename(FOLDERS / name)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            return name


def _is_abandoned(folder: Path) -> bool:
    try:
        owner = json.loads((folder / "owner.json").read_text())
    except FileNotFoundError:
        return folder.is_dir()  # else its owner has removed it just now
    return owner["boot"] != boot_id() or not is_alive(ProcessKey.from_json(owner["process"]))


def _inhabitants(name: str) -> set[ProcessKey]:
    pids = (pid for namespace in network.existing(name) for pid in network.pids_in(namespace))
    return {key for pid in pids if (key := key_of(pid)) is not None}


def _end(processes: Iterable[ProcessKey]) -> None:
    """SIGTERM to each, SIGKILL to those that outlast the bound. They need not be our children."""
    remaining = list(processes)
    for number in (SIGTERM, SIGKILL):
        remaining = _signal_and_wait(remaining, number)


def _signal_and_wait(processes: Iterable[ProcessKey], number: Signals) -> list[ProcessKey]:
    """Signal each and wait for all to end; those that have not within 5 s."""
    poller = select.poll()
    waiting: dict[int, ProcessKey] = {}
    for key in processes:
        if send_signal(key, number) and (descriptor := _watch(key)) is not None:
            waiting[descriptor] = key
            poller.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + STOP_WITHIN_S
    while waiting and (left_s := deadline - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(left_s * 1_000):
            poller.unregister(descriptor)
            os.close(descriptor)
            del waiting[descriptor]
    for descriptor in waiting:
        os.close(descriptor)
    return list(waiting.values())


def _watch(key: ProcessKey) -> int | None:
    """A descriptor that becomes readable when the process ends (pidfd_open(2)), or None when it has ended."""
    try:
        return os.pidfd_open(key.pid)
    except ProcessLookupError:
        return None


def _quietly(attempt: Callable[[], bool]) -> bool:
    try:
        return attempt()
    except OSError:
        return False
