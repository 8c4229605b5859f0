"""Starts an injector, follows the calls that it and whatever it starts make, and kills at one of them by SIGKILL.

    python -S tests/support/syscall_tracer.py FOLDER PROGRAM ARGUMENTS..

becomes PROGRAM, beside a tracer of its own that lives as long as what it follows. A seccomp filter stops each call that
may change anything; whatever is not known to be harmless may, so one that nobody thought of is stopped as well.
FOLDER/order says, as JSON, what the scene is called that is played now and at which point to kill: {"scene", "point"},
point being [role, call, target, nth, "before" | "after", "caller" | "injector" | "watchdog"] or null. Each call becomes
a line of the pipe FOLDER/said: [scene, role, call, target], and the kill as well: [scene, "killed", pid].

*before*: SIGKILL arrives at the entry of the call, which the kernel then never carries out (seccomp(2): a fatal signal
skips the call). *after*: it has been carried out, and nothing follows it. Of the standard library alone, and a program
of its own, since a tracer's waitpid(2) takes other people's children.
"""

import ctypes
import errno
import json
import os
import re
import signal
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_SEIZE, _CONT, _SYSCALL, _LISTEN, _SYSCALL_INFO = 0x4206, 7, 24, 0x4208, 0x420E
_OPTIONS = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # TRACESYSGOOD, FORK, VFORK, CLONE, EXEC, SECCOMP
_EVENT_EXEC, _EVENT_SECCOMP, _EVENT_STOP = 4, 7, 128
_WALL = 0x40000000
_ENTRY_BY_SECCOMP = 3
_PF_EXITING = 0x4
_CLONE_THREAD = 0x10000
_PR_CAPBSET_READ, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 23, 22, 2
_RET_ALLOW, _RET_TRACE = 0x7FFF0000, 0x7FF00000
_AF_UNIX = 1
_O_CHANGES = os.O_CREAT | os.O_TRUNC | 0o20000000  # __O_TMPFILE

EFFECTS = {
    1: "write", 18: "pwrite64", 20: "writev", 26: "msync", 40: "sendfile", 44: "sendto", 46: "sendmsg", 49: "bind",
    56: "clone", 57: "fork", 58: "vfork", 59: "execve", 62: "kill", 74: "fsync", 75: "fdatasync", 76: "truncate",
    77: "ftruncate", 82: "rename", 83: "mkdir", 84: "rmdir", 85: "creat", 86: "link", 87: "unlink", 88: "symlink",
    90: "chmod", 91: "fchmod", 92: "chown", 93: "fchown", 101: "ptrace", 105: "setuid", 106: "setgid",
    112: "setsid", 116: "setgroups", 117: "setresuid", 119: "setresgid", 126: "capset", 157: "prctl",
    165: "mount", 166: "umount2", 200: "tkill", 203: "sched_setaffinity", 222: "timer_create", 223: "timer_settime",
    226: "timer_delete", 234: "tgkill", 141: "setpriority", 160: "setrlimit", 164: "settimeofday",
    227: "clock_settime", 258: "mkdirat", 263: "unlinkat", 264: "renameat", 265: "linkat", 268: "fchmodat",
    272: "unshare", 277: "sync_file_range", 285: "fallocate", 296: "pwritev", 307: "sendmmsg", 308: "setns",
    314: "sched_setattr", 316: "renameat2", 317: "seccomp", 322: "execveat", 326: "copy_file_range",
    424: "pidfd_send_signal", 435: "clone3", 2: "open", 257: "openat", 302: "prlimit64",
}  # fmt: skip
"""Calls that may change something, by their number on x86-64. One that stands in neither table is an effect as well."""
_HARMLESS = frozenset({
    0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 21, 22, 23, 24, 25, 27, 28, 32, 33, 34, 35, 36, 39, 41,
    42, 43, 45, 47, 48, 50, 51, 52, 53, 54, 55, 60, 61, 63, 72, 73, 78, 79, 80, 89, 95, 96, 97, 98, 99, 100, 102,
    104, 107, 108, 110, 111, 118, 120, 121, 124, 125, 127, 131, 137, 138, 140, 143, 145, 158, 186, 191, 201, 202, 204,
    213, 217, 218, 219, 221, 228, 229, 230, 231, 232, 233, 247, 253, 254, 255, 262, 267, 269, 270, 271, 273, 274, 281,
    283, 284, 286, 287, 288, 289, 290, 291, 292, 293, 294, 309, 318, 324, 325, 332, 334, 434, 436, 438, 439, 441, 449,
})  # fmt: skip
"""They read, wait, or change what dies with the process: its memory, its descriptors, its signal mask."""
_WITH_PATH = {82: 0, 83: 0, 84: 0, 85: 0, 87: 0, 59: 0, 2: 0, 257: 1, 258: 1, 263: 1, 264: 1, 316: 1, 76: 0, 90: 0}
_WITH_DESCRIPTOR = frozenset({1, 18, 20, 44, 46, 74, 75, 77, 91, 93, 277, 285, 296, 307})
_WITH_REQUEST = frozenset({101, 157})
"""ptrace and prctl: what they do is their first argument."""
_HOLDER = "brownout_agent.injector.holder"
_STARTER = "brownout_agent.faults.process_start"
_WATCHDOG = "brownout_agent.injector.main\0watch"
_NAMES = {
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "ID",
    r"^python[0-9.]*$": "python",
    r"^memory\.limit_in_bytes$": "memory.max",  # what version 1 of the control groups calls it
    r"\d{3,}": "N",
}
"""What differs from scene to scene or from host to host, and what is said instead."""
_PYTHONS_CACHE = re.compile(r"__pycache__$|\.pyc(\.N)?$")
"""It is written when a program was changed, and says nothing about what that program does."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_LIBC.ptrace.restype = ctypes.c_long
_LIBC.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_ulong]


class _SyscallInfo(ctypes.Structure):
    """struct ptrace_syscall_info (ptrace(2)): `data` is number and six arguments at entry, the result at exit."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("data", ctypes.c_uint64 * 8),
    )


