"""Hosts with a kernel of their own: user-mode Linux as user nobody, on the bridge of the controllers.

A power cut is `cgroup.kill` of everything that makes up the machine. Its disk is a file that survives it.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.deaths import UML_FAULTS, VICTIM
from tests.support.deaths_controller import ControllerLink
from tests.support.deaths_host import BRIDGE, CONTROLLER_ADDRESS, run
from tests.support.deaths_trial import HostFailed
from tests.support.uml_python import build_python

MODULES = Path("/usr/lib/uml/modules")
_INIT = Path(__file__).parent / "uml_init.sh"
_UNITS = Path(__file__).parent / "uml_units.sh"
_INSIDE = (
    "__init__.py",
    "deaths.py",
    "deaths_kernel.py",
    "injectors.py",
    "one_at_a_time.py",
    "standby.py",
    "uml_inside.py",
    "uml_units.py",
    "uml_wants.py",
)
_DEPLOY = Path(__file__).parents[2] / "deploy"
_DISK_BYTES = 192 * 2**20
_BOOTS_WITHIN_S = 90.0
_ANSWERS_WITHIN_S = 20.0
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x2, 0x1000
"""Of linux/if_tun.h."""


def make_share(folder: Path) -> Path:
    """What every host sees at /opt/brownout: a Python with the agent, and the program that runs inside."""
    share = folder / "share"
    build_python(share / "python")
    package = share / "tests" / "support"
    package.mkdir(parents=True)
    (share / "tests/__init__.py").touch()
    for name in _INSIDE:
        shutil.copy(_INIT.parent / name, package)
    for source, target in ((_INIT, "init.sh"), (_UNITS, "boot")):
        shutil.copy(source, share / target)
        (share / target).chmod(0o755)
    for name in ("systemd", "sysusers.d", "tmpfiles.d"):
        shutil.copytree(_DEPLOY / name, share / "deploy" / name)
    (share / "victim.py").write_text(VICTIM)
    os.chmod(folder, 0o755)  # noqa: PTH101 - nobody must get there
    for modules in MODULES.iterdir():
        if not (modules / "modules.dep").exists():
            subprocess.run(["depmod", "-b", "/usr", "-a", modules.name], check=False)
    return share


@contextlib.contextmanager
def _plugged(tap: str) -> Iterator[int]:
    """A descriptor by which its frames are read and written: the device may be open to root alone."""
    cable = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(cable, _TUNSETIFF, struct.pack("16sH22x", tap.encode(), _IFF_TAP | _IFF_NO_PI))
        yield cable
    finally:
        os.close(cable)


class UmlHost:
    """One machine. `on_look` is told what its kernel shows, several times a second."""

    def __init__(self, number: int, folder: Path, share: Path, controller: ControllerLink) -> None:
        self.name = f"uml-{number}"
        self.controller = controller
        self.scratch = Path("/var/lib/brownout/scratch")
        self.tags = {fault: f"victim-{self.name}-{fault.kind}" for fault in UML_FAULTS}
        self.on_look: Callable[[set[str], bool], Awaitable[None]] = self.nobody_looks
        self.reaped: dict[str, Any] = {}
        """What the boot reap said, and when by the host's own CLOCK_BOOTTIME."""
        self.reaped_s = 0.0
        """When it said so, by our monotonic clock."""
        self._number = number
        self._folder = folder / self.name
        self._share = share
        self._group = _unified() / f"deaths-uml-{uuid.uuid4().hex[:8]}"
        self._machine: asyncio.subprocess.Process | None = None
        self._server: asyncio.Server | None = None
        self._inside: asyncio.StreamWriter | None = None
        self._serving = asyncio.Event()
        self.words: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        """What else it says."""
        self._left: asyncio.Future[dict[str, Any]] | None = None

    async def build(self) -> None:
        """Disk, cable and control group; the machine stays off."""
        self._folder.mkdir(mode=0o755)
        disk = self._folder / "disk"
        with disk.open("wb") as file:
            file.truncate(_DISK_BYTES)
        await run("mkfs.ext4", "-q", "-m", "0", disk)
        (self._folder / "run").mkdir()
        for path in (disk, self._folder / "run"):
            shutil.chown(path, "nobody")
        tap = f"uml{self._number}"
        await run("ip", "tuntap", "add", tap, "mode", "tap")
        await run("ip", "link", "set", tap, "master", BRIDGE, "up")
        self._group.mkdir()
        self._server = await asyncio.start_server(self._talk, CONTROLLER_ADDRESS, 0)

    async def dismantle(self) -> None:
        """Nothing of it stays."""
        await self.power_cut()
        if self._server is not None:
            self._server.close()
        await run("ip", "link", "delete", f"uml{self._number}")
        self._group.rmdir()

    async def start(self) -> None:
        """Power on, if it is off; returns when it takes orders."""
        if self._machine is None:
            await self.boot()
        await self.controller.wait_ready(self.name)

    async def boot(self) -> None:
        """Power on; returns when its injector serves."""
        self._serving.clear()
        inside = (
            "/usr/bin/env,--chdir=/opt/brownout,LD_LIBRARY_PATH=/opt/brownout/python/lib,/opt/brownout/python/bin/"
            f"python{sys.version_info.major}.{sys.version_info.minor},-m,tests.support.uml_inside,"
            f"{CONTROLLER_ADDRESS},{self._port},{self.name}"
        )
        await self._power_on(f"umlrun={inside}")
        try:
            async with asyncio.timeout(_BOOTS_WITHIN_S):
                await self._serving.wait()
        except TimeoutError:
            raise AssertionError(f"{self.name} did not come up:\n{self.logs()}") from None

    async def boot_systemd(self) -> None:
        """Power on, with systemd and the units; what happens then comes as `words`. Its agent has joined, or joins."""
        token = await self.controller.join_token()
        join = f"{self.controller.listen},{self.name},{token['token']},{token['ca_pin']}"
        await self._power_on("umlrun=systemd", f"umltester={CONTROLLER_ADDRESS},{self._port}", f"umljoin={join}")

    @property
    def _port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _power_on(self, *arguments: str) -> None:
        with _plugged(f"uml{self._number}") as cable:
            await self._run(cable, *arguments)

    async def _run(self, cable: int, *arguments: str) -> None:
        argv = [
            "setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--inh-caps=-all", "--no-new-privs",
            "linux.uml", f"uml_dir={self._folder}/run/", f"umid={self.name}", "mem=512M", "rootfstype=hostfs",
            "rootflags=/", "ro", f"init={self._share}/init.sh", f"ubdb={self._folder}/disk",
            f"umlshare={self._share}", f"umladdress=10.99.200.{self._number}/16", *arguments,
            f"vec0:transport=fd,fd={cable},vec=0,depth=128,mac=02:4d:45:43:01:{self._number:02x}",
            "con=null", "con0=null,fd:1", "ssl=null", "quiet",
        ]  # fmt: skip
        join = "import os,sys\nopen(sys.argv[1]+'/cgroup.procs','w').write('0')\nos.execvp(sys.argv[2],sys.argv[2:])"
        with (self._folder / "console.log").open("ab") as log:
            self._machine = await asyncio.create_subprocess_exec(
                sys.executable, "-S", "-c", join, str(self._group), *argv,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=(cable,),
            )  # fmt: skip

    async def power_cut(self) -> None:
        """All of the machine ends at once; what it had not written to its disk is lost."""
        if self._machine is None:
            return
        (self._group / "cgroup.kill").write_text("1")
        await self._machine.wait()
        self._machine = None
        async with asyncio.timeout(10):
            while (self._group / "cgroup.procs").read_text():
                await asyncio.sleep(0.005)
        if self._inside is not None:
            self._inside.close()
            self._inside = None
        self.controller.forget(self.name)

    @staticmethod
    async def nobody_looks(_there: set[str], _is_busy: bool) -> None:
        """Outside of a trial."""

    def step_clock(self, seconds: float) -> None:
        """Step the wall clock of the host."""
        self._tell(clock=seconds)

    async def left(self, fault_ids: list[str]) -> tuple[list[str], int]:
        """What its kernel still shows of faults, and the free bytes of its disk.

        Raises:
            HostFailed: it does not answer.
        """
        self._left = asyncio.get_running_loop().create_future()
        self._tell(left=fault_ids)
        try:
            answer = await asyncio.wait_for(self._left, _ANSWERS_WITHIN_S)
        except TimeoutError:
            raise HostFailed(f"{self.name} did not answer within {_ANSWERS_WITHIN_S} s:\n{self.logs()}") from None
        return answer["left"], answer["free_bytes"]

    def logs(self) -> str:
        """The end of what it wrote to its console."""
        return (self._folder / "console.log").read_text(errors="replace")[-3000:]

    def _tell(self, **plain: Any) -> None:
        assert self._inside is not None, f"{self.name} is off"
        self._inside.write(json.dumps(plain).encode() + b"\n")

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._inside = writer
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                await self._hear(json.loads(line))
        writer.close()

    async def _hear(self, said: dict[str, Any]) -> None:
        if "there" in said:
            await self.on_look(set(said["there"]), said["busy"])
        elif "reaped" in said:
            self.reaped, self.reaped_s = said, time.monotonic()
        elif "serving" in said:
            if not said["has_joined"]:
                token = await self.controller.join_token()
                join = ["--controller", self.controller.listen, "--name", self.name, "--token", token["token"]]
                self._tell(join=[*join, "--ca-pin", token["ca_pin"], "--wait", "60"])
            self._serving.set()
        elif "left" in said and self._left is not None:
            self._left.set_result(said)
        else:
            self.words.put_nowait(said)


def _unified() -> Path:
    """Where cgroup v2 is mounted: as the whole tree, or beside version 1."""
    root = Path("/sys/fs/cgroup")
    return root if (root / "cgroup.procs").exists() and (root / "cgroup.controllers").exists() else root / "unified"
