"""Where processes are: in which unit or control group, and on which port they listen. Asked anew at every look."""

import difflib
from collections.abc import Iterable

from brownout_agent.faults.contract import Refusal
from brownout_agent.faults.process_cgroups import is_in_group, is_in_unit, unit_named_in
from brownout_agent.kernel.listeners import listening_sockets, who_has_open
from brownout_agent.kernel.processes import PROC

_INIT = 1


class NobodyMatches(Refusal):
    """There is no such process in this host's own network namespace."""


def in_unit(unit: str, pids: Iterable[int]) -> frozenset[int]:
    """Those of these processes that run in a unit of the system's own systemd.

    Raises:
        NobodyMatches: none does.
    """
    texts = cgroup_texts(pids)
    found = frozenset(pid for pid, text in texts.items() if is_in_unit(text, unit))
    if not found:
        units = {name for text in texts.values() if (name := unit_named_in(text))}
        near = difflib.get_close_matches(unit, units, n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"look at it with `systemctl status {unit}`"
        raise NobodyMatches(f"no process runs in {unit}", remedy)
    return found


def in_group(path: str, pids: Iterable[int]) -> frozenset[int]:
    """Those of these processes that are in the control group of this path in some hierarchy, or below it.

    Raises:
        NobodyMatches: none is.
    """
    found = frozenset(pid for pid, text in cgroup_texts(pids).items() if is_in_group(text, path))
    if not found:
        raise NobodyMatches(f"no process runs in control group {path}", "look for it with `systemd-cgls`")
    return found


def on_port(port: int, pids: Iterable[int]) -> frozenset[int]:
    """Those of these processes that listen there. Not the init process, where it has only made the socket for another.

    Raises:
        NobodyMatches: nobody does, or it is not ours to see who.
    """
    sockets = listening_sockets(port)
    if not sockets:
        raise NobodyMatches(f"nobody listens on port {port} in this host's own network", "look for it with `ss -tulnp`")
    found = who_has_open(sockets, pids)
    if not found:
        raise NobodyMatches(
            f"somebody listens on port {port}, but no process of this host is seen to", "run the injector as root"
        )
    return found - {_INIT} or found


def cgroup_texts(pids: Iterable[int]) -> dict[int, str]:
    """/proc/PID/cgroup by pid, of those that are there."""
    texts = {}
    for pid in pids:
        try:
            texts[pid] = (PROC / str(pid) / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return texts
