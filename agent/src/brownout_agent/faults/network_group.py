"""Whose sockets a network fault means: those of one control group of version 2, as each systemd unit has one.

A socket belongs to the group in which its maker was when it was made, and keeps it: who is moved into a group later
takes no socket along. One that was accepted belongs to the group of the socket that listened. So connections that stand
when the fault begins are met as new ones are; groups below the one that is named are met with it.

**Packets without a socket are not met**: what the kernel answers by itself (resets, ICMP), the end of a connection
that its program has closed already (TIME_WAIT), and of a handshake with a server in the group all but its first packet.
An ICMP packet that arrives belongs to no socket. Sockets that another made for a unit, as systemd does for one that has
a `.socket`, belong to that other.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from brownout_agent.faults.contract import Facts, Refusal
from brownout_agent.kernel.cgroups import GROUP_NAME, UNIT_PATTERN, unified_tree

_ELEMENT = re.compile(rf"(\.\./)*{GROUP_NAME}(/{GROUP_NAME})*")
_NFT_LOOKS_BELOW = "/sys/fs/cgroup"
"""libnftables takes the path of a group to be below this one, wherever the tree is mounted."""


@dataclass(frozen=True, slots=True)
class SocketGroup:
    """A control group by its place: the group itself is another one when its unit was started anew."""

    name: str
    """As it was asked for."""
    folder: str
    level: int
    """How many groups above it, the root among them."""

    def __post_init__(self) -> None:
        if not _ELEMENT.fullmatch(self._path):
            raise ValueError(f"{self.folder} is no path of a control group that rules can have")

    @classmethod
    def of(cls, plain: Facts | None) -> "SocketGroup | None":
        """Of facts, which come from the journal; None where sockets of everyone are meant."""
        return None if plain is None else cls(str(plain["name"]), str(plain["folder"]), int(plain["level"]))

    @property
    def plain(self) -> Facts:
        """What `of` takes."""
        return asdict(self)

    @property
    def element(self) -> str:
        """As an element of a set of groups, to nft(8)."""
        return f'"{self._path}"'

    @property
    def _path(self) -> str:
        return os.path.relpath(self.folder, _NFT_LOOKS_BELOW)


def find_group(unit: str | None, path: str | None) -> SocketGroup | None:
    """The group of this unit, or at this path below the root of the tree; None where neither is given.

    Raises:
        Refusal: there is none, or no tree of version 2.
    """
    if unit is None and path is None:
        return None
    tree = unified_tree()
    if tree is None:
        raise Refusal(
            "this host has no control groups of version 2 mounted, by which sockets are told apart",
            "boot with systemd.unified_cgroup_hierarchy=1, or leave out `unit` and `cgroup`",
        )
    name, group = (unit, _unit_group(tree, unit)) if unit is not None else (path, _group_at(tree, str(path)))
    try:
        return SocketGroup(str(name), str(group), len(group.relative_to(tree).parts))
    except ValueError as error:
        raise Refusal(str(error)) from error


def _unit_group(tree: Path, unit: str) -> Path:
    units = {group.name: group for group in _units(tree)}
    if unit not in units:
        reason = f"{unit} does not run here: it has no control group in {tree}"
        raise Refusal(reason, _hint(unit, units, f"systemctl status {unit}"))
    return units[unit]


def _group_at(tree: Path, path: str) -> Path:
    group = tree / path.lstrip("/")
    if group.is_dir():
        return group
    above = next(folder for folder in group.parents if folder.is_dir())
    near = (f"/{folder.relative_to(tree)}" for folder in _folders(above))
    raise Refusal(f"there is no control group {path} in {tree}", _hint(path, near, f"ls {above}"))


def _units(tree: Path) -> Iterator[Path]:
    """The groups of all units of the system's own manager, which are in slices only."""
    waiting = [tree]
    while waiting:
        for folder in _folders(waiting.pop()):
            if re.match(UNIT_PATTERN, folder.name):
                yield folder
            if folder.suffix == ".slice":
                waiting.append(folder)


def _folders(group: Path) -> list[Path]:
    """Those right below it; none where it is gone meanwhile."""
    try:
        return [Path(entry.path) for entry in os.scandir(group) if entry.is_dir()]
    except FileNotFoundError:
        return []


def _hint(asked: str, there: Iterable[str], look: str) -> str:
    near = difflib.get_close_matches(asked, list(there), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"look at it with `{look}`"
