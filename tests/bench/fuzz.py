"""A storm of hostile inputs at the injector's socket; writes docs/fuzzing.md.

    make bench-fuzz                                          as root; a million inputs
    .venv/bin/python -m tests.bench.fuzz [INPUTS [SEED]]

Exits 1 when the injector died, complained of itself, applied something, or kept what it was sent.
"""

import asyncio
import platform
import random
import signal
import sys
from pathlib import Path

from tests.support.fuzz_injector import GROWTH_BYTES_MAX, Storm, storm_at

INPUTS = 1_000_000
DOCUMENT = Path(__file__).parents[2] / "docs/fuzzing.md"
_MIB = 2**20


def document(storm: Storm) -> str:
    """The page."""
    resident = [sample // _MIB for sample in storm.resident_bytes]
    pace = f"{storm.seconds:.0f} s, {storm.total / storm.seconds:,.0f} a second"
    growth = f"its highest {storm.growth_bytes() / _MIB:+.1f} MiB from the first half to the second"
    lines = [
        "# Fuzzing the injector's socket",
        "",
        "<!-- written by `make bench-fuzz`; edits are lost -->",
        "",
        "Whoever is root or the agent's user may speak to the injector, so it must take anything from them. Inputs",
        "are made from the messages' own descriptors with values from the edges of every field; some are then broken",
        "on the wire. The policy allows every fault, at hours that are over: orders are read, checked and refused at",
        "the last rule, and nothing may ever be applied. Rules, queueing disciplines and processes are read from the",
        "kernel before and after; the journal may name no fault, and the log no traceback.",
        "",
        f"**{storm.total:,} inputs over {storm.connections:,} connections: no crash, nothing applied.**",
        f"Seed {storm.seed}; {pace}, on Linux {platform.release()}.",
        f"Memory {min(resident)} to {max(resident)} MiB, {growth};",
        f"{storm.descriptors[0]} descriptors at first, {storm.descriptors[-1]} at last.",
        "",
        "| sent | times | | answered | times |",
        "|---|---|---|---|---|",
    ]
    sent, answered = storm.inputs.most_common(), storm.answers.most_common()
    for row in range(max(len(sent), len(answered))):
        cells = [f"{pairs[row][0]} | {pairs[row][1]:,}" if row < len(pairs) else " | " for pairs in (sent, answered)]
        lines.append(f"| {cells[0]} | | {cells[1]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Storm, and the document."""
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else INPUTS
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", file=sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):  # an end in good order leaves nothing on the machine
        signal.signal(number, signal.default_int_handler)
    storm = asyncio.run(storm_at(inputs, seed))
    DOCUMENT.write_text(document(storm))
    if storm.growth_bytes() > GROWTH_BYTES_MAX:
        raise SystemExit(f"memory grows: {storm.resident_bytes}")


if __name__ == "__main__":
    main()
