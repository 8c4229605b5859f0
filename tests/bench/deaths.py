"""Many deaths: every fault x {agent, injector, both, controller}, ROUNDS times each.

    .venv/bin/python -m tests.bench.deaths [ROUNDS]        as root; writes docs/deaths.md

In a round the four deaths happen side by side, each on a host of its own that has all the faults on at once.
"""

import asyncio
import os
import platform
import statistics
import sys
import time
from pathlib import Path

from tests.support.deaths import DEATHS, FAULTS, Death, die_together

ROUNDS = 8
DOCUMENT = Path(__file__).parents[2] / "docs/deaths.md"


async def all_trials(rounds: int) -> list[Death]:
    """Every fault and death, `rounds` times."""
    outcomes: list[Death] = []
    for number in range(rounds):
        for of_each in await asyncio.gather(*(die_together(FAULTS, death) for death in DEATHS)):
            outcomes += of_each
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return outcomes


def table(outcomes: list[Death]) -> str:
    """Per fault and death: median and maximum of the seconds from the kill to the fault being gone."""
    head = "| fault | " + " | ".join(f"{death.name} (≤ {death.bound_s:g} s)" for death in DEATHS) + " |"
    lines = [head, "|---|" + "---|" * len(DEATHS)]
    for fault in FAULTS:
        cells = []
        for death in DEATHS:
            mine = [o for o in outcomes if (o.fault, o.death) == (fault.kind, death.name)]
            times = [o.gone_after_s for o in mine if o.gone_after_s is not None]
            good = sum(o.good for o in mine)
            cells.append(f"{statistics.median(times):.2f} / {max(times):.2f} s ({good} of {len(mine)} in time)")
        lines.append(f"| {fault.kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run and write the document."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    begun = time.monotonic()
    outcomes = asyncio.run(all_trials(rounds))
    leftovers = [outcome for outcome in outcomes if outcome.leftovers]
    late = [outcome for outcome in outcomes if not outcome.good and not outcome.leftovers]
    text = f"""# Deaths

A fault always ends. Each trial: a whole Brownout (controller, injector, agent: real processes, mutual TLS) in a network
namespace of its own, all seven faults on with 60 s to go, then SIGKILL of who stands above the column. Whether a fault
is on is read from the kernel (`nft`, `/proc`) by another process. Seconds from the kill to the fault being gone:
median / maximum. The lease is 10 s, renewed every 2 s.

{table(outcomes)}

{len(outcomes)} trials, {len(leftovers)} leftovers, {len(late)} late. By `python -m tests.bench.deaths {rounds}` in
{time.monotonic() - begun:.0f} s, four hosts side by side, on Linux {platform.release()} with {os.cpu_count()} cores.
"""
    DOCUMENT.write_text(text, encoding="utf-8")
    print(text)
    for outcome in late + leftovers:
        print(f"NOT GOOD {outcome}", file=sys.stderr)
    raise SystemExit(1 if late or leftovers else 0)


if __name__ == "__main__":
    main()
