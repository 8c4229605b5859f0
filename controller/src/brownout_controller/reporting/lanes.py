"""The lanes of the picture. Each is a pure function from values and an axis to markup and its height in pixels.

Size is bounded whatever the run's length: samples are reduced to the lowest and the highest of every pixel column, and
what touches within a column is drawn as one, so that a lane never holds more than two points or one block a column.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from brownout_controller.analysis.coverage import Gap, is_gap
from brownout_controller.analysis.outages import NS_PER_MS, Outage
from brownout_controller.analysis.periods import FaultPeriod
from brownout_controller.analysis.watched import StateStretch, is_healthy
from brownout_controller.analysis.wording import clock, duration, estimate
from brownout_controller.record import Series
from brownout_controller.reporting.axis import Axis, element, hover, label, width_of

FAULT_HEIGHT = 38
PROBE_HEIGHT = 72
IDENTITY_HEIGHT = 13
SPACE = 8
WATCH_HEIGHT = 22
MOST_IDENTITIES = 6
NARROWEST_BAR = 4.0

IDENTITY_COLOURS = ("#0072b2", "#b35900", "#007a59", "#a8437e", "#1f6f8b", "#6b5b00")
"""Told apart with any colour vision; every row also carries its name."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Markup drawn at y = 0 and how high it is."""

    markup: str
    height: float


@dataclass(frozen=True, slots=True)
class Block:
    """Some things that touch within a pixel: the first's and the last's number, from 1."""

    left: float
    right: float
    first: int
    last: int


def fault_lane(period: FaultPeriod, axis: Axis, evidence: str, prefix: str) -> Lane:
    """A hatched bar for the time in which the fault was in effect."""
    ended_ns = period.ended_ns or axis.end_ns
    left, right = bar(axis, period.injected_ns, ended_ns)
    until = clock(period.ended_ns) if period.ended_ns else "no undo was seen"
    title = f"{period.name}: {period.kind} on {', '.join(period.hosts)}, {clock(period.injected_ns)} to {until}"
    body = label(8, 15, shorten(period.name, 23), font_weight=600)
    body += label(8, 29, shorten(f"{period.kind} on {', '.join(period.hosts)}", 29), size=10, class_="muted")
    body += element(
        "rect", hover(f"{title}. {evidence}"), x=left, y=7, width=round(right - left, 1), height=20, rx=2,
        fill=f"url(#{prefix}hatch)", stroke="#b45309", class_="fault",
    )  # fmt: skip
    return Lane(element("g", body, data_fault=period.name), FAULT_HEIGHT)


def probe_lane(
    series: Series,
    axis: Axis,
    outages: Iterable[tuple[int, Outage]],
    silent: tuple[Gap, ...],
    threshold_ms: float | None,
    prefix: str,
) -> Lane:
    """Answer times as a line that breaks where no answer came; outages in red; silence hatched; the limit dashed."""
    top_ms = _top_ms(series, axis, threshold_ms)
    base, top = PROBE_HEIGHT - 8.0, 14.0

    def y(milliseconds: float) -> float:
        return round(base - (base - top) * min(1.0, milliseconds / top_ms), 1)

    body = label(8, 24, shorten(series.probe, 21), font_weight=600)
    body += label(8, 39, f"from {shorten(series.vantage.name, 18)}", class_="muted")
    body += label(axis.left - 6, top + 4, duration(top_ms), size=10, class_="muted", text_anchor="end")
    body += label(axis.left - 6, base, "0", size=10, class_="muted", text_anchor="end")
    body += element("line", x1=axis.left, x2=axis.right, y1=base, y2=base, stroke="#9ca3af", class_="rule")
    body += _silence(silent, axis, base, prefix)
    body += _outage_blocks(tuple(outages), axis, base)
    if threshold_ms is not None:
        body += _threshold(axis, threshold_ms, top_ms, y(threshold_ms))
    path = latency_path(series, axis, y)
    body += element(
        "path", d=path, fill="none", stroke="#1d4ed8", stroke_width=1.4, stroke_linecap="round",
        stroke_linejoin="round", class_="line",
    ) if path else ""  # fmt: skip
    return Lane(element("g", body, data_probe=series.probe, data_vantage=series.vantage.name), PROBE_HEIGHT)


