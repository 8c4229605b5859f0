"""What the kernel shows of the faults of a host: processes by /proc, and whether datagrams arrive. No record is read.

Needs only the standard library, since it also runs inside hosts that have a kernel of their own.
"""

import contextlib
import ctypes
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.deaths import BY_GROUP, MARKS, NAME, FaultCase, Seen
from tests.support.standby import STANDBY, is_down

_PROC = Path("/proc")
_SETTLED_S = 2.0
"""A process this old has done its setns."""
_ARG_START = 45
"""Where field 48 of /proc/PID/stat is behind the command's name: another one with every exec."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CLONE_NEWNET = 0x40000000
_DATAGRAMS = 24
_DNS_PORT = 53
_QUERY = bytes.fromhex("0100 0001 0000 0000 0000")
"""A DNS header behind its id: one question, recursion desired."""
_QUEUED_S = 0.005
_CONNECT_TIMEOUT_S = 1.0
_NEXT_TO_NONE = 64
"""Descriptors, or processes of a group: no host of ours has so low limits of its own."""
GROUPS = Path("/sys/fs/cgroup")
UNLIMITED = frozenset({"", "0", "-1", "max", "max 100000", "THAWED", "9223372036854771712"})
"""What a control file says that limits nothing: of disks nothing at all, of memory in version 1 the largest number."""
_OURS = ("brownout-agent", "brownout-injector", "brownout_agent.injector.main", "brownout_agent.agent.main")


@dataclass(frozen=True)
class Process:
    """A process: its state letter is that of proc(5), `network` the inode of its network namespace."""

    pid: int
    line: str
    state: str
    network: int

    @property
    def is_dead(self) -> bool:
        """Whether only its entry is left, for a parent that has not looked yet."""
        return self.state in "ZX"


class ProcessReader:
    """Reads every process, and what cannot change of an older one only once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, bytes], tuple[str, int]] = {}

    def read(self) -> list[Process]:
        """All processes now."""
        found, known = [], {}
        now_ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS_PER_S
        for name in os.listdir(_PROC):  # noqa: PTH208 - twenty times a second
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError):
                fields = (_PROC / name / "stat").read_bytes().rpartition(b")")[2].split()
                key = (int(name), int(fields[19]), fields[_ARG_START])
                line, network = self._known.get(key) or _line_and_network(name)
                # In the middle of an exec the arguments have a place, and none are there; a kernel thread has no place.
                is_whole = bool(line) or fields[_ARG_START] == b"0"
                if is_whole and now_ticks - key[1] > _SETTLED_S * _TICKS_PER_S:
                    known[key] = (line, network)
                found.append(Process(key[0], line, fields[0].decode(), network))
        self._known = known
        return found


def _line_and_network(pid: str) -> tuple[str, int]:
    line = (_PROC / pid / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return line, (_PROC / pid / "ns/net").stat().st_ino


class Datagrams:
    """Sockets inside a network namespace, by which one sees what becomes of packets to a fault's target."""

    def __init__(self, namespace: Path | None, faults: Iterable[FaultCase]) -> None:
        """Opened in the namespace that this path names, in the own one without a path."""
        self._pairs: dict[str, tuple[socket.socket, socket.socket]] = {}
        targets = {fault.to: fault.seen for fault in faults if fault.to}
        opening = threading.Thread(target=self._open, args=(namespace, targets))
        opening.start()  # a namespace is entered by one thread, which ends here
        opening.join()
        assert len(self._pairs) == len(targets), f"no sockets in {namespace}"

    def _open(self, namespace: Path | None, targets: Mapping[str, Seen]) -> None:
        if namespace is not None:
            with namespace.open() as file:
                assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) == 0, "setns"
        for target, seen in targets.items():
            kind = socket.SOCK_STREAM if seen is Seen.RESET else socket.SOCK_DGRAM
            receiver = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
            receiver.bind((target, _DNS_PORT if seen is Seen.UNASKED else 9))
            sender = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
            if seen is Seen.RESET:
                receiver.listen()
                sender.settimeout(_CONNECT_TIMEOUT_S)
            else:
                sender.connect(receiver.getsockname())
            self._pairs[target] = (sender, receiver)

    def close(self) -> None:
        """Give the sockets back."""
        for pair in self._pairs.values():
            for one in pair:
                one.close()

    def arrived(self, target: str) -> int:
        """How many arrive of 24 datagrams sent now. The loopback delivers before send(2) returns, late, or never."""
        return self._arrived(target, os.urandom(8))

    def asked(self, target: str) -> int:
        """How many of 24 DNS queries arrive there now. One that passes through a queue may take its time there."""
        labels = NAME.format(to=target).split(".")
        question = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0\0\1\0\1"
        return self._arrived(target, os.urandom(2) + _QUERY + question, _QUEUED_S)

    def _arrived(self, target: str, look: bytes, patience_s: float = 0.0) -> int:
        sender, receiver = self._pairs[target]
        sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # an answer to an earlier one
        for _ in range(_DATAGRAMS):
            with contextlib.suppress(OSError):  # a rule in the way out says EPERM, which is a loss as well
                sender.send(look)
        count = 0
        while select.select([receiver], [], [], patience_s)[0]:
            with contextlib.suppress(BlockingIOError):  # one whose checksum is wrong is there until it is read
                count += receiver.recv(512) == look  # what an earlier look had sent is late
        return count

    def is_down(self, interface: str) -> bool:
        """Whether an interface of the namespace is down: a socket asks in the one that it was opened in."""
        sender, _ = next(iter(self._pairs.values()))
        return is_down(interface, sender)

    def is_reset(self, target: str) -> bool:
        """Whether a connection that is made there now is reset. A handshake over the loopback is done at once."""
        client, listener = self._pairs[target]
        try:
            client.connect((target, listener.getsockname()[1]))
            client.send(b"?")
            return False
        except ConnectionError:
            return True
        finally:
            _disconnect(client)
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()


