"""How far each mark of the anatomy is from what HAProxy's log and a logging client saw, over many failovers.

    .venv/bin/python -m tests.bench.anatomy [RUNS]

Needs root. Ends with 1 when a mark of any run is further off than one probe interval and 50 ms.
"""

import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

from tests.support.failovers import ALLOWED_MS, run_failover

RUNS = 20


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    off_ms: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    codes = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            failover = run_failover(Path(folder))
        codes.append(failover.exit_code)
        for one in failover.differences:
            off_ms[one.mark, one.witness, one.vantage].append(one.off_ms)
    sys.stdout.write(table(off_ms, codes))
    if any(codes) or any(abs(off) > ALLOWED_MS for several in off_ms.values() for off in several):
        raise SystemExit(1)


def table(off_ms: dict[tuple[str, str, str], list[float]], codes: list[int]) -> str:
    """One line for each mark, witness and vantage."""
    lines = [f"{len(codes)} failovers, exit codes {sorted(set(codes))}, allowed {ALLOWED_MS} ms"]
    lines.append(f"{'mark':<18}{'witness':<10}{'seen from':<12}{'median':>10}{'earliest':>10}{'latest':>10}  ms off")
    for (mark, witness, vantage), several in off_ms.items():
        figures = "".join(f"{value:>10.1f}" for value in (median(several), min(several), max(several)))
        lines.append(f"{mark:<18}{witness:<10}{vantage:<12}{figures}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
