"""docs/crash-points.md from what came of every strike, and what that document says was covered. Pure."""

import platform
from collections.abc import Mapping

from tests.support.crash_points import AFTER, BEFORE, Outcome, Point

_HEAD = """# Crash points

<!-- written by `make bench-crash-points`; edits are lost -->

A *crash point* is a system call that may change something, made by the injector or by what it starts (holder, workers,
the program that starts killed processes again) while a fault is ordered, held, renewed, stopped and undone. A seccomp
filter stops each of them; only calls that are known to be harmless pass unseen, so that a call that nobody thought of
is a point as well. At each SIGKILL strikes *before* the call, which the kernel then never carries out, and *after* it,
before anything follows. In the injector and its forks the injector is killed; in other processes once the caller
alone and once the injector, which takes the caller along. Then the kernel is read by `tc`, `nft`, /proc and statvfs:

- whatever differs from before must have its **record** in the journal at the moment of death,
- everything must be **as before** and the journal finished, by the watchdog or the living injector alone.

"""


def document(outcomes: Mapping[Point, Outcome], left: int) -> str:
    """The page. `left` is how many points of the latest list were not struck yet."""
    reached = {point: outcome for point, outcome in outcomes.items() if outcome.is_reached}
    bad = {point: outcome for point, outcome in reached.items() if outcome.trouble}
    seconds = sorted(outcome.clean_after_s for outcome in reached.values()) or [0.0]
    points = len(reached) + left
    lines = [
        f"**{len(reached)} kills, {100 * len(reached) / max(1, points):.1f} % of {points} points;",
        f"{len(bad)} with something on without a record or left.**",
        f"Clean after {seconds[len(seconds) // 2]:.1f} s in the median and {seconds[-1]:.1f} s at most:",
        "an undo that was itself killed is tried again after 10 s. How often packets are counted depends on time:",
        f"{len(outcomes) - len(reached)} more points of one life were in none of three others. On Linux",
        f"{platform.release()}.",
        "",
        "| fault | by | call | on | killed before | killed after | bad |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, label in sorted({(point.kind, point.label) for point in reached}):
        role, call, target = label
        here = [point for point in reached if (point.kind, point.label) == (kind, label)]
        counts = (sum(point.when == when for point in here) for when in (BEFORE, AFTER))
        numbers = " | ".join(map(str, (*counts, sum(point in bad for point in here))))
        lines.append(f"| `{kind}` | {role} | `{call}` | {target} | {numbers} |")
    if bad:
        lines += ["", "## Not well", "", *(f"- {point}: {outcome.trouble}" for point, outcome in sorted(bad.items()))]
    return _HEAD + "\n".join(lines) + "\n"
