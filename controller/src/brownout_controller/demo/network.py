"""Network namespaces joined by a bridge that lives inside one of them.

The machine's own network namespace gets nothing: every link is made inside a namespace of ours and is gone with it.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NETNS = Path("/run/netns")
"""Where iproute2 keeps named namespaces (ip-netns(8))."""
PREFIX = "brownout"
NOBODY = 65534
"""The user and group that services run as; Debian's and Ubuntu's `nobody:nogroup`."""


@dataclass(frozen=True, slots=True)
class Address:
    """One host's addresses in the staging network, without the prefix length."""

    v4: str
    v6: str


CONTROLLER = "ctl"
ADDRESSES = {
    CONTROLLER: Address("10.77.0.1", "fd00:77::1"),
    "edge": Address("10.77.0.10", "fd00:77::10"),
    "app-1": Address("10.77.0.21", "fd00:77::21"),
    "app-2": Address("10.77.0.22", "fd00:77::22"),
}


class CommandFailed(Exception):
    """A program of the set-up failed; the text carries its argv, exit code and what it said."""

    def __init__(self, argv: Sequence[str], code: int, said: str) -> None:
        super().__init__(f"`{' '.join(argv)}` ended with {code}: {said.strip() or 'it said nothing'}")


def run(argv: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Standard output of a short program, in our environment unless another is given.

    Raises:
        CommandFailed: it ended with another code than 0.
    """
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, env=environment)
    if done.returncode != 0:
        raise CommandFailed(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


def namespace(staging: str, host: str) -> str:
    """The namespace of a host: `brownout-3f2a-app-1`."""
    return f"{PREFIX}-{staging}-{host}"


def create(staging: str) -> None:
    """Make every host's namespace, the bridge in the controller's, and a pair of links from it to each other host."""
    for host in ADDRESSES:
        run(["ip", "netns", "add", namespace(staging, host)])
        _ip(staging, host, "link", "set", "lo", "up")
    _ip(staging, CONTROLLER, "link", "add", "br0", "type", "bridge")
    _address(staging, CONTROLLER, "br0")
    for host in ADDRESSES:
        if host == CONTROLLER:
            continue
        peer = ["peer", "name", "eth0", "netns", namespace(staging, host)]
        _ip(staging, CONTROLLER, "link", "add", host, "type", "veth", *peer)
        _ip(staging, CONTROLLER, "link", "set", host, "master", "br0", "up")
        _address(staging, host, "eth0")


def remove(staging: str) -> None:
    """Delete the namespaces that exist, and with them their links, rules and tables. Nothing may run in them."""
    for name in existing(staging):
        _of_existing(name, ["ip", "netns", "delete", name])


def existing(staging: str = "") -> list[str]:
    """Names of our namespaces: those of one staging network, or of all."""
    return sorted(path.name for path in NETNS.glob(f"{PREFIX}-{staging or '????'}-*"))


def pids_in(name: str) -> list[int]:
    """Every process whose network namespace this is; none when there is no such namespace."""
    return [int(pid) for pid in _of_existing(name, ["ip", "netns", "pids", name]).split()]


def inside(name: str, argv: Sequence[str], *, as_nobody: bool = False, unprivileged: bool = False) -> list[str]:
    """The argv that runs `argv` in a namespace, in the caller's own mount namespace.

    Not `ip netns exec`: that mounts a fresh /sys, which hides /sys/fs/cgroup from an injector. `unprivileged` drops
    every capability for good but the one to read: the program itself may lie in somebody's closed home folder.
    """
    enter = ["nsenter", f"--net={NETNS / name}"]
    if as_nobody:
        enter += ["--setuid", str(NOBODY), "--setgid", str(NOBODY)]
    if unprivileged:
        enter += ["setpriv", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"]
        enter += ["--bounding-set=-all,+dac_read_search"]
    return [*enter, *argv]


def has_ipv6() -> bool:
    """Whether this kernel has IPv6 at all."""
    return Path("/proc/sys/net/ipv6").exists()


def _of_existing(name: str, argv: Sequence[str]) -> str:
    """What a command about a namespace says; "" when somebody else has removed the namespace meanwhile."""
    try:
        return run(argv)
    except CommandFailed:
        if (NETNS / name).exists():
            raise
        return ""


def _address(staging: str, host: str, link: str) -> None:
    _ip(staging, host, "address", "add", f"{ADDRESSES[host].v4}/24", "dev", link)
    if has_ipv6():
        # nodad: nobody else can have the address, and a tentative one cannot be bound for a second.
        _ip(staging, host, "address", "add", f"{ADDRESSES[host].v6}/64", "dev", link, "nodad")
    _ip(staging, host, "link", "set", link, "up")


def _ip(staging: str, host: str, *arguments: str) -> None:
    run(["ip", "-netns", namespace(staging, host), *arguments])
