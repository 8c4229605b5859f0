"""A host of the death matrix: a network namespace with a cable to the controller, a disk of its own, and the programs.

The whole matrix runs in a pid, mount and network namespace of its own (`tests.support.alone`), so whatever happens to
it, the machine is what it was.
"""

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Collection
from pathlib import Path

from tests.support import executed
from tests.support import standby as standby_interface
from tests.support.control_groups import thaw
from tests.support.deaths import BY_GROUP, FAULTS, MARKS, Seen
from tests.support.deaths_controller import ControllerLink
from tests.support.deaths_kernel import GROUPS, Datagrams, Process, ProcessReader, control_groups_of, strangers

BIN = Path(sys.executable).parent
NAMESPACES = Path("/run/netns")
BRIDGE, CONTROLLER_ADDRESS = "deaths", "10.99.0.1"
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
_REPAIRED = (0, 1, 2)
"""Exit codes of e2fsck(8) after which the disk is sound."""
_DISK_BYTES = 256 * 2**20
_UP_WITHIN_S = 40.0
_POLICY = 'version: 1\nenvironment: staging\nfaults: {"*": {allow: true, max_seconds: 120}}\nlimits: {concurrent: 64}\n'


async def run(*argv: object, accepted: Collection[int] = (0,)) -> str:
    """A command's output; fails when it ends with another code than these."""
    process = await asyncio.create_subprocess_exec(
        *map(str, argv), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode in accepted, f"{argv} ended with {process.returncode}: {output.decode()}"
    return output.decode()


async def make_bridge() -> None:
    """The controllers' end of every host's cable."""
    await run("ip", "link", "set", "lo", "up")
    await run("ip", "link", "add", BRIDGE, "type", "bridge")
    await run("ip", "address", "add", f"{CONTROLLER_ADDRESS}/16", "dev", BRIDGE)
    await run("ip", "link", "set", BRIDGE, "up")


class Host:
    """One host: what is done to it, and the few facts that a trial needs of it."""

    def __init__(self, number: int, folder: Path, controller: ControllerLink) -> None:
        self.name = f"host-{number}"
        self.controller = controller
        self.folder = folder / self.name
        self.disk = self.folder / "disk"
        self.scratch = self.disk / "scratch"
        self.cable = f"cable{number}"
        self.programs: dict[str, asyncio.subprocess.Process] = {}
        self.tags = {fault: f"victim-{uuid.uuid4().hex}" for fault in FAULTS}
        self.group = MEMORY_GROUPS / f"deaths-{uuid.uuid4().hex[:8]}"
        self._victims_groups = {
            seen: GROUPS / tree / f"{self.group.name}-victim" for seen, (tree, _) in BY_GROUP.items()
        }
        """Of each victim whose fault is about its group."""
        self._address = f"10.99.{number // 250 + 1}.{number % 250 + 1}/16"
        self._image = self.folder / "image"
        self._joined = False
        self.network = 0
        self._standby = ""
        """What `ip` says of the interface that a fault takes down."""
        self.datagrams: Datagrams | None = None

    # ---- coming and going ---------------------------------------------------------------------------------------

    async def build(self) -> None:
        """Namespace, cable, disk, control group."""
        self.folder.mkdir(parents=True)
        marks = [executed.commands(MARKS / tag) for fault, tag in self.tags.items() if fault.seen is Seen.MARKED]
        (self.folder / "policy.yaml").write_text(_POLICY + executed.section(*marks))
        await run("ip", "netns", "add", self.name)
        await run("ip", "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        await run("ip", "link", "set", self.cable, "master", BRIDGE, "up")
        for command in (("link", "set", "lo", "up"), ("addr", "add", self._address, "dev", "eth0")):
            await run("ip", "-n", self.name, *command)
        await run("ip", "-n", self.name, "link", "set", "eth0", "up")
        await run("ip", "netns", "exec", self.name, *standby_interface.FEW_PORTS)
        for standby in standby_interface.COMMANDS:
            await run("ip", "-n", self.name, *standby.split())
        self._standby = await self._look_at_standby()
        namespace = NAMESPACES / self.name
        self.network = namespace.stat().st_ino
        self.datagrams = Datagrams(namespace, FAULTS)
        for group in (self.group, *self._victims_groups.values()):
            group.mkdir()
        with self._image.open("wb") as file:
            file.truncate(_DISK_BYTES)
        await run("mkfs.ext4", "-q", "-m", "0", self._image)
        self.disk.mkdir()
        await self._mount()
        self.scratch.mkdir()

    async def dismantle(self) -> None:
        """Nothing of it stays."""
        await self.kill_everything()
        await self.repair_disk()
        await self._reap()
        await run("umount", self.disk)
        assert self.datagrams is not None
        self.datagrams.close()
        await run("ip", "link", "delete", self.cable)
        await run("ip", "netns", "delete", self.name)
        async with asyncio.timeout(10):
            while not all(map(_removed, (self.group, *self._victims_groups.values()))):
                await asyncio.sleep(0.02)

    async def start(self) -> None:
        """Bring up what is not up: victims, injector, agent, and the stream to the controller."""
        for fault, tag in self.tags.items():
            if fault.has_victim and self._is_down(tag) and not _victim_runs(tag):
                group = self._victims_groups.get(fault.seen, MEMORY_GROUPS)
                await self._spawn(tag, *fault.victim_argv(sys.executable, tag), group=group)
        if self._is_down("injector"):
            await self.start_injector()
        if not self._joined:
            await self._join()
        if self._is_down("agent"):
            options = ("--state-dir", self.disk / "agent", "--injector-socket", self._socket)
            await self._spawn("agent", BIN / "brownout-agent", "run", *options)
        await self.controller.wait_ready(self.name)

    async def start_injector(self) -> None:
        """As its unit would: from the journal on."""
        self._socket.unlink(missing_ok=True)
        await self._spawn(
            "injector", BIN / "brownout-injector", "serve", "--socket", self._socket,
            "--state-dir", self.disk / "injector", "--policy", self.folder / "policy.yaml",
        )  # fmt: skip

    async def _join(self) -> None:
        token = await self.controller.join_token()
        await self._spawn(
            "join", BIN / "brownout-agent", "join", "--controller", self.controller.listen, "--name", self.name,
            "--token", token["token"], "--ca-pin", token["ca_pin"], "--state-dir", self.disk / "agent", "--wait", 60,
        )  # fmt: skip
        assert await self.programs["join"].wait() == 0, f"could not join:\n{self.logs()}"
        self._joined = True

    async def kill_everything(self) -> None:
        """SIGKILL to every process in the namespace, until there is none."""
        thaw(self._victims_groups[Seen.FROZEN])
        async with asyncio.timeout(20):
            while pids := _pids_in(self.network):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.01)
        for program in self.programs.values():
            await program.wait()

    async def start_over(self) -> None:
        """After a trial that went wrong: no process, no rule, an empty journal."""
        await self.kill_everything()
        await run("nsenter", f"--net={NAMESPACES / self.name}", "nft", "flush", "ruleset")
        await self.repair_disk()
        await self._reap()
        await run("rm", "-rf", self.disk / "injector")

    async def _reap(self) -> None:
        """As its unit would, so that nothing of a trial that went wrong stays on the machine either."""
        if (self.disk / "injector").exists():
            enter = ("nsenter", f"--net={NAMESPACES / self.name}")
            await run(
                *enter, BIN / "brownout-injector", "reap", "--state-dir", self.disk / "injector", accepted=(0, 13)
            )
            await self.kill_everything()  # what it started again

    # ---- what is done to it -------------------------------------------------------------------------------------

    def signal(self, number: signal.Signals, *programs: str) -> None:
        """Send a signal to the agent, the injector, or both."""
        for program in programs:
            with contextlib.suppress(ProcessLookupError):
                self.programs[program].send_signal(number)

    async def pull_cable(self) -> None:
        """No carrier any more, and no word to either end."""
        await run("ip", "link", "set", self.cable, "down")

    async def plug_cable(self) -> None:
        await run("ip", "link", "set", self.cable, "up")

    def fill_disk(self) -> None:
        """Take every free block of the disk that has journal and scratch."""
        size = 64 * 2**20
        with (self.disk / "filler").open("ab") as file:
            while size >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
                except OSError:
                    size //= 2

    def empty_disk(self) -> None:
        """Give the blocks back; where the disk is read-only none were taken."""
        if not self.is_read_only:
            (self.disk / "filler").unlink(missing_ok=True)

    def break_disk(self) -> None:
        """An error of the file system, upon which the kernel makes it read-only (ext4(5), errors=remount-ro)."""
        device = Path(_mount_of(self.disk)[0]).name
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("deaths\n")

    @property
    def is_read_only(self) -> bool:
        """By what the kernel says of the mount."""
        options = _mount_of(self.disk)[1].split(",")
        return "ro" in options or "emergency_ro" in options

    async def repair_disk(self) -> None:
        """Unmount, check, mount. Nothing may run on it."""
        await run("umount", self.disk)
        await run("e2fsck", "-y", "-f", self._image, accepted=_REPAIRED)
        await self._mount()

    async def starve(self, share: float) -> int:
        """Have the kernel's OOM killer strike in the host's control group; returns how many times it did.

        A file in memory takes what room there is and `share` of what the programs use: the death of whoever writes
        it gives nothing back, so the kernel kills holders first and then the programs, until the file has its share.
        """
        before = self._oom_kills()
        used = int((self.group / "memory.usage_in_bytes").read_text())
        room = 16 * 2**20
        (self.group / "memory.limit_in_bytes").write_text(str(used + room))
        file, take = self.folder / "hog", room + int(used * share)
        hog = await self._spawn("hog", sys.executable, "-S", "-c", _HOG, file, take)
        async with asyncio.timeout(10):
            await hog.wait()
        file.unlink()
        (self.group / "memory.limit_in_bytes").write_text("-1")
        return self._oom_kills() - before

    def _oom_kills(self) -> int:
        return int((self.group / "memory.oom_control").read_text().split()[-1])

    # ---- what it shows ------------------------------------------------------------------------------------------

    async def left(self, fault_ids: list[str]) -> tuple[list[str], int]:
        """What the kernel still shows of faults, and the free bytes of its disk.

        A read-only disk frees nothing, so it is repaired first, which takes everything down that uses it.
        """
        left = strangers(self.tags, of_host(ProcessReader().read(), self))
        listed = await run("nsenter", f"--net={NAMESPACES / self.name}", "nft", "list", "tables")
        left += [line for line in listed.splitlines() if "brownout" in line]
        left += control_groups_of(fault_ids)
        if (standby := await self._look_at_standby()) != self._standby:
            left.append(f"the interface is not what it was: {standby}")
        if not left and self.is_read_only:
            await self.kill_everything()
            await self.repair_disk()
        self.empty_disk()
        space = os.statvfs(self.disk)
        return left, space.f_bfree * space.f_frsize

    async def _look_at_standby(self) -> str:
        looks = [await run("ip", "-n", self.name, *look.split()) for look in standby_interface.LOOKS]
        return "".join(looks)

    def logs(self) -> str:
        """The ends of what its programs said."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2500:]}" for path in logs)

    @property
    def _socket(self) -> Path:
        return self.folder / "injector.sock"

    def _is_down(self, program: str) -> bool:
        return program not in self.programs or self.programs[program].returncode is not None

    async def _mount(self) -> None:
        await run("mount", "-o", "loop,errors=remount-ro", self._image, self.disk)

    async def _spawn(self, name: str, *argv: object, group: Path | None = None) -> asyncio.subprocess.Process:
        """In the host's own control group, or in another."""
        enter = [str(BIN / "python"), "-S", "-c", _JOIN, str(group or self.group)]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *enter, "nsenter", f"--net={NAMESPACES / self.name}", "--", *map(str, argv),
                stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.programs[name] = process
        return process


_JOIN = "import os,sys\nopen(sys.argv[1]+'/cgroup.procs','w').write('0')\nos.execvp(sys.argv[2],sys.argv[2:])"
_HOG = "import sys\nwith open(sys.argv[1],'wb') as f:\n for _ in range(int(sys.argv[2])>>20): f.write(b'x'*2**20)"


def _removed(group: Path) -> bool:
    """Whether a control group and those in it could be removed: the kernel is a moment behind the last process."""
    if not group.exists():
        return True
    try:
        for inner in (*group.glob("*/"), group):
            inner.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _victim_runs(tag: str) -> bool:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and tag.encode() in (entry / "cmdline").read_bytes():
                return True
    return False


def _pids_in(network: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "ns/net").stat().st_ino == network:
                found.append(int(entry.name))
    return found


def _mount_of(folder: Path) -> tuple[str, str]:
    """The device of a mount point, and the file system's own options."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[4] == str(folder):
            _, device, options = right.split(" ", 2)
            return device, options
    raise AssertionError(f"{folder} is not mounted")


def of_host(processes: list[Process], host: Host) -> list[Process]:
    """Those in its network namespace."""
    return [process for process in processes if process.network == host.network]


def in_memory(folder: Path) -> None:
    """Mount memory there, so that hundreds of small disks cost the machine's disk nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=75%,mode=700", "tmpfs", str(folder)], check=True)
