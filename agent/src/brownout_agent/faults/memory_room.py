"""How much memory a fault may take of this host, and what it never takes: the reserve."""

import os
from dataclasses import dataclass

from brownout_agent.kernel.cgroups import memory_limit
from brownout_agent.kernel.memory import PAGE_BYTES, read_meminfo

_MIB = 2**20
_STEP_BYTES = 128 * _MIB
REGROW_ROOM_BYTES = 32 * _MIB
"""Room above the reserve before memory is taken again, so that it does not swing around the reserve."""


@dataclass(frozen=True, slots=True)
class Room:
    """What may be had: the host's memory, or that of the own control group where it is tighter."""

    total_bytes: int
    available_bytes: int
    limited_by: str


def read_room() -> Room:
    """How much memory a process of ours could still take now."""
    info = read_meminfo()
    room = Room(info["MemTotal"], info["MemAvailable"], "MemAvailable of the host")
    limit = memory_limit(os.getpid())
    if limit is None or limit.room_bytes >= room.available_bytes:
        return room
    return Room(min(limit.limit_bytes, room.total_bytes), limit.room_bytes, f"limit of control group {limit.group}")


def default_reserve(total_bytes: int) -> int:
    """What stays free when nothing is said: 5 % of all memory, at least 256 MiB."""
    return max(256 * _MIB, total_bytes // 20)


def next_size(held: int, asked: int, available: int, reserve: int) -> int:
    """How many bytes to hold next, in whole pages: down at once when others eat the reserve, up in steps."""
    spare = available - reserve
    if spare < 0:
        return max(held + spare, 0) // PAGE_BYTES * PAGE_BYTES
    if held == asked or (held < asked and spare < min(REGROW_ROOM_BYTES, asked - held)):
        return held
    return min(held + min(_STEP_BYTES, spare), asked) // PAGE_BYTES * PAGE_BYTES
