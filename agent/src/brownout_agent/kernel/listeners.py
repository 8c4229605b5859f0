"""Who listens on a port: sockets by their inode in /proc/net, and the processes that have them open (proc(5))."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from brownout_agent.kernel.processes import PROC

_LISTEN, _UNCONNECTED = "0A", "07"
_TABLES = {"tcp": _LISTEN, "tcp6": _LISTEN, "udp": _UNCONNECTED, "udp6": _UNCONNECTED}
"""Of the calling thread's network namespace, and the state of a socket that waits for whoever comes."""
_NET = Path("/proc/thread-self/net")
_SOCKET = re.compile(r"socket:\[(\d+)\]")


def listening_sockets(port: int) -> frozenset[int]:
    """Inodes of the sockets that listen on this port: TCP, and UDP that is bound to it and connected to nobody.

    Raises:
        OSError: /proc cannot be read.
    """
    tables = [(_NET / name, state) for name, state in _TABLES.items()]
    return frozenset(
        inode for table, state in tables if table.exists() for inode in parse(table.read_text(), port, state)
    )


def parse(text: str, port: int, state: str) -> Iterator[int]:
    """The inodes of such a table's sockets with this local port in this state. Pure."""
    for line in text.splitlines()[1:]:
        # sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
        fields = line.split()
        if fields[3] == state and int(fields[1].rpartition(":")[2], 16) == port:
            yield int(fields[9])


def who_has_open(sockets: frozenset[int], pids: Iterable[int]) -> frozenset[int]:
    """Those of these processes that have one of the sockets open. Whose files are not ours to see is left out."""
    return frozenset(pid for pid in pids if sockets and not sockets.isdisjoint(_sockets_of(pid)))


def _sockets_of(pid: int) -> Iterator[int]:
    try:
        for link in (PROC / str(pid) / "fd").iterdir():
            try:
                found = _SOCKET.fullmatch(str(link.readlink()))
            except FileNotFoundError:  # closed meanwhile
                continue
            if found:
                yield int(found[1])
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return
