"""nftables through libnftables(3), without starting a program.

A table made with `flags owner` belongs to the netlink socket of the `Nftables` that made it: nobody else may change it,
and the kernel deletes it when that socket closes, at the latest when the process dies (Linux 5.12 and later).
"""

import ctypes
import json
import os
import re
import socket
import threading
from functools import cache
from types import TracebackType
from typing import Any

from brownout_agent.kernel.nftables_dump import dump_counters, dump_tables

LIBRARY = "libnftables.so.1"
_OUTPUT_STATELESS = 1 << 2
_OUTPUT_JSON = 1 << 4
_TIMEOUT = re.compile(r"(\S+) timeout (\w+) expires (\w+)")
_UNIT_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_NETLINK_NETFILTER = 12
_opening = threading.Lock()
"""Held while a connection comes or goes, so that the descriptor of a new one can be told."""


class NftablesError(OSError):
    """The library or the kernel refused; the text is theirs."""


@cache
def _library() -> Any:
    lib = ctypes.CDLL(LIBRARY)
    lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
    lib.nft_ctx_new.restype = ctypes.c_void_p
    lib.nft_ctx_free.argtypes = [ctypes.c_void_p]
    lib.nft_ctx_free.restype = None
    lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    lib.nft_ctx_output_set_flags.restype = None
    lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("output", "error"):
        getattr(lib, f"nft_ctx_buffer_{name}").argtypes = [ctypes.c_void_p]
        getattr(lib, f"nft_ctx_get_{name}_buffer").argtypes = [ctypes.c_void_p]
        getattr(lib, f"nft_ctx_get_{name}_buffer").restype = ctypes.c_char_p
    return lib


class Nftables:
    """One connection to nftables of the calling thread's network namespace. Owned tables live as long as it does.

    Several threads may use it: a transaction waits for the other.

    Raises:
        OSError: the library is not there, or it gives no context.
    """

    def __init__(self, *, with_descriptor: bool = False) -> None:
        self._lib = _library()
        with _opening:
            before = _netfilter_descriptors() if with_descriptor else set()
            self._context = self._lib.nft_ctx_new(0)
            opened = _netfilter_descriptors() - before if with_descriptor else set()
        self._using = threading.Lock()
        if not self._context:
            raise NftablesError(f"{LIBRARY}: nft_ctx_new failed")
        self.descriptor = opened.pop() if len(opened) == 1 else -1
        """Of its netlink socket, for what the library has no words for; -1 where it was not asked for."""
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)

    def __enter__(self) -> "Nftables":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the kernel deletes the tables that it owns."""
        if self._context:
            with _opening:
                self._lib.nft_ctx_free(self._context)
            self._context = None

    def run(self, commands: str) -> str:
        """Run nft(8) commands as one transaction: all of them or none.

        Raises:
            NftablesError: refused; nothing was changed.
        """
        return self._run(commands, 0)

    def listing(self, command: str) -> list[dict[str, Any]]:
        """The objects that a `list` command yields, each as {kind: fields} (libnftables-json(5)).

        Never list tables so: libnftables 1.0.6 frees the flags of a table twice, and the process dies of it sooner or
        later.

        Raises:
            NftablesError: refused, or there is no such object.
        """
        objects: list[dict[str, Any]] = json.loads(self._run(command, _OUTPUT_JSON))["nftables"]
        return objects

    def ruleset(self) -> str:
        """Every table as `nft --stateless list ruleset` prints it: without counters and without what has expired when.

        Raises:
            NftablesError: refused.
        """
        return self._run("list ruleset", _OUTPUT_STATELESS)

    def _run(self, commands: str, flags: int) -> str:
        with self._using:
            self._lib.nft_ctx_output_set_flags(self._context, flags)
            failed = self._lib.nft_run_cmd_from_buffer(self._context, commands.encode())
            # Reading a buffer empties it: read both, so that none speaks up in the next call.
            output: bytes = self._lib.nft_ctx_get_output_buffer(self._context) or b""
            error: bytes = self._lib.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            raise NftablesError(_first_error(error.decode(errors="replace")))
        return output.decode(errors="replace")


def _netfilter_descriptors() -> set[int]:
    """The descriptors of this process that are netlink sockets to netfilter."""
    return {descriptor for descriptor in map(int, os.listdir("/proc/self/fd")) if _is_netfilter(descriptor)}  # noqa: PTH208


def _is_netfilter(descriptor: int) -> bool:
    try:
        one = socket.socket(fileno=descriptor)
    except OSError:  # no socket, or closed meanwhile
        return False
    is_netfilter = (one.family, one.proto) == (socket.AF_NETLINK, _NETLINK_NETFILTER)
    one.detach()  # it is not ours to close
    return is_netfilter


def _first_error(text: str) -> str:
    """`Could not process rule: Operation not permitted`, of the many lines with carets that the library writes."""
    found = re.search(r"Error: (.*)", text)
    return found[1].strip() if found else text.strip() or "libnftables gives no reason"


def table_names(family: str) -> list[str]:
    """The names of all tables of a family, such as `inet`.

    Raises:
        OSError: the kernel refused.
    """
    return [table.name for table in dump_tables() if table.family == family]


def read_counters(family: str, table: str) -> dict[str, int]:
    """The packets that each named counter of a table has seen.

    Raises:
        OSError: the kernel refused, or there is no such table.
    """
    try:
        counters = dump_counters(family, table)
        is_there = bool(counters) or table in table_names(family)
    except OSError as error:
        raise NftablesError(f"nf_tables cannot be read: {error}") from error
    if not is_there:
        raise NftablesError(f"there is no table {family} {table}")
    return counters


def count_elements(family: str, table: str, name: str) -> int:
    """How many elements a set has.

    Raises:
        OSError: the library is not there, the kernel refused, or there is no such set.
    """
    with Nftables() as nft:
        listed = nft.listing(f"list set {family} {table} {name}")
    (found,) = (entry["set"] for entry in listed if "set" in entry)
    return len(found.get("elem", ()))


def read_timeouts(family: str, table: str, name: str) -> dict[str, tuple[int, int]]:
    """The elements of a set, each with the milliseconds that it was to stand and those that it still will.

    Raises:
        OSError: the library is not there, the kernel refused, or there is no such set.
    """
    with Nftables() as nft:
        return parse_timeouts(nft.run(f"list set {family} {table} {name}"))  # JSON would give whole seconds only


def parse_timeouts(listed: str) -> dict[str, tuple[int, int]]:
    """What nft(8) prints of a set with time-outs: `0x00000001 timeout 33s expires 1m2s984ms`. Pure."""
    return {element: (_ms(timeout), _ms(left)) for element, timeout, left in _TIMEOUT.findall(listed)}


def _ms(text: str) -> int:
    return sum(int(number) * _UNIT_MS[unit] for number, unit in re.findall(r"(\d+)(ms|[dhms])", text))
