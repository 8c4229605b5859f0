"""The fingerprint of a host: what faults could leave behind, one section a subject, each a list of lines. A pure value.

The injector takes it (`injector/fingerprint.py`); the controller compares two of them. It crosses both wires as one
message, so it is bounded: a section that is too long keeps what bears our names, and says of the rest how many lines
there are and their digest. Nothing is left out in silence.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256

from brownout_protos.v1 import fault_pb2

RESERVED = "brownout"
"""What every name of ours begins with: nftables tables, control groups, links."""
LIVE_HOLDER = re.compile(rf"{RESERVED} holder, process \d+, of (?P<kind>\S+) (?P<fault_id>[0-9A-Za-z-]{{8,64}})")
"""A line of `holders`: one of the injector that was asked, which looks after it. Others are orphans."""
SECTION_BYTES_MAX = 10_000
"""17 sections of it, and their reasons, stay well below a frame (256 KiB)."""
LINE_CHARS_MAX = 300
CUT_MARK = "~ "
"""How the line begins that stands for those that were left out of a section."""


class Section(StrEnum):
    """The subjects. The values are keys of the wire and of reports, and do not change."""

    QDISCS = "qdiscs"
    """Queueing disciplines that somebody has set; the kernel's own defaults are named in `interfaces`."""
    NFT = "nft"
    """Which nftables tables there are."""
    NFT_RULES = "nft_rules"
    """What stands in those of others: a count of lines and a digest, without counters."""
    IPTABLES = "iptables"
    INTERFACES = "interfaces"
    CGROUPS = "cgroups"
    """Control groups by our names."""
    HOLDERS = "holders"
    """Processes that hold a fault of this injector, or of a dead one."""
    UNNAMED_FILES = "unnamed_files"
    """Files without a name that processes of ours keep open: the kernel frees their space only when they are closed."""
    STOPPED = "stopped"
    """Processes of this network namespace that stand still or are traced."""
    MOUNTS = "mounts"
    DEVICE_MAPPER = "device_mapper"
    SPACE = "space"
    """Free space where disk faults work: `FREE_BYTES TOTAL_BYTES FOLDER`."""
    FILES = "files"
    """/etc/hosts and /etc/resolv.conf: digest, mode, owner."""
    SYSCTLS = "sysctls"
    CLOCK = "clock"
    """Nanoseconds from the boot clock to the wall clock."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One look at a host. A section is in `sections` or in `unread`, with the reason, never in both."""

    sections: Mapping[str, tuple[str, ...]]
    unread: Mapping[str, str] = field(default_factory=dict)
    at_boottime_ns: int = 0
    boot_id: str = ""


def is_reserved(line: str) -> bool:
    """Whether a line bears a name of ours."""
    return RESERVED in line


def cut_line(line: str) -> str:
    """A line as a message can carry it: printable, of bounded length, and different for different lines."""
    line = line.encode(errors="replace").decode().replace("\n", "\\n")
    if len(line) <= LINE_CHARS_MAX:
        return line
    return f"{line[:LINE_CHARS_MAX]}... sha256:{_digest(line)}"


def cut_section(lines: Iterable[str]) -> tuple[str, ...]:
    """Lines in an order that says nothing; where they are too many, those with our names and one for all the rest."""
    whole = sorted(cut_line(line) for line in lines)
    if _size(whole) <= SECTION_BYTES_MAX:
        return tuple(whole)
    ours: list[str] = []
    rest: list[str] = []
    room = SECTION_BYTES_MAX
    for line in whole:
        room -= _size([line]) if is_reserved(line) else 0
        (ours if is_reserved(line) and room > 0 else rest).append(line)
    return (*ours, f"{CUT_MARK}{len(rest)} more lines, sha256:{_digest(chr(10).join(rest))}")


def is_cut(lines: Iterable[str]) -> bool:
    """Whether lines of this section were left out."""
    return any(line.startswith(CUT_MARK) for line in lines)


def to_wire(fingerprint: Fingerprint, fingerprint_id: str) -> fault_pb2.Fingerprint:
    """As both wires carry it."""
    return fault_pb2.Fingerprint(
        fingerprint_id=fingerprint_id,
        sections={name: fault_pb2.TextList(items=lines) for name, lines in fingerprint.sections.items()},
        unread={name: cut_line(reason) for name, reason in fingerprint.unread.items()},
        at_boottime_ns=fingerprint.at_boottime_ns,
        boot_id=fingerprint.boot_id,
    )


def from_wire(message: fault_pb2.Fingerprint) -> Fingerprint:
    """What a host has said; a section that it says nothing of was not read."""
    sections = {name: tuple(texts.items) for name, texts in message.sections.items()}
    mute = {name.value: "the host said nothing of it" for name in Section if name not in sections}
    unread = {**mute, **message.unread}
    sections = {name: lines for name, lines in sections.items() if name not in unread}
    return Fingerprint(sections, unread, message.at_boottime_ns, message.boot_id)


def nothing_read(reason: str) -> Fingerprint:
    """What stands for a look that could not be taken."""
    return Fingerprint({}, {name.value: reason for name in Section})


def _size(lines: Iterable[str]) -> int:
    return sum(len(line.encode()) + 4 for line in lines)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
