"""Takes the fingerprint of this host: reads what faults could leave behind, and changes nothing.

Every section has one reader. What a reader cannot read makes its section unread, with the reason, and stops no other.
"""

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from brownout_agent.fingerprint import RESERVED, Fingerprint, Section, cut_section
from brownout_agent.injector import holder
from brownout_agent.kernel import cgroup_tree, files, mounts, netfilter, process_states, rtnetlink
from brownout_agent.kernel.clock import boot_id, boottime_ns, wall_offset_ns
from brownout_agent.kernel.processes import PROC

log = logging.getLogger(__name__)

FOLDERS_MAX = 16
_FILES = ("/etc/hosts", "/etc/resolv.conf")
_SYSCTLS = (
    "fs.file-max",
    "kernel.pid_max",
    "kernel.threads-max",
    "net.ipv4.ip_forward",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_retries2",
    "net.netfilter.nf_conntrack_max",
    "vm.overcommit_memory",
    "vm.swappiness",
)
"""Limits that a host runs into, and how it forwards: what a fault that exhausts something would turn."""


def take_fingerprint(folders: Iterable[str]) -> Fingerprint:
    """Look at everything once; takes some tens of milliseconds and may hang as long as a file system in `folders` does.

    Args:
        folders: where disk faults work; of those that are absolute the first FOLDERS_MAX.
    """
    asked = [folder for folder in folders if folder.startswith("/")][:FOLDERS_MAX]
    sections, unread = {}, {}
    for section, read in _readers(asked).items():
        try:
            sections[section.value] = cut_section(read())
        except OSError as error:
            unread[section.value] = str(error)
        except Exception as error:
            log.exception("%s could not be read", section)
            unread[section.value] = f"its reader has a mistake: {type(error).__name__}: {error}"
    return Fingerprint(sections, unread, boottime_ns(), boot_id())


def _readers(folders: list[str]) -> dict[Section, Callable[[], list[str]]]:
    return {
        Section.QDISCS: rtnetlink.read_qdiscs,
        Section.INTERFACES: rtnetlink.read_interfaces,
        Section.NFT: lambda: [table.text for table in netfilter.read_nft()],
        Section.NFT_RULES: lambda: [table.digest for table in netfilter.read_nft()],
        Section.IPTABLES: lambda: [table.digest for table in netfilter.read_iptables()],
        Section.CGROUPS: lambda: cgroup_tree.read_cgroups(RESERVED),
        Section.HOLDERS: lambda: [line for _, line in _holders()],
        Section.UNNAMED_FILES: _unnamed_files,
        Section.STOPPED: _stopped,
        Section.MOUNTS: mounts.read_mounts,
        Section.DEVICE_MAPPER: mounts.read_device_mapper,
        Section.SPACE: lambda: mounts.read_space(folders),
        Section.FILES: lambda: [files.read_file(path) for path in _FILES],
        Section.SYSCTLS: lambda: files.read_sysctls(_SYSCTLS),
        Section.CLOCK: lambda: [str(wall_offset_ns())],
    }


def _holders() -> list[tuple[int, str]]:
    """Pid and line of every process that holds a fault of this injector or of one that is dead.

    A holder's forks have its command line. Those of another living injector are that one's to tell of.
    """
    found = []
    for pid, argv in process_states.command_lines(holder.__name__):
        kind, fault_id, injector_pid = argv[argv.index(holder.__name__) + 1 :][:3]
        if injector_pid == str(os.getpid()) or not (PROC / injector_pid).exists():
            found.append((pid, f"{RESERVED} holder, process {pid}, of {kind} {fault_id}"))
    return found


def _unnamed_files() -> list[str]:
    pids = {os.getpid(): f"{RESERVED} injector, process {os.getpid()}", **dict(_holders())}
    return [f"{who}: {line}" for pid, who in pids.items() for line in process_states.unnamed_files(pid)]


def _stopped() -> list[str]:
    lines = []
    for one in process_states.halted_processes():
        what = "stopped" if one.is_stopped else "traced"
        by = f" by process {one.tracer_pid} ({_command(one.tracer_pid)})" if one.tracer_pid else ""
        lines.append(f"{one.comm}, process {one.pid} started at tick {one.start_ticks}, is {what}{by}")
    return lines


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "gone"
