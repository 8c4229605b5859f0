"""What of ours is still on this machine, read from the kernel and not from our own records."""

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from brownout_agent.kernel.processes import PROC, ProcessKey, all_pids, key_of

from brownout_controller.demo import network

MARK = "BROWNOUT_STAGING"
"""The environment variable that every process of a staging network carries; children inherit it."""
FOLDERS = Path("/run/brownout-staging")
"""One folder for each staging network: who owns it, configurations, logs, sockets."""
CGROUPS = Path("/sys/fs/cgroup")


def leftovers(staging: str = "", known: Collection[str] = ()) -> list[str]:
    """One line for everything of this staging network (or of any) that still exists; empty is clean.

    Namespaces, processes, mounts and the folder carry the network's own name. Links, cgroups and tables would carry
    only Brownout's: give as `known` what this said before, and a Brownout that serves the machine itself stays out.
    """
    found = [f"namespace {name}" for name in network.existing(staging)]
    found += [f"process {key.pid} ({_command(key.pid)})" for key in marked_processes(staging)]
    found += [f"mount {point}" for point in mount_points() if f"{network.PREFIX}-{staging}" in point]
    found += [f"folder {path}" for path in FOLDERS.glob(staging or "*")]
    found += [f"link {path.name}" for path in Path("/sys/class/net").glob(f"{network.PREFIX}*")]
    found += [f"cgroup {path}" for path in _cgroups()]
    found += [f"nft table {name}" for name in _tables()]
    return [line for line in found if line not in known]


def marked_processes(staging: str = "") -> list[ProcessKey]:
    """Processes that were started in a staging network, and what they started, wherever they are now.

    Told by the environment, and by the working folder, since nginx overwrites its environment with its title.
    """
    keys = []
    for pid in all_pids():
        key = key_of(pid)
        try:
            environment = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
            folder = str((PROC / str(pid) / "cwd").readlink()).removesuffix(" (deleted)")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        marks = [entry.removeprefix(f"{MARK}=".encode()).decode() for entry in environment if _is_mark(entry)]
        if folder.startswith(f"{FOLDERS}/"):
            marks.append(Path(folder).relative_to(FOLDERS).parts[0])
        if key and (staging in marks if staging else marks):
            keys.append(key)
    return keys


def _is_mark(entry: bytes) -> bool:
    return entry.startswith(f"{MARK}=".encode())


def _command(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return "just gone"


def mount_points() -> list[str]:
    """Where something is mounted, as proc(5) has it in mountinfo."""
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _cgroups() -> Iterator[Path]:
    """Our slice in cgroup v2, and in each hierarchy of v1."""
    for pattern in (f"{network.PREFIX}.slice", f"*/{network.PREFIX}.slice"):
        yield from CGROUPS.glob(pattern)


def _tables() -> list[str]:
    """Our tables in this machine's own network namespace, where the demo makes none."""
    if shutil.which("nft") is None:
        return []
    listed = network.run(["nft", "list", "tables"]).splitlines()
    return [line.removeprefix("table ") for line in listed if line.split()[-1] == network.PREFIX]