def _disconnect(client: socket.socket) -> None:
    """Let a TCP socket connect anew: another one would be of another namespace."""
    unspecified = socket.AF_UNSPEC.to_bytes(16, "little")
    assert ctypes.CDLL(None).connect(client.fileno(), unspecified, len(unspecified)) == 0, "connect to AF_UNSPEC"


def faults_there(tags: Mapping[FaultCase, str], processes: list[Process], datagrams: Datagrams) -> set[str]:
    """The kinds of fault that are on. `tags` names each fault's victim by a word of its command line."""
    return {fault.kind for fault, tag in tags.items() if _is_there(fault, tag, processes, datagrams)}


def _is_there(fault: FaultCase, tag: str, processes: list[Process], datagrams: Datagrams) -> bool:
    match fault.seen:
        case Seen.HOLDER | Seen.CRASHING | Seen.CROWDED:
            return any(fault.kind in process.line for process in holders(processes))
        case Seen.SILENCE | Seen.LOSS | Seen.LATE:
            return datagrams.arrived(fault.to) < _DATAGRAMS
        case Seen.TWICE:
            return datagrams.arrived(fault.to) > _DATAGRAMS
        case Seen.UNASKED:
            return datagrams.asked(fault.to) < _DATAGRAMS
        case Seen.RESET:
            return datagrams.is_reset(fault.to)
        case Seen.MARKED:
            return (MARKS / tag).exists()
        case Seen.DOWN:
            return datagrams.is_down(STANDBY)
        case Seen.STILL:
            return victim_state(tag, processes) in {"t", "T"}
        case Seen.MISSING:
            return victim_state(tag, processes) is None
        case _:  # LIMITED, and those of BY_GROUP
            return is_limited(fault, tag, processes)


def holders(processes: list[Process]) -> list[Process]:
    """Living processes that hold a fault."""
    return [
        process for process in processes if "brownout_agent.injector.holder" in process.line and not process.is_dead
    ]


def victim_state(tag: str, processes: list[Process]) -> str | None:
    """The victim's state letter; None when no such process runs."""
    return next((one.state for one in processes if one.line.rstrip().endswith(tag) and not one.is_dead), None)


def is_limited(fault: FaultCase, tag: str, processes: list[Process]) -> bool:
    """Whether the fault's victim has the limit that the fault is about, by /proc and by its control group."""
    pid = _victim_pid(tag, processes)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if pid is not None and fault.seen is Seen.LIMITED:
            return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] < _NEXT_TO_NONE
        if pid is not None and fault.seen in BY_GROUP:
            controller, names = BY_GROUP[fault.seen]
            group = _group(pid, controller)
            texts = [(group / name).read_text().strip() for name in names if (group / name).exists()]
            if not texts:  # who is ending is in the root group already, which has no limits
                return False
            (text,) = texts
            # systemd gives every service a limit of its own on processes, and on nothing else
            return text not in UNLIMITED and (fault.seen is not Seen.FULL or int(text) < _NEXT_TO_NONE)
    return False


def _group(pid: int, controller: str) -> Path:
    """In version 1 of control groups a controller has a tree of its own; version 2 has one for all."""
    memberships = [line.split(":", 2) for line in (_PROC / str(pid) / "cgroup").read_text().splitlines()]
    of_version_1 = [path for _, controllers, path in memberships if controller in controllers.split(",")]
    return Path(f"{GROUPS / controller}{of_version_1[0]}" if of_version_1 else f"{GROUPS}{memberships[-1][2]}")


def _victim_pid(tag: str, processes: list[Process]) -> int | None:
    return next((one.pid for one in processes if one.line.rstrip().endswith(tag) and not one.is_dead), None)


def strangers(tags: Mapping[FaultCase, str], processes: list[Process]) -> list[str]:
    """What a host should not run once its faults are gone: everything but our three programs and victims that run."""
    left = []
    for process in processes:
        is_victim = any(tag in process.line for tag in tags.values())
        if process.is_dead or any(name in process.line for name in _OURS) or is_victim:
            continue
        left.append(f"process in state {process.state}: {process.line.strip()[:120]}")
    for fault, tag in tags.items():
        states = [one.state for one in processes if one.line.rstrip().endswith(tag) and not one.is_dead]
        if fault.has_victim and not (len(states) == 1 and states[0] in "RS"):
            left.append(f"of {fault.kind} there is not one victim that runs, but those in states {states}")
        if fault.seen is Seen.MARKED and (MARKS / tag).exists():
            left.append(f"what {fault.kind} has made is still there")
        if is_limited(fault, tag, processes):
            left.append(f"the victim of {fault.kind} is still limited")
    return left


def control_groups_of(names: Iterable[str]) -> list[str]:
    """Control groups that carry one of these names, in every hierarchy."""
    found = []
    for root, folders, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{root}/{folder}" for folder in folders if any(name in folder for name in names)]
    return found
