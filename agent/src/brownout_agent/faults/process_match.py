"""Which processes a process fault means: the parameters that process faults share, and what they match on this host."""

import difflib
import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from brownout_agent.faults.contract import FaultParameters, Host, Refusal
from brownout_agent.faults.process_places import NobodyMatches, in_group, in_unit, on_port
from brownout_agent.kernel.cgroups import GROUP_PATTERN, UNIT_PATTERN
from brownout_agent.kernel.processes import PROC, ProcessKey, all_pids, ancestors, read_stat

_COMM_LENGTH = 15
"""The kernel cuts command names to this length (TASK_COMM_LEN, proc(5))."""


class ProcessParameters(FaultParameters):
    """What every process fault takes. Several of them narrow the choice: a process must match all that are given.

    All but a `pid` are looked for in this host's own network namespace: a container with a network of its own is
    reached by `pid` only. The init process, kernel threads, Brownout's own processes and their ancestors,
    and the host's protected commands (sshd, systemd, ...) are never touched.
    """

    ways: ClassVar[tuple[str, ...]] = ("process", "pid", "command", "user", "port", "unit", "cgroup")
    """The parameters that choose."""
    process: Annotated[
        str | None,
        Field(min_length=1, max_length=255, description="exact name of the command or of its executable: nginx"),
    ] = None
    pid: Annotated[int | None, Field(ge=1, description="one process by its id")] = None
    command: Annotated[
        str | None, Field(min_length=1, max_length=4096, description="part of the command line: worker.py --queue mail")
    ] = None
    user: Annotated[str | None, Field(min_length=1, max_length=255, description="user name or uid that it runs as")] = (
        None
    )
    port: Annotated[
        int | None, Field(ge=1, le=65_535, description="the port on which it listens, TCP or UDP: 5432")
    ] = None
    unit: Annotated[
        str | None,
        Field(pattern=UNIT_PATTERN, max_length=255, description="the systemd unit it is of: nginx.service"),
    ] = None
    cgroup: Annotated[
        str | None,
        Field(
            pattern=GROUP_PATTERN,
            max_length=1_024,
            description="the control group that it is in, or above it, as /proc/PID/cgroup has it: /shop/web",
        ),
    ] = None
    tree: Annotated[bool, Field(description="with the children of those who match, their children, and so on")] = False

    @model_validator(mode="after")
    def _check(self) -> "ProcessParameters":
        if not self.given:
            raise ValueError(f"which process? Give {self._ways_in_words()}")
        if self.process is not None and "/" in self.process:
            name = self.process.rpartition("/")[2]
            raise ValueError(f"`process` is a name without a path: did you mean {name}?")
        return self

    @property
    def given(self) -> dict[str, str | int]:
        """By which of `ways` the order chooses, and what it says there."""
        return {way: value for way in self.ways if (value := getattr(self, way)) is not None}

    @property
    def text(self) -> str:
        """For people: `process nginx, user www-data`."""
        words = [f"{way} {value}" for way, value in self.given.items()]
        return ", ".join([*words, "with children"] if self.tree else words)

    @classmethod
    def _ways_in_words(cls) -> str:
        *others, last = (f"`{way}`" for way in cls.ways)
        return f"{', '.join(others)} or {last}"


@dataclass(frozen=True, slots=True)
class Process:
    """One process as /proc shows it. `exe` is "" and `argv` empty where there is none or it is not ours to read."""

    key: ProcessKey
    comm: str
    state: str
    parent_pid: int
    uid: int
    argv: tuple[str, ...]
    exe: str
    own_network: bool = True

    @property
    def is_kernel_thread(self) -> bool:
        return not self.argv and not self.exe

    @property
    def text(self) -> str:
        return f"{self.comm} (pid {self.key.pid})"


@dataclass(frozen=True, slots=True)
class Untouchable:
    """Whom no process fault may hit: our own are passed over in silence, protected commands refuse the order."""

    own_pids: frozenset[int]
    names: frozenset[str]

    @classmethod
    def of(cls, host: Host) -> "Untouchable":
        own = {os.getpid(), *ancestors(os.getpid()), *host.protected_pids}
        return cls(frozenset(own), frozenset(host.protected_names))


