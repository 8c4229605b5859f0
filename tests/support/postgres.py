"""A real PostgreSQL of the test's own: in a temporary folder, as an unprivileged user, reached by a unix socket.

It ends with the test's process, however that ends, and no cluster of the machine is touched.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.support.polling import wait_until

DEBIAN = Path("/usr/lib/postgresql")
_UP_WITHIN_S = 30.0
_NOBODYS = ("postgres", "nobody")


@dataclass
class Postgres:
    """A server; `pause`, `kill` and `start` are for whoever wants to see what its clients do then."""

    folder: Path
    settings: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = {"listen_addresses": "", **self.settings}
        options = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]
        argv = [program("postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder), *options]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen([*as_nobody("--pdeathsig=QUIT"), *argv], stdout=log, stderr=log)
        wait_until(self._answers, "PostgreSQL", _UP_WITHIN_S)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends it in good order, SIGQUIT as a crash does."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(30)

    def address(self, database: str) -> str:
        return f"postgresql://brownout@/{database}?host={self.folder}"

    def make_database(self) -> str:
        """A fresh one; returns its address."""
        name = f"b{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.address("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.address(name)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.address("postgres"), connect_timeout=2).close()
            return True
        return False


def program(name: str) -> str:
    """A program of the newest PostgreSQL that Debian has installed; it keeps them off PATH."""
    found = sorted(DEBIAN.glob(f"[0-9]*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    assert found, f"no {name} below {DEBIAN}; next: apt-get install postgresql"
    return str(found[-1])


def as_nobody(*options: str) -> list[str]:
    """What to put before a command so that it runs unprivileged; PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return ["setpriv", *options]
    user = _nobody()
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *options]


def _nobody() -> pwd.struct_passwd:
    for name in _NOBODYS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError(f"none of the users {_NOBODYS} is here")


@contextlib.contextmanager
def postgres(**settings: str) -> Iterator[Postgres]:
    """A server with these settings; nothing of it stays."""
    folder = Path(tempfile.mkdtemp(prefix="brownout-postgres-"))
    try:
        if os.geteuid() == 0:
            os.chown(folder, _nobody().pw_uid, _nobody().pw_gid)
        argv = [
            program("initdb"),
            "-D",
            str(folder / "data"),
            "-U",
            "brownout",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        done = subprocess.run([*as_nobody(), *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        server = Postgres(folder, settings)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)  # nothing of it is wanted any more
    finally:
        shutil.rmtree(folder)
