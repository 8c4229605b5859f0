"""Starting again what a fault has killed: what is recorded of a process before, and the detached start after.

As a program (`python -m brownout_agent.faults.process_start`) it reads from stdin what is to run, and starts what is
missing of it as nobody's child, so that it outlives the injector and leaves it no zombies.

However many of them there are and whatever dies, a program is started once: each *starter* takes a lock of the kernel's
before it counts, and its fork has that lock until its exec is done. So who has the lock sees all that was started.
"""

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brownout_agent.faults import process_cgroups
from brownout_agent.faults.contract import Refusal
from brownout_agent.faults.process_match import Process, read_link, read_process, read_processes
from brownout_agent.kernel import limits
from brownout_agent.kernel.locks import lock_byte
from brownout_agent.kernel.processes import PROC

_TIMEOUT_S = 20.0
_OTHERS_TIMEOUT_S = 10.0
"""How long a starter waits for another one of the same program."""
_POLL_S = 0.02
_ARG_END = 46
"""Where field 49 of /proc/PID/stat, arg_end, is behind the command's name (proc(5))."""
_STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NGINX_TITLE = "nginx: master process "
_NGINX_OPTIONS = frozenset({"-c", "-p", "-e", "-g"})


class StartFailed(OSError):
    """What was killed could not be started again; the text says why."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a process runs, without the title that it may have put over its arguments, and whether here or in a
    container's network. Processes of equal programs can stand in for each other."""

    exe: str
    argv: tuple[str, ...]
    own_network: bool = True

    @classmethod
    def of(cls, process: Process) -> "Program":
        return cls(process.exe, untitled(process.argv), process.own_network)

    @property
    def digest(self) -> str:
        """The same for equal programs, and without their arguments, which may hold secrets."""
        return hashlib.sha256("\0".join((self.exe, *self.argv)).encode(errors="surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Image:
    """All that it takes to start a process again. Holds its environment, hence secrets: it rests in the journal, which
    only root may read, and passes between processes by pipe, never on a command line."""

    exe: str
    argv: list[str]
    cwd: str
    environ: list[str]
    uid: int
    gid: int
    groups: list[int]
    cgroups: list[str]
    """Its cgroup's folder in each mounted hierarchy. In the injector's, a stop of the injector's service would end it.
    """

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def instances(program: Program, processes: list[Process]) -> list[Process]:
    """The processes that run a program, without those that they forked themselves (a server's workers). Pure."""
    equal = {process.key.pid: process for process in processes if Program.of(process) == program}
    return [process for process in equal.values() if process.parent_pid not in equal]


def record_image(process: Process) -> Image:
    """What it takes to start this process again.

    Raises:
        Refusal: it could not be started again as it was.
    """
    argv = startable_argv(process)
    if not Path(process.exe).is_file():
        raise Refusal(f"{process.text} could not be started again: its program {process.exe!r} is not a file here")
    try:
        if not (process.own_network and _shares_our_view(process.key.pid)):
            raise Refusal(
                f"{process.text} runs in a container, which only its own runtime can start again",
                "leave `restart` out, or inject where the container runtime can restart it",
            )
        return _read_image(process, argv)
    except OSError as error:
        raise Refusal(f"{process.text} cannot be recorded for its restart: {error}", "leave `restart` out") from error


def _read_image(process: Process, argv: list[str]) -> Image:
    folder = PROC / str(process.key.pid)
    status = dict(line.split(":\t", 1) for line in (folder / "status").read_text(errors="replace").splitlines())
    _refuse_borrowed_rights(process, status, (folder / "exe").stat().st_mode)
    image = Image(
        exe=process.exe,
        argv=argv,
        cwd=str((folder / "cwd").readlink()),
        environ=_environ(process, (folder / "environ").read_bytes(), has_title=argv != list(process.argv)),
        uid=process.uid,
        gid=int(status["Gid"].split()[1]),
        groups=[int(group) for group in status["Groups"].split()],
        cgroups=process_cgroups.folders(process.key.pid),
    )
    now = read_process(process.key.pid)
    if now is None or (now.key, now.exe, now.argv, now.uid) != (process.key, process.exe, process.argv, process.uid):
        raise Refusal(f"{process.text} became another program while it was looked at", "try again")
    return image


def _refuse_borrowed_rights(process: Process, status: dict[str, str], exe_mode: int) -> None:
    """Refuse what has its rights from its file and its arguments and environment from whoever started it. Pure.

    The kernel has the loader of such a program ignore LD_PRELOAD and the like (AT_SECURE, getauxval(3)), but
    /proc/PID/environ still shows them; started by root they would count, and anybody's code would run as root.
    """
    ids = [set(status[name].split()) for name in ("Uid", "Gid")]
    if exe_mode & (stat.S_ISUID | stat.S_ISGID) or any(len(several) > 1 for several in ids):
        raise Refusal(
            f"{process.text} has its rights from a set-user-id or set-group-id program, and not from who started it",
            "leave `restart` out",
        )


def _environ(process: Process, raw: bytes, *, has_title: bool) -> list[str]:
    """The environment in /proc/PID/environ. A title runs on over it: what it held is lost, and only NULs are left."""
    if not has_title:
        return [os.fsdecode(pair) for pair in raw.split(b"\0") if b"=" in pair]
    if not raw.endswith(b"\0\0"):
        raise Refusal(f"the title of {process.text} has no room for all its arguments", "leave `restart` out")
    # Also what gives the next title its room.
    return [f"PATH={_STANDARD_PATH}"]


def untitled(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments of an nginx master, which titles itself with them, joined by blanks; others as they are. Pure."""
    if len(argv) != 1 or not argv[0].startswith(_NGINX_TITLE):
        return argv
    words: list[str] = []
    for word in argv[0].removeprefix(_NGINX_TITLE).split(" "):
        # What follows `-g` is one argument that may hold blanks: `-g daemon off;`.
        if len(words) > 1 and words[-2] == "-g" and word not in _NGINX_OPTIONS:
            words[-1] += f" {word}"
        else:
            words.append(word)
    return tuple(words)


def startable_argv(process: Process) -> list[str]:
    """The arguments that a process was started with. Pure.

    Raises:
        Refusal: it has put a title over them that does not tell.
    """
    argv = list(untitled(process.argv))
    if len(argv) == 1 and " " in argv[0]:
        raise Refusal(
            f"{process.text} has overwritten its command line with the title `{argv[0]}`, so nobody can tell how it "
            "was started",
            "leave `restart` out, or run it as a systemd service",
        )
    return argv


def _shares_our_view(pid: int) -> bool:
    """True when paths and pids mean the same to it and to us, so that we can start it as it was."""
    theirs, ours = (PROC / str(pid) / "root").stat(), Path("/").stat()
    same_files = (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
    return same_files and read_link(pid, "ns/pid") == read_link(os.getpid(), "ns/pid")


def refuse_where_nothing_starts() -> None:
    """Look whether `start` would find a place for its lock.

    Raises:
        Refusal: it would not.
    """
    folder = _lock_folder()
    if not process_cgroups.systemd_unit(os.getpid()) and not os.access(folder, os.W_OK):
        raise Refusal(f"nothing could be started again: {folder} cannot be written", "leave `restart` out")


def start(program: Program, count: int, images: list[dict[str, Any]]) -> None:
    """Start what is missing of `count` instances of a program, detached: own session, stdio on /dev/null.

    Where we are a service of systemd's, systemd starts them: what we started would be born with all that confines us.

    Raises:
        StartFailed: not all of them could be started; the text says which and why.
    """
    argv = [sys.executable, "-I", "-m", __name__]
    text = json.dumps({"program": asdict(program), "count": count, "images": images}).encode()
    if not process_cgroups.systemd_unit(os.getpid()):
        _run([*argv, str(os.getpid())], text)
        return
    memory = os.memfd_create("brownout-images")  # on no disk and in no unit file: it holds environments
    try:
        os.write(memory, text)
        service = ["--service-type=oneshot", "--property=KillMode=process"]
        service += [f"--property=StandardInput=file:/proc/{os.getpid()}/fd/{memory}"]
        _run(["systemd-run", "--quiet", "--collect", *service, "--", *argv])
    finally:
        os.close(memory)


def restart_unit(unit: str) -> None:
    """Have systemd restart a service.

    Raises:
        StartFailed: systemctl failed; the text is its own.
    """
    _run(["systemctl", "restart", "--", unit])


def _run(argv: list[str], standard_input: bytes = b"") -> None:
    try:
        done = subprocess.run(argv, input=standard_input, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartFailed(f"{' '.join(argv)}: {error}") from error
    if done.returncode:
        raise StartFailed(f"{' '.join(argv)}: {done.stderr.decode(errors='replace').strip()}")


def count_running(program: Program) -> int:
    """How many instances of a program run now."""
    return len(instances(program, read_processes()))


# ---- inside the program that starts them ------------------------------------------------------------------------


def main() -> None:
    """Start what stdin says; exit code 1 and a text on stderr when one of them cannot be.

    With a pid for its argument it dies with that parent, who would undo nothing more.
    """
    if len(sys.argv) > 1:
        limits.die_with_parent(int(sys.argv[1]))
    order = json.load(sys.stdin)
    plain = order["program"]
    program = Program(plain["exe"], tuple(plain["argv"]), bool(plain["own_network"]))
    deadline = time.monotonic() + _OTHERS_TIMEOUT_S
    _be_the_only_starter(program, deadline)
    missing = max(0, int(order["count"]) - _count_settled(program, deadline))
    images = [Image(**image) for image in order["images"][:missing]]
    failures = [f"cannot start {image.exe}: {error}" for image in images if (error := _start_detached(image))]
    if failures:
        raise SystemExit("; ".join(failures))


def _be_the_only_starter(program: Program, deadline: float) -> None:
    """Returns when no other process is starting this program; from then on no other does until we and our forks end.

    The lock is in a file of our user's that nobody else may open, one byte of it for each program.
    """
    path = _lock_folder() / f"brownout-starts-{os.geteuid()}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.fstat(descriptor).st_uid != os.geteuid():
        raise SystemExit(f"{path} belongs to somebody else; next: remove it")
    digest = hashlib.sha256(json.dumps(asdict(program)).encode()).digest()
    while not lock_byte(descriptor, int.from_bytes(digest[:7])):
        if time.monotonic() > deadline:
            raise SystemExit(f"another start of {program.exe} does not come to its end")
        time.sleep(_POLL_S)  # waiting for a lock knows no deadline


def _lock_folder() -> Path:
    """Not on a disk: whatever becomes of disks, what was killed must come back."""
    return Path("/run") if os.geteuid() == 0 else Path(tempfile.gettempdir())


def _count_settled(program: Program, deadline: float) -> int:
    """How many instances run, once none of its processes is in mid-exec, where arguments come after locks have gone."""
    while True:
        everyone = read_processes()
        blank = [process.key.pid for process in everyone if process.exe == program.exe and not process.argv]
        if not any(map(_is_in_exec, blank)):
            return len(instances(program, everyone))
        if time.monotonic() > deadline:
            raise SystemExit(f"a process of {program.exe} has not come to run; its pid is one of {blank}")
        time.sleep(_POLL_S)


def _is_in_exec(pid: int) -> bool:
    """Whether a process that showed no arguments has none yet, or has got them since; False when it is gone."""
    try:
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return fields[_ARG_END] == b"0" or bool((PROC / str(pid) / "cmdline").read_bytes().strip(b"\0"))
    except (FileNotFoundError, ProcessLookupError):
        return False


def _start_detached(image: Image) -> str:
    """Fork, and exec in the fork; returns why that failed, "" when the program runs.

    The fork is not waited for: when this program ends, init adopts it.
    """
    heard, told = os.pipe()  # closed by a successful exec (O_CLOEXEC), which is how success is heard of
    if os.fork() == 0:
        try:
            _become(image)
        except OSError as error:
            os.write(told, str(error).encode())
        finally:
            os._exit(127)
    os.close(told)
    with open(heard, "rb") as pipe:
        return pipe.read().decode(errors="replace")


def _become(image: Image) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if os.geteuid() == 0:
        process_cgroups.join(image.cgroups)
        os.setgroups(image.groups)
        os.setgid(image.gid)
        os.setuid(image.uid)
    os.chdir(image.cwd)
    environ = dict(pair.split("=", 1) for pair in image.environ)
    os.execve(image.exe, image.argv, environ)  # noqa: S606 - no shell is what we want


if __name__ == "__main__":
    main()
