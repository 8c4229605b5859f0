"""What stands in the kernel's packet filters, read without making it load anything.

Asking netfilter over netlink makes the kernel load the module that would answer. So it is asked only where that module
is there already; where it is not, there can be no table, and that is the answer.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from brownout_agent.kernel.nftables import Nftables

_IPTABLES = {"ip": "iptables-legacy-save", "ip6": "ip6tables-legacy-save"}
_COUNTERS = re.compile(r"\[\d+:\d+\]")
_PROGRAM_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Table:
    """One table: `family` and name, and what stands in it, without counters."""

    family: str
    name: str
    rules: tuple[str, ...]

    @property
    def text(self) -> str:
        """`table inet brownout-3f`."""
        return f"table {self.family} {self.name}"

    @property
    def digest(self) -> str:
        """`table ip filter: 12 lines, sha256:...`."""
        return f"{self.text}: {len(self.rules)} lines, sha256:{sha256(chr(10).join(self.rules).encode()).hexdigest()}"


def is_there(module: str, root: Path = Path("/")) -> bool:
    """Whether the kernel has this code without having to load a module. `root` is where /proc, /sys and /lib are.

    Raises:
        OSError: that cannot be told.
    """
    if not (root / "proc/modules").exists():
        return True  # a kernel without loadable modules loads none, whatever it is asked
    if (root / "sys/module" / module).exists():
        return True
    builtin = root / "lib/modules" / os.uname().release / "modules.builtin"
    try:
        return f"/{module}.ko" in builtin.read_text()
    except OSError as error:
        raise OSError(f"cannot tell whether {module} is loaded: {builtin}: {error.strerror}") from error


def read_nft() -> list[Table]:
    """Every nftables table of the calling thread's network namespace.

    Raises:
        OSError: libnftables is not there, or the kernel refused.
    """
    if not is_there("nf_tables"):
        return []
    with Nftables() as nft:
        return list(parse_ruleset(nft.ruleset()))


def parse_ruleset(text: str) -> Iterator[Table]:
    """The tables of what `nft --stateless list ruleset` prints. Pure.

    Comments are left out: libnftables puts the name of an owner there, which may change with nothing else.
    """
    head, rules = "", list[str]()
    for line in text.splitlines():
        if line.startswith("table "):
            head, rules = line.partition("{")[0], []
        elif line == "}":
            _, family, name = head.split()
            yield Table(family, name, tuple(rules))
        elif line.strip() and not line.startswith("#"):
            rules.append(line.strip())


def read_iptables() -> list[Table]:
    """Every table of the older iptables (those of iptables-nft are nftables tables).

    Raises:
        OSError: there are tables, and no program to read them by.
    """
    return [table for family, program in _IPTABLES.items() for table in _iptables(family, program)]


def _iptables(family: str, program: str) -> Iterator[Table]:
    names = Path(f"/proc/net/{family}_tables_names")
    if not names.exists():
        return
    for name in names.read_text().split():  # only those that are there: the program would load any other
        if shutil.which(program) is None:
            raise OSError(f"{family} table {name} cannot be read without {program}")
        argv = [program, "--table", name]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_PROGRAM_TIMEOUT_S)
        if done.returncode != 0:
            raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")
        lines = (_COUNTERS.sub("", line) for line in done.stdout.splitlines() if not line.startswith("#"))
        yield Table(family, name, tuple(lines))
