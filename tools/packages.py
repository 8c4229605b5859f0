"""Install the distribution's packages that a make target needs and that are missing.

    python3 tools/packages.py setup|demo|test|bench

Runs under any Python 3.8, since it runs before ours is there. As root on Debian or Ubuntu it installs; otherwise it
says what to type. It starts nothing: a web server or load balancer that comes with a package stays stopped.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

SEARCH = ":".join(
    [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
)
DEMO = {"ip": "iproute2", "nsenter": "util-linux", "nft": "nftables", "haproxy": "haproxy", "nginx": "nginx"}
HOSTS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "linux.uml": "user-mode-linux",
    "depmod": "kmod",
    "e2fsck": "e2fsprogs",
    "unshare": "util-linux",
}
WATCHERS = {"strace": "strace", "systemd-analyze": "systemd"}
TEST = {
    **DEMO,
    "iptables-legacy": "iptables",
    "chromium": "chromium",
    "curl": "curl",
    "initdb": "postgresql",
    "glewlwyd": "glewlwyd",
    "dnsmasq": "dnsmasq-base",
    "dig": "bind9-dnsutils",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.xfs": "xfsprogs",
    "sqlite3": "dbconfig-sqlite3",  # brings sqlite3 along, and keeps apt from choosing MariaDB's for glewlwyd
    **WATCHERS,
    **HOSTS,
}
BENCH = {**TEST, "stress-ng": "stress-ng", "fio": "fio"}
PROGRAMS = {"setup": {}, "demo": DEMO, "test": TEST, "bench": BENCH}
"""Program -> package that brings it, by make target."""
LIBRARIES = {"test": {"libatomic.so.1": "libatomic1"}, "bench": {"libatomic.so.1": "libatomic1"}}
"""Library -> package, by make target: Playwright's own node is linked with it."""
DAEMONS = ("haproxy", "nginx", "postgresql", "glewlwyd")
POLICY = Path("/usr/sbin/policy-rc.d")


def missing(target):
    """Packages whose program or library is not there."""
    packages = [package for program, package in PROGRAMS[target].items() if not shutil.which(program, path=SEARCH)]
    packages += [package for library, package in LIBRARIES.get(target, {}).items() if not loads(library)]
    if find_spec("ensurepip") is None:
        packages.append("python3-venv")
    return sorted(packages)


def loads(library):
    """Whether the dynamic linker finds it."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


@contextmanager
def daemons_stay_stopped():
    """Have dpkg start no service meanwhile (policy-rc.d, Debian's init-system-helpers), unless a policy is set."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def install(packages):
    """apt-get them, quietly; raises CalledProcessError when it fails."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "--yes", "-qq", "--no-install-recommends", *packages]
    sys.stderr.write(f"Installing {', '.join(packages)}\n")
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=True, stdout=sys.stderr)
    with daemons_stay_stopped():
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    for daemon in set(DAEMONS) & set(packages):
        with suppress(FileNotFoundError):  # without systemd there is nothing to disable
            subprocess.run(["systemctl", "disable", "--quiet", daemon], check=False, stderr=subprocess.DEVNULL)


def main():
    target = sys.argv[1]
    packages = missing(target)
    if not packages:
        return
    command = f"apt-get install {' '.join(packages)}"
    if not shutil.which("apt-get"):
        raise SystemExit(f"make {target} needs programs from these Debian packages: {' '.join(packages)}")
    if os.geteuid() != 0:
        raise SystemExit(f"make {target} needs packages that only root can install. Type: sudo {command}")
    try:
        install(packages)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(error.cmd)} failed; its message stands above. To see more: {command}") from None


if __name__ == "__main__":
    main()
