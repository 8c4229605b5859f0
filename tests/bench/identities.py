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

## What a stolen controller can do, and the way back

A controller that was taken over has real papers: agents obey its orders, within each host's own policy (policy.md),
as long as it answers them. What it cannot do is keep the honest ones out:

- **A root** is taken from a controller only beside one that the agent knows, and if one that it knows has signed it.
  The roots' keys lie in the folder `authority` of the controller that founded the cluster, and nowhere else; a rotation
  makes both roots sign each other. The intermediates' keys, which every controller has, make no root.
- **A certificate** is taken only for the agent's own key and name, with authorities that pass the same test.
- **An epoch** is taken up to 1,000,000 beyond the last. A controller that is told of a larger one than it knows goes
  one beyond it: that is also how hosts come back after `brownout data restore` of an old backup.
- **Other addresses of controllers** may be told, but where the agent joined stays known and is tried.

A welcome that breaks one of these is refused as a whole and written into the agent's own copy (`controller.session`,
`controller.renew`), and the agent goes on to the next controller (`tests/e2e/test_hostile_controller.py`).

What it can do beside giving orders: renew an agent's certificate behind the others' back, who then lock that agent.

The way back:

1. Stop the stolen controller or cut it off; where several share a database, give that another password. Agents come to
   the others within half a minute, and faults end with their leases.
2. Make what it has read worthless: `brownout ca rotate`, phase by phase, on the controller that has the folder
   `authority`. If that folder was on the stolen machine, found another cluster and let every host join.
3. A host that does not come back (its agent's log says why) joins again: `brownout-agent join ...` with a new token. It
   is another agent then: authorities, certificate and epochs begin anew, in agent and injector.

A rotation begun by an earlier build, which did not have the roots sign each other, is refused by agents that have not
taken it yet: take it back with `brownout ca rotate --rollback`, go on to the end, and begin again.
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