def read_process(pid: int) -> Process | None:
    """The process that has this pid now, None where there is none or only its remains (a zombie)."""
    stat = read_stat(pid)
    if stat is None or stat.state in "ZX":
        return None
    folder = PROC / str(pid)
    try:
        argv = split_argv((folder / "cmdline").read_bytes())
        status = (folder / "status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Process(
        key=ProcessKey(pid, stat.start_ticks),
        comm=stat.comm,
        state=stat.state,
        parent_pid=stat.parent_pid,
        # Not the owner of /proc/PID: that is root for every process that has changed its user (proc(5)).
        uid=next(int(line.split()[2]) for line in status.splitlines() if line.startswith("Uid:")),
        argv=argv,
        exe=read_link(pid, "exe").removesuffix(" (deleted)"),
        own_network=read_link(pid, "ns/net") in ("", read_link(os.getpid(), "ns/net")),
    )


def read_processes() -> list[Process]:
    """Every process of /proc, without zombies."""
    return [process for pid in all_pids() if (process := read_process(pid)) is not None]


def read_link(pid: int, name: str) -> str:
    """Where /proc/PID/`name` points, "" where it points nowhere (a kernel thread) or is not ours to read."""
    try:
        return str((PROC / str(pid) / name).readlink())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def split_argv(raw: bytes) -> tuple[str, ...]:
    """The arguments in /proc/PID/cmdline: each ends with a NUL. A title over them leaves only NULs behind it. Pure."""
    if not raw.rstrip(b"\0"):
        return ()
    # Undecodable bytes survive the way through JSON and back as surrogates (os.fsdecode).
    first, *rest = (os.fsdecode(part) for part in raw.removesuffix(b"\0").split(b"\0"))
    is_title = " " in first and not any(rest)
    return (first,) if is_title else (first, *rest)


def match(parameters: ProcessParameters, host: Host) -> list[Process]:
    """The processes that are meant, parents before their children. Touches nothing.

    Raises:
        Refusal: nobody matches, or somebody who must not be touched.
    """
    everyone = read_processes()
    chosen = select(parameters, uid_of(parameters), everyone, Untouchable.of(host), placed(parameters, everyone))
    for process in chosen:
        try:
            os.kill(process.key.pid, 0)
        except PermissionError as error:
            raise Refusal(f"{process.text} belongs to another user", "run the injector as root") from error
        except ProcessLookupError:
            continue  # gone since we looked: apply goes by the start time and will notice
    return chosen


def placed(parameters: ProcessParameters, processes: list[Process]) -> frozenset[int] | None:
    """The pids that are where `unit`, `cgroup` and `port` say; None where none of them is given.

    Raises:
        NobodyMatches: nobody is there.
    """
    pids = frozenset(process.key.pid for process in processes)
    there = pids
    if parameters.unit is not None:
        there &= in_unit(parameters.unit, pids)
    if parameters.cgroup is not None:
        there &= in_group(parameters.cgroup, pids)
    if parameters.port is not None:
        there &= on_port(parameters.port, pids)
    is_asked = any(getattr(parameters, way) is not None for way in ("unit", "cgroup", "port"))
    return there if is_asked else None


def select(
    parameters: ProcessParameters,
    uid: int | None,
    processes: list[Process],
    untouchable: Untouchable,
    there: frozenset[int] | None = None,
) -> list[Process]:
    """The choice among `processes`, parents before their children. Pure.

    Args:
        parameters: what an order says.
        uid: of the user that it names.
        processes: everyone.
        untouchable: whom it may not mean.
        there: what `placed` says.

    Raises:
        Refusal: as `match`.
    """
    wanted = [process for process in processes if _is_meant(process, parameters, uid, there)]
    if parameters.tree:
        wanted = with_descendants(wanted, processes)
    if parameters.pid is None:
        wanted = [process for process in wanted if process.key.pid not in untouchable.own_pids]
        elsewhere = [process for process in wanted if not process.own_network]
        wanted = [process for process in wanted if process.own_network and not process.is_kernel_thread]
        if not wanted and elsewhere:
            raise NobodyMatches(
                f"{parameters.text} matches only in other network namespaces: {listed(elsewhere)}",
                "name one process by `pid`, or inject on the host whose network that is",
            )
    if not wanted:
        raise NobodyMatches(f"no process matches {parameters.text}", _nearest(parameters, processes))
    for process in wanted:
        refuse_untouchable(process, untouchable)
    return _parents_first(wanted)


