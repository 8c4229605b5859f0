"""`python -m tests.bench.lifetimes [REPEATS]`: every combination of our processes stopped; writes docs/lifetimes.md.

On a host that runs much else, in a process table of its own: `unshare --mount --pid --fork --mount-proc python -m ...`
"""

import asyncio
import platform
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.host.network_pair import inside, network_namespace
from tests.support.frozen import COMBINATIONS, LEASE_S, bound_s, freeze_each

AT_ONCE = 5
DOCUMENT = Path(__file__).parents[2] / "docs/lifetimes.md"
_MARK = "<!-- figures: written by python -m tests.bench.lifetimes -->"
Seen = dict[tuple[str, ...], dict[str, list[float | None]]]


def main() -> int:
    """Freeze, write the document, and exit 1 when a fault outlived its bound."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    seen: Seen = {frozen: defaultdict(list) for frozen in COMBINATIONS}
    with network_namespace() as namespace, inside(namespace):
        for number in range(repeats):
            print(f"round {number + 1} of {repeats}", file=sys.stderr)
            with tempfile.TemporaryDirectory(prefix="lifetimes-") as folder:
                for frozen, gone in asyncio.run(freeze_each(Path(folder), at_once=AT_ONCE)).items():
                    for kind, after_s in gone.items():
                        seen[frozen][kind].append(after_s)
    table, late = _table(seen)
    head = DOCUMENT.read_text().partition(_MARK)[0]
    DOCUMENT.write_text(f"{head}{_MARK}\n\n{table}\n\n{_foot(repeats, late)}\n")
    print(table, f"\nlate: {late}")
    return 1 if late else 0


def _table(seen: Seen) -> tuple[str, int]:
    kinds = list(next(iter(seen.values())))
    lines = ["| stopped | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    late = 0
    for frozen, by_kind in seen.items():
        cells = []
        for kind in kinds:
            bound, times = bound_s(kind, frozen), by_kind[kind]
            late += bound is not None and sum(one is None or one > bound for one in times)
            known = [one for one in times if one is not None]
            cells.append(f"{max(known):.2f} (≤ {bound:g})" if bound is not None and known else "not ended")
        lines.append(f"| {' + '.join(frozen)} | " + " | ".join(cells) + " |")
    return "\n".join(lines), late


def _foot(repeats: int, late: int) -> str:
    return (
        f"Maximum of {repeats} trials each, in seconds from the stop; lease {LEASE_S:g} s, {AT_ONCE} hosts at once;\n"
        f"{late} were beyond their bound. By `python -m tests.bench.lifetimes {repeats}` on Linux {platform.release()}."
    )


if __name__ == "__main__":
    sys.exit(main())
