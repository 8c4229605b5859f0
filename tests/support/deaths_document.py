"""docs/death-matrix.md from the outcomes of all sittings. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.deaths import AT_ONCE, AT_ONCE_ON_UML, COLUMNS, FAULTS, LEASE_S, RESTART_S, Column, Outcome, Phase

_HEAD = f"""# The death matrix

<!-- written by `make bench-death-matrix`; edits are lost -->

A fault always ends. A *cell* is a fault under a column (what happens to the host) in a phase: *inject* strikes at a
random instant after the orders, *hold* with all faults on, *undo* at a random instant after the stops. In one trial up
to {AT_ONCE} faults of a host are on at once, {AT_ONCE_ON_UML} in user-mode Linux. Programs are the real ones: the
controller's fleet server over mutual TLS, agent, injector, watchdog. Whether a fault is on is read from the kernel by
another process: processes of `/proc`, the state and limits of victims, datagrams that do not arrive. Afterwards the
host must run nothing but what it ran before, each victim once and as free as before, without a table or control group
of ours, and with its disk as free as before; otherwise something was *left*, which counts against every cell of that
trial.

"""
_COLUMNS_SAY = f"""
The time counts from the strike; under *none*, *disk full* and *read-only*, where nothing dies, from the stop or from
the end of the fault's own time, and so under *clock*. A fault that was not on at the strike and did not come after it
counts as 0 and is left out of the percentiles. Looks are 50 ms apart, 100 ms in user-mode Linux.

- **bound**: 1 s where all live, 5 s with the injector dead, 30 s with both dead or stopped, lease ({LEASE_S:g} s) + 1 s
  where no renewal arrives any more: a dead agent, a dead controller, a cut link. `process.kill` with `restart` and
  `exec.run` have {RESTART_S:g} s more, since their undo is the start of programs.
- **none**: inject, stopped while it begins; hold, its time is up; undo, stopped twice.
- **disk full**, **read-only**: of the disk with journal and working folder; then a stop. The disk becomes read-only by
  an error that ext4 is made to find.
- **OOM**: a control group that has agent, injector and holders is filled until the kernel kills; a dead injector is
  started again after 2 s, as its unit would, and a stop is sent.
- **power cut**: a user-mode Linux host ends at one stroke (`cgroup.kill`) and boots again from its disk. Its time is
  from the cut to the end of the boot reap, and the bound is the moment at which its agent takes orders.
- **clock**: the wall clock of a user-mode Linux host is stepped; faults must end when their time is up. These hosts
  have one slow core, so their bound is 5 s, and 15 s more for the start of a program.

User-mode Linux has no nftables for IP; its hosts have no control groups with limits, one interface, and a policy that
names no programs: the faults that need these have no cells under *power cut* and *clock*. What these change is the
kernel's and ends with it. That the kernel ends a timed rule with no process alive is shown on a host under
QEMU: [test_kernel_ended.py](../tests/host/test_kernel_ended.py).
"""


@dataclass(frozen=True)
class _Times:
    """Of the cells of one column."""

    cells: int
    censored: int
    late: int
    left: int
    seconds: tuple[float, ...]
    """Sorted; of faults that were on. Infinite where one was never seen to go."""


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of them do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def document(outcomes: Sequence[Outcome], machine: str, command: str) -> str:
    """The whole page."""
    judged = Counter(outcome.judgement for outcome in outcomes)
    told = len(outcomes) - judged["censored"]
    commits = sorted({outcome.commit for outcome in outcomes})
    summary = (
        f"**{told} cells, {judged['left']} with something left, {judged['late']} late**, "
        f"{judged['censored']} more that tell nothing (censored): they came to no strike, or nobody looked when it "
        f"mattered. On {machine}. Commits {', '.join(commits)}. "
        f"By `{command}`; every line of its results has the seed of its trial.\n\n"
    )
    return _HEAD + summary + _by_column(outcomes) + _COLUMNS_SAY + _by_fault(outcomes) + _not_good(outcomes)


def _by_column(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| column | bound | cells | left | late | censored | p50 | p99 | max |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for column in COLUMNS:
        times = _times(outcomes, column)
        bound = f"{column.bound_s:g} s" if column.bound_s else "orders again"
        figures = [percentile(times.seconds, share) for share in (0.5, 0.99, 1.0)]
        cells = [column.name, bound, times.cells, times.left, times.late, times.censored, *map(_seconds, figures)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _times(outcomes: Sequence[Outcome], column: Column) -> _Times:
    mine = [outcome for outcome in outcomes if outcome.column == column.name]
    judged = Counter(outcome.judgement for outcome in mine)
    times = [math.inf if one.gone_after_s is None else one.gone_after_s for one in mine if one.judgement != "censored"]
    seconds = sorted(time_s for time_s in times if time_s)
    told = len(mine) - judged["censored"]
    return _Times(told, judged["censored"], judged["late"], judged["left"], tuple(seconds))


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return "not gone" if math.isinf(value) else f"{value:.2f} s"


def _by_fault(outcomes: Sequence[Outcome]) -> str:
    """Good cells of all, by fault and column, the phases together."""
    good = Counter((one.fault, one.column) for one in outcomes if one.judgement == "good")
    told = Counter((one.fault, one.column) for one in outcomes if one.judgement != "censored")
    phases = Counter(one.phase for one in outcomes if one.judgement != "censored")
    shares = ", ".join(f"{phases[phase]} in {phase}" for phase in Phase)
    head = "| fault | " + " | ".join(column.name for column in COLUMNS) + " |\n|---|" + "---|" * len(COLUMNS) + "\n"
    rows = []
    for fault in FAULTS:
        keys = [(fault.kind, column.name) for column in COLUMNS]
        cells = [f"{good[key]}/{told[key]}" if told[key] else "-" for key in keys]
        rows.append(f"| {fault.kind} | " + " | ".join(cells) + " |")
    return f"\n## Good cells of all, by fault\n\n{shares}.\n\n{head}" + "\n".join(rows) + "\n"


def _not_good(outcomes: Sequence[Outcome]) -> str:
    bad = [one for one in outcomes if one.judgement in {"late", "left"}]
    if not bad:
        return ""
    counted = Counter(map(_kind_of_failure, bad))
    lines = ["| commit | column | phase | fault | judged | cells | a seed |", "|---" * 7 + "|"]
    seeds = {_kind_of_failure(one): one.seed for one in bad}
    for key, count in sorted(counted.items()):
        lines.append("| " + " | ".join([*key, str(count), str(seeds[key])]) + " |")
    return "\n## Cells that are not good\n\n" + "\n".join(lines) + "\n"


def _kind_of_failure(outcome: Outcome) -> tuple[str, str, str, str, str]:
    return outcome.commit, outcome.column, outcome.phase, outcome.fault, outcome.judgement