def with_descendants(roots: list[Process], processes: list[Process]) -> list[Process]:
    """These processes, and all among `processes` that they have started, by whatever steps. Pure."""
    children: dict[int, list[Process]] = {}
    for process in processes:
        children.setdefault(process.parent_pid, []).append(process)
    found = {process.key: process for process in roots}
    waiting = [*roots]
    while waiting:
        for child in children.get(waiting.pop().key.pid, []):
            if child.key not in found:
                found[child.key] = child
                waiting.append(child)
    return [*found.values()]


def _is_meant(process: Process, parameters: ProcessParameters, uid: int | None, there: frozenset[int] | None) -> bool:
    return (
        (there is None or process.key.pid in there)
        and (parameters.pid is None or process.key.pid == parameters.pid)
        and (parameters.process is None or parameters.process in _names_of(process))
        and (parameters.command is None or parameters.command in " ".join(process.argv))
        and (uid is None or process.uid == uid)
    )


def _names_of(process: Process) -> set[str]:
    names = {process.comm}
    if process.exe:
        names.add(process.exe.rpartition("/")[2])
    if process.argv and len(process.comm) == _COMM_LENGTH:
        # A longer name was cut; the command line has the rest of it.
        name = process.argv[0].rpartition("/")[2]
        names |= {name} if name.startswith(process.comm) else set()
    return names


def refuse_untouchable(process: Process, untouchable: Untouchable) -> None:
    """Raises Refusal for a process that no fault may touch. Pure."""
    remedy = "narrow the match with `process`, `command`, `user`, `unit` or `pid`"
    if process.key.pid == 1:
        raise Refusal("pid 1 is this host's init process, which no fault touches", remedy)
    if process.key.pid in untouchable.own_pids:
        raise Refusal(f"{process.text} is part of Brownout or an ancestor of it, which no fault touches", remedy)
    if process.is_kernel_thread:
        raise Refusal(f"{process.text} is a kernel thread, which no fault touches", remedy)
    if not untouchable.names.isdisjoint(_names_of(process)):
        raise Refusal(f"{process.text} is protected on this host", remedy)


def _parents_first(processes: list[Process]) -> list[Process]:
    """A parent that lives would bring its children back; so it comes before them."""
    by_pid = {process.key.pid: process for process in processes}

    def depth(process: Process) -> int:
        steps = 0
        while (parent := by_pid.get(process.parent_pid)) is not None and steps < len(by_pid):
            process, steps = parent, steps + 1
        return steps

    return sorted(processes, key=lambda process: (depth(process), process.key))


def _nearest(parameters: ProcessParameters, processes: list[Process]) -> str:
    if parameters.process is None:
        return "look for it with `ps -ef` on the host"
    names = sorted({process.comm for process in processes if not process.is_kernel_thread})
    near = difflib.get_close_matches(parameters.process, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"running here: {', '.join(names[:12])}"


def uid_of(parameters: ProcessParameters) -> int | None:
    """Of the user that was asked for, None for any.

    Raises:
        Refusal: this host has no such user.
    """
    user = parameters.user
    try:
        return None if user is None else int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise Refusal(f"this host has no user {user}", "check it with `getent passwd`") from error


def listed(processes: Iterable[Process]) -> str:
    """For people: up to five of them by name and pid, and how many more there are. Pure."""
    texts = [process.text for process in processes]
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")
