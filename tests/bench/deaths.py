"""Many deaths: every fault x {agent, injector, both, controller}, REPEATS times each, a few side by side.

.venv/bin/python -m tests.bench.deaths [REPEATS]        as root; writes docs/deaths.md
"""

import asyncio
import os
import platform
import statistics
import sys
import time
from pathlib import Path

from tests.support.deaths import DEATHS, FAULTS, Death, DeathCase, FaultCase, die

SIDE_BY_SIDE = 6
DOCUMENT = Path(__file__).parents[2] / "docs/deaths.md"


async def all_trials(repeats: int) -> list[Death]:
    """Run every cell `repeats` times."""
    gate = asyncio.Semaphore(SIDE_BY_SIDE)
    done = 0
    total = repeats * len(FAULTS) * len(DEATHS)

    async def one(fault: FaultCase, death: DeathCase) -> Death:
        nonlocal done
        async with gate:
            outcome = await die(fault, death)
        done += 1
        print(f"{done}/{total} {outcome}", file=sys.stderr)
        return outcome

    cells = [one(fault, death) for _ in range(repeats) for fault in FAULTS for death in DEATHS]
    return list(await asyncio.gather(*cells))


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
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    begun = time.monotonic()
    outcomes = asyncio.run(all_trials(repeats))
    leftovers = [outcome for outcome in outcomes if outcome.leftovers]
    late = [outcome for outcome in outcomes if not outcome.good and not outcome.leftovers]
    text = f"""# Deaths

A fault always ends. Each cell: a whole Brownout (controller, injector, agent: real processes, mutual TLS) in a network
namespace of its own, one fault in mid-air with 60 s to go, then SIGKILL of who stands above the column. Whether the
fault is there is read from the kernel (`nft`, `/proc`) by another process. Seconds from the kill to the fault being
gone: median / maximum. The lease is 10 s, renewed every 2 s.

{table(outcomes)}

{len(outcomes)} trials, {len(leftovers)} leftovers, {len(late)} late. By `python -m tests.bench.deaths {repeats}`
in {time.monotonic() - begun:.0f} s, {SIDE_BY_SIDE} trials side by side, on Linux {platform.release()}
with {os.cpu_count()} shared cores.
"""
    DOCUMENT.write_text(text, encoding="utf-8")
    print(text)
    for outcome in late + leftovers:
        print(f"NOT GOOD {outcome}", file=sys.stderr)
    raise SystemExit(1 if late or leftovers else 0)


if __name__ == "__main__":
    main()
