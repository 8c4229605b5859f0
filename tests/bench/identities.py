"""Write docs/identity.md: what became of every wrong identity at every call of `Fleet`, as the grid found it now.

.venv/bin/python -m tests.bench.identities
"""

import asyncio
import tempfile
from pathlib import Path

from tests.support.wrong_identities import CALLS, IDENTITIES, Cell, try_all

DOCUMENT = Path(__file__).parents[2] / "docs/identity.md"
_HEAD = """# Who may come in

Made by `tests/bench/identities.py`, which tried each of these against a controller of its own, over real TLS.
`make test` does the same. The calls are read from the service's definition: a new one without a row fails.

Each attempt is right in everything but its identity: a good token, a good request, a good first message.
"""
_TAIL = """
Where the TLS handshake refuses, gRPC tells nobody who came and why: the audit then says that a connection came to
nothing (`agent.connect`), and gRPC's own log on the controller says the reason. An agent that is shown a false
controller writes it into its own copy (docs/audit.md), which no controller can rewrite.
"""


def document(grid: dict[tuple[str, str], Cell | BaseException]) -> str:
    """The grid as a page."""
    refused = [cell for cell in grid.values() if isinstance(cell, Cell)]
    lines = [_HEAD, f"{len(refused)} of {len(grid)} refused and written down.", ""]
    lines += ["| identity | call | refused by | written in |", "|---|---|---|---|"]
    for name in IDENTITIES:
        for call in CALLS:
            cell = grid[name, call]
            if isinstance(cell, Cell):
                lines.append(f"| {name} | {call} | {cell.refused.replace('|', '/')} | {cell.written} |")
            else:
                lines.append(f"| {name} | {call} | **not refused: {cell!r}** | |")
    return "\n".join(lines) + "\n" + _TAIL


def main() -> None:
    """Try all, write the page, and fail where somebody came in."""
    with tempfile.TemporaryDirectory() as folder:
        grid = asyncio.run(try_all(Path(folder)))
    DOCUMENT.write_text(document(grid), encoding="utf-8")
    print(DOCUMENT)
    for cell, found in grid.items():
        if isinstance(found, BaseException):
            raise SystemExit(f"{cell}: {found!r}")


if __name__ == "__main__":
    main()
