"""Files that say how this host is set up: small ones in /etc by their digest, sysctls by their value."""

import stat
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

_PROC_SYS = Path("/proc/sys")
_BYTES_MAX = 4 * 2**20


def read_file(path: str) -> str:
    """One line: digest, mode, owner, and where it leads if it is a link.

    Raises:
        OSError: it is there and cannot be read, or is too large for what it should be.
    """
    file = Path(path)
    try:
        own = file.lstat()
    except FileNotFoundError:
        return f"{path} is not there"
    if not stat.S_ISLNK(own.st_mode):
        return f"{path} {_contents(file)}"
    target = file.readlink()
    return f"{path} -> {target} {_contents(file) if file.exists() else 'which is not there'}"


def _contents(file: Path) -> str:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        return f"is no file (mode {status.st_mode:o})"
    if status.st_size > _BYTES_MAX:
        raise OSError(f"{file} has {status.st_size} bytes; {_BYTES_MAX} are read at most")
    digest = sha256(file.read_bytes()).hexdigest()
    return f"sha256:{digest} mode {stat.S_IMODE(status.st_mode):04o} owner {status.st_uid}:{status.st_gid}"


def read_sysctls(names: Iterable[str]) -> list[str]:
    """`name = value` for each of these that this kernel has.

    Raises:
        OSError: one is there and cannot be read.
    """
    lines = []
    for name in names:
        file = _PROC_SYS / name.replace(".", "/")
        if file.exists():
            lines.append(f"{name} = {' '.join(file.read_text().split())}")
    return lines
