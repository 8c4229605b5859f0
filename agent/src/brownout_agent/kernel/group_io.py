"""What a control group has read from a disk and written to it, with the groups below it."""

from pathlib import Path

from brownout_agent.kernel.cgroups import read_control

_WORDS = {"read": "rbytes", "write": "wbytes", "read_iops": "rios", "write_iops": "wios"}
"""By what is counted, the word of io.stat."""
_VERSION_1 = {
    "read": ("blkio.throttle.io_service_bytes_recursive", "Read"),
    "write": ("blkio.throttle.io_service_bytes_recursive", "Write"),
    "read_iops": ("blkio.throttle.io_serviced_recursive", "Read"),
    "write_iops": ("blkio.throttle.io_serviced_recursive", "Write"),
}
"""By what is counted, file and word."""


def read_io(group: Path, disk: str) -> dict[str, int]:
    """Bytes (`read`, `write`) and requests (`read_iops`, `write_iops`) since the group first used the disk, which is
    given by its numbers, like 254:0. Zeros where it never did, or is gone."""
    in_version_2 = (group / "io.stat").exists()
    return {name: _version_2(group, disk, name) if in_version_2 else _version_1(group, disk, name) for name in _WORDS}


def _version_2(group: Path, disk: str, name: str) -> int:
    lines = dict(line.partition(" ")[::2] for line in (read_control(group / "io.stat") or "").splitlines())
    words = dict(word.partition("=")[::2] for word in lines.get(disk, "").split())
    return int(words.get(_WORDS[name], 0))


def _version_1(group: Path, disk: str, name: str) -> int:
    file, word = _VERSION_1[name]
    lines = dict(line.rpartition(" ")[::2] for line in (read_control(group / file) or "").splitlines())
    return int(lines.get(f"{disk} {word}", 0))
