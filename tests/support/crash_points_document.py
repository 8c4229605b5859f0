"""docs/crash-points.md from what came of every strike, and which calls that document says are covered. Pure."""

import platform
from collections.abc import Sequence

from tests.support.crash_points import AFTER, BEFORE, Label, Point
from tests.support.crash_scenes import Outcome

Strikes = list[tuple[Point, Outcome]]

_HEAD = """# Crash points

<!-- written by `make bench-crash-points`; edits are lost -->

A *crash point* is a system call that may change something, made by the injector or by what it starts (holder, workers,
watchdog, the program that starts killed processes again) while a fault is ordered, held, renewed, stopped and undone;
while an injector starts and undoes what a dead one has left (`start`); and while the watchdog of a dead one undoes
(`reap`). A seccomp filter stops each of them; only calls that are known to be harmless pass unseen, so that a call that
nobody thought of is a point as well. At each SIGKILL strikes *before* the call, which the kernel then never carries
out, and *after* it, before anything follows. In the injector, its watchdog and their forks the process itself is
killed; in other processes once the caller alone and once the one that it works for, which takes the caller along. Then
the kernel is read by `tc`, `nft`, /proc and statvfs:

- whatever differs from before must have its **record** in the journal at the moment of death, not marked clean,
- everything must be **as before** and the journal finished, by the watchdog or the living injector alone; in `start`
  and `reap`, where the one that was to undo is itself killed, by the next start. (Their SIGKILLs for holders are left
  out: they come only if a holder of the dead injector is dying yet. In the faults' lives they are struck.)

`make test` plays every scene once, fails when it hears a call that is not in the table below, and strikes at random.

"""
_TABLE_HEAD = "| scene | by | call | on | killed before | killed after | left | bad |"


def document(strikes: Strikes, left: Sequence[Point]) -> str:
    """The page. `left` are the points of the latest list that were not struck yet, or not well."""
    latest = dict(strikes)
    reached = {point: outcome for point, outcome in latest.items() if outcome.is_reached}
    given_up = sorted(point for point, outcome in latest.items() if not outcome.is_reached)
    bad = [(point, outcome) for point, outcome in strikes if outcome.trouble]
    seconds = sorted(outcome.clean_after_s for outcome in reached.values()) or [0.0]
    points = len(reached.keys() | {*left})
    share = 100 * len(reached) / max(1, points)
    lines = [
        f"**{len(reached)} of {points} points struck: {share:.{1 if left else 0}f} %;",
        f"{sum(bool(outcome.trouble) for outcome in reached.values())} with something on without a record, or left.**",
        *([f"Not well when struck first, and named below: {len(bad)}."] if bad else []),
        f"Clean after {seconds[len(seconds) // 2]:.1f} s in the median and {seconds[-1]:.1f} s at most:",
        "an undo that was itself killed is tried again after 10 s, and many hosts shared the machine.",
        f"On Linux {platform.release()}; of the trees of control groups only those in which we make groups were there.",
        "",
        _TABLE_HEAD,
        "|---|---|---|---|---|---|---|---|",
        *_rows({*reached}, {*left} - {*reached}, {point for point, _ in bad}),
    ]
    if bad:
        lines += ["", "## Not well", ""]
        lines += [f"- {point}: {outcome.trouble}{_since(point, latest)}" for point, outcome in bad]
    if given_up:
        lines += [
            "",
            "## Not there again",
            "",
            "Points of one scene that none of three others had, since time decides:",
        ]
        lines += ["", *(f"- {point}" for point in given_up)]
    return _HEAD + "\n".join(lines) + "\n"


def _rows(reached: set[Point], left: set[Point], bad: set[Point]) -> list[str]:
    rows = []
    for scene, label in sorted({(point.scene, point.label) for point in reached | left}):
        here = {point for point in reached | left if (point.scene, point.label) == (scene, label)}
        counts = [sum(point.when == when for point in here & reached) for when in (BEFORE, AFTER)]
        role, call, target = label
        figures = " | ".join(map(str, (*counts, len(here & left), len(here & bad))))
        rows.append(f"| `{scene}` | {role} | `{call}` | {target} | {figures} |")
    return rows


def _since(point: Point, latest: dict[Point, Outcome]) -> str:
    return "" if latest[point].trouble else " (struck again later: clean)"


def listed(page: str) -> set[tuple[str, Label]]:
    """The calls, with their scenes, of such a page's table."""
    rows = [line.strip("| ").split(" | ") for line in page.partition(_TABLE_HEAD)[2].splitlines() if " | " in line]
    return {(row[0].strip("`"), (row[1], row[2].strip("`"), row[3].strip())) for row in rows}


def missing(scene: str, labels: Sequence[Label], page: str) -> list[Label]:
    """The calls of a scene that are not in the page."""
    known = listed(page)
    return sorted(label for label in {*labels} if (scene, label) not in known)
