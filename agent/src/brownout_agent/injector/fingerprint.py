"""Takes the fingerprint of this host: reads what faults could leave behind, and changes nothing.

Every section has one reader. What a reader cannot read makes its section unread, with the reason, and stops no other.
"""

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from brownout_agent.fingerprint import RESERVED, Fingerprint, Section, cut_line, cut_section, is_reserved
from brownout_agent.injector import holder
from brownout_agent.kernel import cgroup_tree, cgroups, files, mounts, netfilter, process_states, rtnetlink
from brownout_agent.kernel.clock import boot_id, boottime_ns, wall_offset_ns
from brownout_agent.kernel.credentials import stress_user
from brownout_agent.kernel.processes import PROC

log = logging.getLogger(__name__)

FOLDERS_MAX = 16
NOT_LOOKED_AT = "this host's policy lets no disk fault work there, so it is not looked at"
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


def take_fingerprint(folders: Iterable[str], may_look_at: Callable[[str], bool] = lambda _: True) -> Fingerprint:
    """Look at everything once; takes some tens of milliseconds and may hang as long as a file system in `folders` does.

    Args:
        folders: where disk faults work; of those that are absolute the first FOLDERS_MAX.
        may_look_at: whether a folder is one. Of any other nothing is told, not even whether it is there.
    """
    asked = [folder for folder in folders if folder.startswith("/")][:FOLDERS_MAX]
    real = {folder: os.path.realpath(folder) for folder in asked}
    refused = {folder for folder in asked if not may_look_at(real[folder])}
    look = _Look([real[folder] for folder in asked if folder not in refused])
    sections: dict[str, tuple[str, ...]] = {}
    unread = {cut_line(f"{Section.SPACE} of {folder}"): NOT_LOOKED_AT for folder in refused}
    for section, read in look.readers().items():
        try:
            sections[section.value] = cut_section(read())
        except OSError as error:
            unread[section.value] = str(error)
        except Exception as error:
            log.exception("%s could not be read", section)
            unread[section.value] = f"its reader has a mistake: {type(error).__name__}: {error}"
    return Fingerprint(sections, unread, boottime_ns(), boot_id())


@dataclass(frozen=True, slots=True)
class _Holder:
    """A process that holds a fault, whosever."""

    pid: int
    kind: str
    fault_id: str
    injector_pid: str

    @property
    def has_another_injector(self) -> bool:
        """Whether it is another living injector's, and so that one's to tell of."""
        return self.injector_pid != str(os.getpid()) and (PROC / self.injector_pid).exists()

    @property
    def text(self) -> str:
        orphaned = "" if self.injector_pid == str(os.getpid()) else "orphaned "
        return f"{orphaned}{RESERVED} holder, process {self.pid}, of {self.kind} {self.fault_id}"


class _Look:
    """One look. What several sections need is read once."""

    def __init__(self, folders: list[str]) -> None:
        self._folders = folders

    def readers(self) -> dict[Section, Callable[[], list[str]]]:
        """Who reads which section; each may raise OSError."""
        return {
            Section.QDISCS: rtnetlink.read_qdiscs,
            Section.INTERFACES: rtnetlink.read_interfaces,
            Section.NFT: lambda: [table.text for table in self._tables],
            Section.NFT_RULES: lambda: [table.digest for table in self._tables if not is_reserved(table.name)],
            Section.IPTABLES: lambda: [table.digest for table in netfilter.read_iptables()],
            Section.CGROUPS: self._cgroups,
            Section.HOLDERS: lambda: [one.text for one in self._ours],
            Section.UNNAMED_FILES: self._unnamed_files,
            Section.STOPPED: self._stopped,
            Section.MOUNTS: mounts.read_mounts,
            Section.DEVICE_MAPPER: mounts.read_device_mapper,
            Section.SPACE: lambda: mounts.read_space(self._folders),
            Section.FILES: lambda: [files.read_file(path) for path in _FILES],
            Section.SYSCTLS: lambda: files.read_sysctls(_SYSCTLS),
            Section.CLOCK: lambda: [str(wall_offset_ns())],
        }

    @cached_property
    def _tables(self) -> list[netfilter.Table]:
        return netfilter.read_nft()

    @cached_property
    def _holders(self) -> list[_Holder]:
        """All of this kernel. What a holder forks has its command line; another user's process may have it as well."""
        name, users = holder.__name__, _holders_users()
        found = [(pid, argv[argv.index(name) + 1 :]) for pid, argv in process_states.command_lines(name)]
        ours = [(pid, arguments) for pid, arguments in found if process_states.starter_uid(pid) in users]
        return [_Holder(pid, *arguments[:3]) for pid, arguments in ours if len(arguments) >= 3]

    @cached_property
    def _ours(self) -> list[_Holder]:
        """Those of this injector, and of dead ones."""
        mine = [one for one in self._holders if not one.has_another_injector]
        return [one for one in mine if process_states.shares_our_network(one.pid)]

    def _cgroups(self) -> list[str]:
        """Those of other living injectors are theirs to tell of, as are those of hosts that share but the kernel."""
        elsewhere = {cgroups.PREFIX + one.fault_id for one in self._holders if one.has_another_injector}
        return [
            f"{group} with {len(pids)} processes"
            for group, pids in cgroup_tree.read_cgroups(cgroups.PREFIX).items()
            if group.name not in elsewhere and (not pids or any(map(process_states.shares_our_network, pids)))
        ]

    def _unnamed_files(self) -> list[str]:
        pids = {os.getpid(): f"{RESERVED} injector, process {os.getpid()}"} | {one.pid: one.text for one in self._ours}
        return [f"{who}: {line}" for pid, who in pids.items() for line in process_states.unnamed_files(pid)]

    def _stopped(self) -> list[str]:
        lines = []
        held_by = {one.pid: f" ({one.text})" for one in self._holders}
        for one in process_states.halted_processes():
            what = "stopped" if one.is_stopped else "traced"
            by = f" by process {one.tracer_pid}{held_by.get(one.tracer_pid, '')}" if one.tracer_pid else ""
            lines.append(f"{one.comm}, process {one.pid} started at tick {one.start_ticks}, is {what}{by}")
        return lines


def _holders_users() -> set[int]:
    """Who a holder can be: an injector's user, or whom its stressors become."""
    users = {0, os.geteuid()}
    with suppress(OSError):  # a host without that user has no stressors either
        stressors = stress_user()
        users |= {stressors.uid} if stressors else set()
    return users
