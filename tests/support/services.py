"""Real nginx and HAProxy for tests: in the foreground, on free ports, in a folder of their own, stopped by pid.

Where the tests run as root, the services run as `nobody`.
"""

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

START_S = 10.0
NOBODY = "nobody"


def wait_until(condition: Callable[[], object], what: str, within_s: float = START_S) -> None:
    """Poll until `condition` is true; fail the test with `what` when it is not within the deadline."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(0.005)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free, as the next one is (a controller takes two).

    It is none that the kernel gives out by itself, so that nobody has it when whoever listens there starts again.
    """
    lowest_given_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = random.randrange(10_000, lowest_given_out - 1)
        with contextlib.suppress(OSError), socket.socket(family) as one, socket.socket(family) as next_one:
            one.bind((host, port))
            next_one.bind((host, port + 1))
            return port


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections there now."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def service_folder() -> Iterator[Path]:
    """A temporary folder that belongs to the user whom the services run as."""
    folder = Path(tempfile.mkdtemp(prefix="brownout-test-"))
    try:
        if user := _unprivileged_user():
            os.chown(folder, user.pw_uid, user.pw_gid)
        yield folder
    finally:
        shutil.rmtree(folder)


def _unprivileged_user() -> pwd.struct_passwd | None:
    return pwd.getpwnam(NOBODY) if os.geteuid() == 0 else None


@dataclass
class Service:
    """A program that can be killed and started again with the same configuration."""

    argv: list[str]
    folder: Path
    is_ready: Callable[[], object]
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Start it and wait until it is ready. Raises AssertionError with its own words when it is not."""
        user = _unprivileged_user()
        with open(self._errors, "wb") as errors:
            self.process = subprocess.Popen(
                self.argv,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                user=user and user.pw_uid,
                group=user and user.pw_gid,
                extra_groups=user and [],
            )
        try:
            wait_until(lambda: self.process.poll() is not None or self.is_ready(), f"{self.argv[0]} is ready")
            assert self.process.poll() is None, f"{self.argv[0]} ended: {self._errors.read_text()}"
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, as a crash; returns when the process is gone."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: its kernel still accepts connections, and it answers none."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    @property
    def _errors(self) -> Path:
        return self.folder / f"{Path(self.argv[0]).name}.stderr"


@contextlib.contextmanager
def running(service: Service) -> Iterator[Service]:
    """The service, started; killed at the end, however often the test killed and started it."""
    service.start()
    try:
        yield service
    finally:
        service.kill()


@contextlib.contextmanager
def nginx(server_block: str, port: int, files: Mapping[str, bytes] | None = None) -> Iterator[Service]:
    """One single-process nginx that listens on 127.0.0.1:`port` at least.

    `server_block` holds the directives of its one server; `{folder}` in it is the folder that holds `files`.

    SIGKILL of it is the death of the server: there is no worker that outlives a master.
    """
    with service_folder() as folder:
        scratch = " ".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        (folder / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr warn;\n"
            "events { worker_connections 256; }\n"
            f"http {{ {scratch} access_log off; default_type text/plain;\n"
            f"server {{ {server_block.replace('{folder}', str(folder))} }} }}\n"
        )
        argv = ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        with running(Service(argv, folder, lambda: listens(port))) as service:
            yield service


@contextlib.contextmanager
def app_server(name: str, port: int) -> Iterator[Service]:
    """An nginx that answers 200 everywhere and says who it is in X-Served-By."""
    block = f'listen 127.0.0.1:{port}; add_header X-Served-By {name} always; location / {{ return 200 "ok\\n"; }}'
    with nginx(block, port) as service:
        yield service


@dataclass
class Haproxy:
    """A running HAProxy and its runtime socket."""

    service: Service
    socket: Path

    def command(self, line: str) -> str:
        """Say one line to the runtime socket and return what it answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            connection.sendall(line.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65_536), b"")).decode()


@contextlib.contextmanager
def haproxy(sections: str, log_socket: Path | None = None) -> Iterator[Haproxy]:
    """One HAProxy with these `frontend`, `backend` and `listen` sections; it logs to a datagram socket if asked to."""
    with service_folder() as folder:
        runtime_socket = folder / "admin.sock"
        log = f"  log {log_socket} len 2048 local0 info\n" if log_socket else ""
        (folder / "haproxy.cfg").write_text(
            f"global\n  stats socket {runtime_socket} mode 600 level admin\n{log}"
            f"defaults\n  mode http\n{'  log global' if log_socket else ''}\n"
            "  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n  timeout check 300ms\n"
            f"{sections}\n"
        )
        argv = ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]
        service = Service(argv, folder, lambda: _accepts(runtime_socket))
        with running(service):
            yield Haproxy(service, runtime_socket)


def _accepts(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        return True
    return False


@dataclass
class LogLines:
    """What was logged to a datagram socket, each line with CLOCK_BOOTTIME (ns) of its receipt."""

    path: Path
    lines: list[tuple[int, str]] = field(default_factory=list)

    def first(self, text: str, after_ns: int = 0) -> int:
        """When the first line with `text` came after `after_ns`; 0 when there is none yet."""
        return next((at_ns for at_ns, line in list(self.lines) if text in line and at_ns > after_ns), 0)


@contextlib.contextmanager
def log_receiver() -> Iterator[LogLines]:
    """A unix datagram socket that anybody may log to, read by a thread that stamps each line when it comes."""
    with service_folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        log = LogLines(folder / "log.sock")
        receiver.bind(str(log.path))
        log.path.chmod(0o666)

        def read() -> None:
            while line := receiver.recv(8_192):
                log.lines.append((time.clock_gettime_ns(time.CLOCK_BOOTTIME), line.decode("utf-8", "replace")))

        reader = threading.Thread(target=read, name="log receiver")
        reader.start()
        try:
            yield log
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"", str(log.path))  # an empty line ends the thread
            reader.join()