def identity_lane(series: Series, axis: Axis) -> Lane:
    """A row for each identity: a bar while it answered. By name and by colour."""
    names = sorted({who for who, ok in zip(series.identity, series.ok, strict=True) if ok and who})
    body = ""
    for row, name in enumerate(names[:MOST_IDENTITIES]):
        top = row * IDENTITY_HEIGHT
        colour = IDENTITY_COLOURS[row]
        body += label(axis.left - 6, top + 9, shorten(name, 20), size=10, class_="muted", text_anchor="end")
        for left, right in _presence(series, name, len(names), axis):
            body += element(
                "rect", x=left, y=top + 2, width=round(right - left, 1), height=IDENTITY_HEIGHT - 5, fill=colour,
                class_=f"who{row}", data_identity=name,
            )  # fmt: skip
    rows = min(len(names), MOST_IDENTITIES)
    if len(names) > MOST_IDENTITIES:
        body += label(
            axis.left, rows * IDENTITY_HEIGHT + 9, f"and {len(names) - MOST_IDENTITIES} more", size=10, class_="muted"
        )
        rows += 1
    return Lane(element("g", body, data_answered_by=series.probe) if body else "", rows * IDENTITY_HEIGHT + SPACE)


def watch_lane(watcher: str, subject: str, stretches: tuple[StateStretch, ...], axis: Axis) -> Lane:
    """The system's own view of one of its parts: a block for each state, with its word."""
    body = label(8, 15, shorten(f"{watcher}: {subject}", 24))
    for stretch in stretches:
        if not axis.meets(stretch.begun_ns, stretch.ended_ns):
            continue
        left, right = axis.x(stretch.begun_ns), axis.x(stretch.ended_ns)
        fill, class_ = _state_look(stretch.state)
        block = hover(f"{subject} {stretch.state} from {clock(stretch.begun_ns)} to {clock(stretch.ended_ns)}")
        block += element(
            "rect", x=left, y=4, width=max(1.0, right - left), height=WATCH_HEIGHT - 8, fill=fill, class_=class_
        )
        if right - left > width_of(stretch.state, 10) + 8:
            block += label(left + 4, 15, stretch.state, size=10)
        body += element("g", block, data_state=stretch.state)
    return Lane(element("g", body, data_watch=f"{watcher}:{subject}"), WATCH_HEIGHT)


def latency_path(series: Series, axis: Axis, y: Callable[[float], float]) -> str:
    """The line of answer times: at most two points a pixel column, and no line across a failure or a silence."""
    columns: dict[int, list[float]] = {}
    broken: set[int] = set()
    previous: int | None = None
    for i, (sent_ns, ok) in enumerate(zip(series.sent_ns, series.ok, strict=True)):
        if not axis.holds(sent_ns) or not ok:
            continue
        column = int(axis.x(sent_ns))
        if column not in columns:
            columns[column] = []
            if previous is None or previous != i - 1 or is_gap(series, series.sent_ns[previous], sent_ns):
                broken.add(column)
        columns[column].append(y(series.took_ns[i] / NS_PER_MS))
        previous = i
    commands = []
    for column, heights in columns.items():
        low, high = max(heights), min(heights)
        commands.append(f"{'M' if column in broken else 'L'}{column} {low:g}")
        if low != high:
            commands.append(f"V{high:g}")
        elif column in broken:
            commands.append("h0.1")  # a lone answer shows as a dot
    return "".join(commands)


def merged(stretches: Iterable[tuple[float, float]]) -> list[Block]:
    """Blocks of whatever touches, from pixel stretches in order."""
    blocks: list[Block] = []
    for number, (left, right) in enumerate(stretches, start=1):
        if blocks and left <= blocks[-1].right:
            last = blocks[-1]
            blocks[-1] = Block(last.left, max(last.right, right), last.first, number)
        else:
            blocks.append(Block(left, right, number, number))
    return blocks


def bar(axis: Axis, begun_ns: int, ended_ns: int) -> tuple[float, float]:
    """Left and right of a bar that is never too narrow to be seen, and stays in the picture."""
    left, right = axis.x(begun_ns), axis.x(ended_ns)
    if right - left < NARROWEST_BAR:
        left = min(left, axis.right - NARROWEST_BAR)
        right = left + NARROWEST_BAR
    return left, right


