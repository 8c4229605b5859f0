"""TCP connections of this network namespace, as /proc/net/tcp and tcp6 list them (proc(5))."""

import ipaddress
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_ESTABLISHED, _LISTEN = "01", "0A"
OPEN = frozenset({_ESTABLISHED, "04", "05", "08", "09", "0B"})
"""Also FIN_WAIT1 and 2, CLOSE_WAIT, LAST_ACK and CLOSING (include/net/tcp_states.h)."""
_TABLES = (Path("/proc/thread-self/net/tcp"), Path("/proc/thread-self/net/tcp6"))
"""Of the calling thread's namespace. Without IPv6 there is no second one."""


@dataclass(frozen=True, slots=True, order=True)
class Connection:
    """One connection by its two ends. IPv4 in an IPv6 socket is the IPv4 address."""

    local: Address
    local_port: int
    remote: Address
    remote_port: int

    def __str__(self) -> str:
        return f"{_end(self.remote, self.remote_port)} to {_end(self.local, self.local_port)}"


def read_established() -> dict[Connection, int]:
    """Every established connection, with how often in a row it has tried again and had no answer.

    Either the oldest segment was sent again (RTO), or it never got out of this host and was tried as a probe: a packet
    that a rule drops in the output hook counts as not sent.

    Raises:
        OSError: /proc cannot be read.
    """
    found: dict[Connection, int] = {}
    for text in _read_tables():
        found.update(parse_established(text))
    return found


def read_open() -> set[Connection]:
    """Every connection over which segments may still come: its handshake is over, and an end has not closed it yet.

    Raises:
        OSError: /proc cannot be read.
    """
    return {connection for text in _read_tables() for connection in parse_open(text)}


def read_listeners() -> dict[tuple[Address, int], int]:
    """Every address and port on which somebody listens, with how many connections there wait to be accepted.

    Raises:
        OSError: /proc cannot be read.
    """
    found: dict[tuple[Address, int], int] = {}
    for text in _read_tables():
        for place, waiting in parse_listeners(text):
            found[place] = found.get(place, 0) + waiting
    return found


def parse_listeners(text: str) -> list[tuple[tuple[Address, int], int]]:
    """The listening sockets of such a table; several may have one place (SO_REUSEPORT). Pure."""
    return [
        ((connection.local, connection.local_port), int(fields[4].partition(":")[2], 16))
        for connection, fields in _parse(text, frozenset({_LISTEN}))
    ]


def parse_established(text: str) -> dict[Connection, int]:
    """The established connections of such a table. Pure."""
    return {
        connection: int(fields[6], 16) + int(fields[8])
        for connection, fields in _parse(text, frozenset({_ESTABLISHED}))
    }


def parse_open(text: str) -> set[Connection]:
    """The open connections of such a table. Pure."""
    return {connection for connection, _ in _parse(text, OPEN)}


def _read_tables() -> Iterator[str]:
    return (table.read_text() for table in _TABLES if table.exists())


def _parse(text: str, states: frozenset[str]) -> Iterator[tuple[Connection, list[str]]]:
    for line in text.splitlines()[1:]:
        # sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout; the last is of the probes
        fields = line.split()
        if fields[3] in states:
            yield Connection(*_parse_end(fields[1]), *_parse_end(fields[2])), fields


def _parse_end(text: str) -> tuple[Address, int]:
    """Of `0100007F:0016`: an address is 32-bit words, each in the byte order of this machine."""
    address, _, port = text.partition(":")
    words = (int(address[at : at + 8], 16) for at in range(0, len(address), 8))
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    parsed = ipaddress.ip_address(packed)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed, int(port, 16)


def _end(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