@dataclass
class Tracer:
    """Follows one injector."""

    injector: int
    folder: str
    said: int
    """The pipe."""
    order: str = ""
    scene: str = ""
    point: tuple[object, ...] | None = None
    roles: dict[int, str] = field(default_factory=dict)
    counts: dict[tuple[str, str, str], int] = field(default_factory=dict)
    awaited: set[int] = field(default_factory=set)
    """Threads to be killed at the exit of the call that they are in."""

    def follow(self) -> None:
        """Until nothing is left to follow."""
        while True:
            try:
                tid, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return
            if os.WIFSTOPPED(status):
                with suppress(ProcessLookupError, FileNotFoundError):  # killed meanwhile, and gone from /proc
                    self._resume(tid, os.WSTOPSIG(status), status >> 16)

    def _resume(self, tid: int, number: int, event: int) -> None:
        passed_on = 0
        if event == _EVENT_SECCOMP:
            self._at_entry(tid)
        elif event == _EVENT_STOP and number != signal.SIGTRAP:
            _ptrace(_LISTEN, tid)
            return
        elif event == _EVENT_EXEC:
            self.roles.pop(tid, None)
        elif number == signal.SIGTRAP | 0x80:
            if tid in self.awaited:
                self.awaited.remove(tid)
                self._kill(tid)
        elif not event and number != signal.SIGTRAP:
            passed_on = number
        _ptrace(_SYSCALL if tid in self.awaited else _CONT, tid, 0, passed_on)

    def _at_entry(self, tid: int) -> None:
        info = _SyscallInfo()
        _ptrace(_SYSCALL_INFO, tid, ctypes.sizeof(info), ctypes.byref(info))
        if info.op != _ENTRY_BY_SECCOMP or (call := _effect(tid, info.data)) is None:
            return
        self._hear_order()
        if (target := _target(tid, info.data)) is None:
            return
        label = (self._role(tid), call, target.replace(Path(self.folder).name, "FOLDER"))
        if label[0] == "other" or label[2] == "wake-up":  # a program started again; a thread by one of its process
            return
        if _PYTHONS_CACHE.search(label[2]):
            return
        self.counts[label] = self.counts.get(label, 0) + 1
        self._say(*label)
        if self.point is not None and self.point[:4] == (*label, self.counts[label]):
            if self.point[4] == "before":
                self._kill(tid)
            else:
                self.awaited.add(tid)

    def _hear_order(self) -> None:
        with suppress(FileNotFoundError):
            with open(f"{self.folder}/order") as file:
                text = file.read()
            if text != self.order:
                order = json.loads(text)
                self.order, self.scene = text, order["scene"]
                self.point = None if order["point"] is None else tuple(order["point"])
                self.counts.clear()
                self.awaited.clear()

    def _say(self, *words: object) -> None:
        os.write(self.said, json.dumps([self.scene, *words]).encode() + b"\n")

    def _kill(self, tid: int) -> None:
        assert self.point is not None
        match self.point[5]:
            case "caller":
                pid = _tgid(tid)
            case "injector":
                pid = self.injector
            case whom:  # not there any more if it died by itself just now
                pid = next((pid for pid, role in self.roles.items() if role == whom and _command(pid)), 0)
        if not pid:
            return
        os.kill(pid, signal.SIGKILL)
        self._say("killed", pid)

    def _role(self, tid: int) -> str:
        if tid not in self.roles:
            self.roles[tid] = self._role_of(_tgid(tid))
        return self.roles[tid]

    def _role_of(self, pid: int) -> str:
        if pid == self.injector:
            return "injector"
        command, parents = _command(pid), _command(_parent(pid))
        if _HOLDER in command:
            return "worker" if _HOLDER in parents else "holder"
        if _STARTER in command:
            return "starter"
        if command and command == parents:  # a fork that has not become a program of its own yet
            return "child"
        return "watchdog" if _WATCHDOG in command else "other"