def shorten(content: str, longest: int) -> str:
    """The text, cut with an ellipsis where it is too long for its place."""
    return content if len(content) <= longest else content[: longest - 1] + "…"


def _outage_blocks(outages: tuple[tuple[int, Outage], ...], axis: Axis, base: float) -> str:
    shown = [(number, one) for number, one in outages if axis.meets(one.begun_ns, one.ended_ns)]
    stretches = [(axis.x(one.begun_ns), max(axis.x(one.ended_ns), axis.x(one.begun_ns) + 2)) for _, one in shown]
    body = ""
    for block in merged(stretches):
        first, last = shown[block.first - 1], shown[block.last - 1]
        numbers = str(first[0]) if first == last else f"{first[0]}-{last[0]}"
        title = f"outage {numbers}: {estimate(first[1].duration_ms, 'ms')} from {clock(first[1].begun_ns)}"
        title += "" if first == last else f", and more up to {clock(last[1].ended_ns)}"
        body += element(
            "rect", hover(title), x=block.left, y=14, width=round(block.right - block.left, 1), height=base - 14,
            fill="#dc2626", fill_opacity=0.78, class_="outage", data_outage=numbers,
        )  # fmt: skip
    return body


def _silence(silent: tuple[Gap, ...], axis: Axis, base: float, prefix: str) -> str:
    shown = [(axis.x(gap.begun_ns), axis.x(gap.ended_ns)) for gap in silent if axis.meets(gap.begun_ns, gap.ended_ns)]
    return "".join(
        element(
            "rect", hover("no samples: unknown"), x=block.left, y=14, width=max(1.0, block.right - block.left),
            height=base - 14, fill=f"url(#{prefix}unknown)", class_="unknown", data_gap="",
        )
        for block in merged(shown)
    )  # fmt: skip


def _threshold(axis: Axis, threshold_ms: float, top_ms: float, y: float) -> str:
    if threshold_ms > top_ms:
        return label(
            axis.right, 10, f"limit {duration(threshold_ms)} is above", size=10, class_="muted", text_anchor="end"
        )
    line = element(
        "line", x1=axis.left, x2=axis.right, y1=y, y2=y, stroke="#b91c1c", stroke_dasharray="5 4", class_="limit"
    )
    return line + label(axis.right, y - 3, f"limit {duration(threshold_ms)}", size=10, class_="bad", text_anchor="end")


def _top_ms(series: Series, axis: Axis, threshold_ms: float | None) -> float:
    """A round number above the slowest answer; the limit is in the picture unless it would flatten the line."""
    took = (
        took / NS_PER_MS
        for sent, took, ok in zip(series.sent_ns, series.took_ns, series.ok, strict=True)
        if ok and axis.holds(sent)
    )
    slowest = max(took, default=1.0)
    wanted = max(slowest, threshold_ms) if threshold_ms is not None and threshold_ms < 3 * slowest else slowest
    return next((step for step in _ROUND_MS if step >= wanted), wanted)


def _presence(series: Series, name: str, identities: int, axis: Axis) -> list[tuple[float, float]]:
    """Pixel stretches in which `name` kept answering, at the pace that a rotation among all identities allows."""
    pace_ns = 2.5 * series.every_ns * max(1, identities)
    stretches: list[tuple[int, int]] = []
    for sent_ns, who, ok in zip(series.sent_ns, series.identity, series.ok, strict=True):
        if not ok or who != name or not axis.holds(sent_ns):
            continue
        if stretches and sent_ns - stretches[-1][1] <= pace_ns:
            stretches[-1] = (stretches[-1][0], sent_ns)
        else:
            stretches.append((sent_ns, sent_ns))
    ends = ((axis.x(begun), max(axis.x(begun) + 2, axis.x(ended + series.every_ns))) for begun, ended in stretches)
    return [(block.left, min(block.right, axis.right)) for block in merged(ends)]


def _state_look(state: str) -> tuple[str, str]:
    healthy = is_healthy(state)
    if healthy is None:
        return "#e5e7eb", "state-unknown"
    return ("#a7e3bd", "state-good") if healthy else ("#f5b5b5", "state-bad")


_ROUND_MS = [
    digit * 10.0**power for power in range(-1, 7) for digit in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
]  # 0.1 ms to over an hour
