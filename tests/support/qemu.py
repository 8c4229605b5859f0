"""A host under QEMU with Debian's cloud kernel, where nftables and netem meet. Emulated: judge behaviour, not speed.

Kernel and modules come from the distribution's package, downloaded and unpacked, never installed.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_INIT = Path(__file__).parent / "qemu_init.sh"
_MODULES = ("nf_tables", "sch_prio", "sch_netem")
_PROGRAMS = ("ip", "tc", "nft")
_RULES = """table inet brownout {
  set steered { type ipv4_addr; flags timeout; }
  chain out { type filter hook output priority 0; ip daddr @steered meta priority set "1:4"; }
}
"""
_BOOT_WITHIN_S = 150


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    image: Path
    modules: Path
    version: str


def fetch_kernel(folder: Path) -> Kernel:
    """Unpack the newest cloud kernel below `folder`, downloading it if it is not there.

    Raises:
        CalledProcessError: no package source gives it.
    """
    if not list(folder.glob("boot/vmlinuz-*")):
        folder.mkdir(parents=True, exist_ok=True)
        depends = subprocess.run(
            ["apt-cache", "depends", "linux-image-cloud-amd64"], check=True, capture_output=True, text=True
        ).stdout
        package = re.findall(r"Depends: (linux-image-\S+)", depends)[0]
        subprocess.run(["apt-get", "download", "-qq", package], check=True, cwd=folder)
        (archive,) = folder.glob("linux-image-*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
        archive.unlink()
    image = max(folder.glob("boot/vmlinuz-*"))
    version = image.name.removeprefix("vmlinuz-")
    if not (folder / "lib/modules" / version / "modules.dep").exists():
        subprocess.run(["depmod", "-b", folder, version], check=True)
    return Kernel(image, folder / "lib/modules" / version, version)


def boot(kernel: Kernel, folder: Path) -> list[str]:
    """Run the host from power-on to power-off; returns the lines of its console."""
    initrd = _initramfs(kernel, folder / "root")
    argv = [
        "qemu-system-x86_64", "-M", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "512",
        "-nic", "none", "-nographic", "-no-reboot", "-kernel", str(kernel.image), "-initrd", str(initrd),
        "-append", "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check rdinit=/init",
    ]  # fmt: skip
    ran = subprocess.run(
        argv, check=True, capture_output=True, text=True, timeout=_BOOT_WITHIN_S, stdin=subprocess.DEVNULL
    )
    return ran.stdout.splitlines()


def _initramfs(kernel: Kernel, root: Path) -> Path:
    """A file system of busybox, the network's programs with their libraries, and the modules in order of need."""
    for name in ("bin", "proc", "modules", "etc"):
        (root / name).mkdir(parents=True)
    busybox = Path(str(shutil.which("busybox")))
    shutil.copy2(busybox, root / "bin/busybox")
    subprocess.run(["chroot", root, "/bin/busybox", "--install", "-s", "/bin"], check=True)
    for name in _PROGRAMS:
        program = Path(str(shutil.which(name)))
        (root / "bin" / name).unlink(missing_ok=True)
        shutil.copy2(program, root / "bin" / name)
        for library in _libraries(program):
            target = root / library.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, target)
    order = _in_order(kernel, _MODULES)
    for module in order:
        shutil.copy2(kernel.modules / module, root / "modules")
    (root / "modules/order").write_text(" ".join(Path(module).name for module in order))
    (root / "rules").write_text(_RULES)
    shutil.copy2(_INIT, root / "init")
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = root.with_suffix(".cpio")
    cpio = root.with_name("cpio")
    cpio.symlink_to(busybox)  # which is what it is called; by its own name it could as well be a shell
    with archive.open("wb") as file:
        subprocess.run([cpio, "-o", "-H", "newc"], input=names.encode(), stdout=file, check=True, cwd=root)
    return archive


def _libraries(program: Path) -> list[Path]:
    """By the dynamic loader, as ldd(1) asks it; that one is a script of a shell's."""
    asking = {"LD_TRACE_LOADED_OBJECTS": "1"}
    listed = subprocess.run([program], check=True, capture_output=True, text=True, env=asking).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listed)]


def _in_order(kernel: Kernel, names: tuple[str, ...]) -> list[str]:
    """Module files, each after what it needs (modules.dep(5))."""
    needs = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        module, _, needed = line.partition(":")
        needs[module] = needed.split()
    order: list[str] = []
    for name in names:
        (module,) = [path for path in needs if Path(path).name.split(".ko")[0] == name]
        order += [path for path in (*reversed(needs[module]), module) if path not in order]
    return order