def _effect(tid: int, data: "ctypes.Array[ctypes.c_uint64]") -> str | None:
    """The name of a call that may change something; None of one whose arguments say that it does not."""
    number = data[0]
    starts_thread = (number == 56 and data[1] & _CLONE_THREAD) or (
        number == 435 and int.from_bytes(_memory(tid, data[1], 8), "little") & _CLONE_THREAD
    )
    only_asks = (
        (number == 302 and data[3] == 0)  # prlimit64
        or (number in {62, 424} and data[2] == 0)  # a signal that is none
        or (number == 157 and data[1] == _PR_CAPBSET_READ)
        or (number == 49 and int.from_bytes(_memory(tid, data[2], 2), "little") != _AF_UNIX)  # that makes a file
    )
    return None if starts_thread or only_asks else EFFECTS.get(number, f"call {number}")


def _target(tid: int, data: "ctypes.Array[ctypes.c_uint64]") -> str | None:
    """What the call is made on; "" where that cannot be read. None of one that is never made: its maker was killed
    while it was stopped here, and what it had is gone.
    """
    number = data[0]
    text = ""
    try:
        if number in _WITH_DESCRIPTOR:
            text = _descriptor(tid, data[1])
        elif number in _WITH_PATH and data[1 + _WITH_PATH[number]] != 0:
            text = Path(_string(tid, data[1 + _WITH_PATH[number]])).name or "/"
        elif number in _WITH_REQUEST:
            return f"request {data[1]:#x}"
    except OSError:
        if _is_exiting(tid):
            return None
    for differs, name in _NAMES.items():
        text = re.sub(differs, name, text)
    return text


def _is_exiting(tid: int) -> bool:
    """Whether a thread is on its way out, or gone: its flags have PF_EXITING (proc(5), linux/sched.h)."""
    try:
        after_name = Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(int(after_name[6]) & _PF_EXITING)


def _descriptor(tid: int, number: int) -> str:
    leads_to = str(Path(f"/proc/{tid}/fd/{number}").readlink())
    if leads_to.startswith("pipe:"):
        return "pipe"
    if not leads_to.startswith("socket:"):
        return "unnamed file" if "/#" in leads_to else Path(leads_to).name
    inode = leads_to[8:-1]
    with open(f"/proc/{tid}/net/netlink") as file:
        if any(line.split()[-1] == inode for line in file):
            return "netlink"
    for table in (f"/proc/{tid}/net/unix", "/proc/self/net/unix"):  # an accepted one is its client's, so it is in ours
        with open(table) as file:
            fields = next((line.split() for line in file if line.split()[6] == inode), [])
        if len(fields) > 7:
            return "agent"
    return "wake-up"


def _memory(tid: int, address: int, size: int) -> bytes:
    with open(f"/proc/{tid}/mem", "rb", buffering=0) as file:
        file.seek(address)
        return file.read(size)


def _string(tid: int, address: int) -> str:
    raw = b""
    while b"\0" not in raw and len(raw) < 4096:  # page by page: the next may not be there
        part = _memory(tid, address + len(raw), 4096 - (address + len(raw)) % 4096)
        if not part:
            raise OSError(errno.ESRCH, f"the memory of {tid} is gone")
        raw += part
    return raw.partition(b"\0")[0].decode(errors="replace")


def _status(pid: int, name: str) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next((int(line.split()[1]) for line in file if line.startswith(name)), 0)


def _tgid(tid: int) -> int:
    return _status(tid, "Tgid:")


def _parent(pid: int) -> int:
    return _status(pid, "PPid:")


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


def _ptrace(request: int, tid: int, address: int = 0, data: object = 0) -> None:
    if _LIBC.ptrace(request, tid, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _install_filter() -> None:
    """Have the kernel stop this process, and all that it becomes and starts, at each call that may change something."""
    numbers = sorted(_HARMLESS)
    opens = {2: 24, 257: 32}  # offsets of the flags in struct seccomp_data
    program = [(0x20, 0, 0, 0)]  # the number
    total = len(numbers) + 3 * len(opens)
    for index, number in enumerate(numbers):
        program.append((0x15, total - index, 0, number))
    for index, (number, offset) in enumerate(opens.items()):
        left = 3 * (len(opens) - index)  # instructions from here to the end
        program += [(0x15, 0, 2, number), (0x20, 0, 0, offset), (0x45, left - 3, left - 2, _O_CHANGES)]
    program += [(0x06, 0, 0, _RET_TRACE), (0x06, 0, 0, _RET_ALLOW)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    if _LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _trace(pid: int, folder: str, ready: int) -> None:
    os.setsid()
    if os.fork():  # nobody's child but init's
        os._exit(0)
    said = os.open(f"{folder}/said", os.O_RDWR)
    _ptrace(_SEIZE, pid, 0, _OPTIONS)
    os.write(ready, b"!")
    os.close(ready)
    Tracer(pid, folder, said).follow()
    os._exit(0)


def main() -> None:
    """Become the program that the command line names, followed."""
    folder, *argv = sys.argv[1:]
    pid = os.getpid()
    heard, ready = os.pipe()
    if (child := os.fork()) == 0:
        _trace(pid, folder, ready)
    os.close(ready)
    os.waitpid(child, 0)
    if os.read(heard, 1) != b"!":
        raise SystemExit("the tracer did not come up")
    os.close(heard)
    _install_filter()
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main()
