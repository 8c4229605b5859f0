"""The picture of a run: faults, what users saw, who answered, what the system thought, and the marks. Inline SVG.

A pure function of record and findings. Colours stand as attributes, so the picture is right in any viewer, and classes
let a page restyle it in the dark. At most two points or one block a pixel column and lane: about 30 kB a probe for a
run of any length.
"""

from dataclasses import dataclass

from brownout_controller.analysis.coverage import gaps, observed_span
from brownout_controller.analysis.marks import MarkName
from brownout_controller.analysis.periods import FaultPeriod, fault_periods
from brownout_controller.analysis.verdict import Findings
from brownout_controller.analysis.watched import state_changes, state_stretches
from brownout_controller.analysis.wording import NS_PER_S, clock, since
from brownout_controller.language.expectations import parse_expectation
from brownout_controller.record import RunRecord
from brownout_controller.reporting.axis import Axis, element, hover, label, text, width_of
from brownout_controller.reporting.facts import NumberedMark, in_words, numbered_marks
from brownout_controller.reporting.lanes import Lane, bar, fault_lane, identity_lane, probe_lane, watch_lane

WIDTH = 1080
_LEFT, _RIGHT_MARGIN = 172, 34
_ROW = 20
_LATENCY_METRICS = frozenset({"p50", "p90", "p95", "p99", "max"})

Window = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _PlacedMark:
    numbered: NumberedMark
    x: float
    row: int
    text_left: float


def draw_timeline(record: RunRecord, findings: Findings, window: Window | None = None, prefix: str = "t") -> str:
    """The picture as an `<svg>` element.

    Args:
        record: the run.
        findings: what was concluded from it.
        window: begin and end of what to show (ns); None is the whole run.
        prefix: keeps ids apart where a page holds several pictures.
    """
    axis = Axis(*(window or _whole(record)), _LEFT, WIDTH - _LEFT - _RIGHT_MARGIN)
    placed = _place([one for one in numbered_marks(findings) if axis.holds(one.mark.at_ns)], axis)
    periods = [one for one in fault_periods(record) if axis.meets(one.injected_ns, one.ended_ns or axis.end_ns)]
    lanes = _lanes(record, findings, axis, periods, prefix)
    top = _ROW * (max((one.row for one in placed), default=-1) + 1) + 10
    bottom = top + sum(lane.height for lane in lanes)
    body = _definitions(prefix) + _bands(periods, axis, top, bottom) + _grid(record, axis, top, bottom)
    y = float(top)
    for lane in lanes:
        body += element("g", lane.markup, transform=f"translate(0 {y:g})") if lane.markup else ""
        y += lane.height
    body += "".join(_draw_mark(one, bottom) for one in placed)
    height = bottom + 40
    names = element("title", text(_title(record, axis, window)), id=f"{prefix}-title")
    names += element("desc", text(in_words(record, findings)), id=f"{prefix}-desc")
    return element(
        "svg", names + body, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {height:g}", width=WIDTH,
        height=height, role="img", aria_labelledby=f"{prefix}-title {prefix}-desc", class_="timeline",
    )  # fmt: skip


def close_up(findings: Findings) -> Window | None:
    """From just before the first injection to just after steady or moved, where the whole run's picture is too wide."""
    marks = {one.mark.name: one.mark for one in reversed(numbered_marks(findings))}
    injected = marks.get(MarkName.INJECTED)
    early = (MarkName.FIRST_USER_ERROR, MarkName.NOTICED, MarkName.MOVED, MarkName.STEADY)
    until = [mark.at_ns for name, mark in marks.items() if name in early]
    if injected is None or not until:
        return None
    length_ns = max(NS_PER_S, max(until) - injected.at_ns)
    return injected.at_ns - length_ns // 4, max(until) + length_ns // 4


def _whole(record: RunRecord) -> Window:
    begin_ns, end_ns = observed_span(record)
    return min(begin_ns, record.started_ns), max(end_ns, record.ended_ns)


def _title(record: RunRecord, axis: Axis, window: Window | None) -> str:
    what = "Close-up" if window else "Timeline"
    return f"{what} of run {record.run_id}, {clock(axis.begin_ns)} to {clock(axis.end_ns)} UTC"


def _lanes(record: RunRecord, findings: Findings, axis: Axis, periods: list[FaultPeriod], prefix: str) -> list[Lane]:
    span = observed_span(record)
    evidence = {fault.name: fault.explanation for fault in record.faults}
    lanes = [fault_lane(period, axis, evidence.get(period.name, ""), prefix) for period in periods]
    numbered = list(enumerate(findings.outages, start=1))
    for series in record.series:
        key = (series.probe, series.vantage.name)
        own = [(number, one) for number, one in numbered if (one.probe, one.vantage) == key]
        limit_ms = _threshold_ms(record, series.probe)
        lanes.append(probe_lane(series, axis, own, gaps(series, span), limit_ms, prefix))
        lanes.append(identity_lane(series, axis))
    stretches = state_stretches(state_changes(record), max(span[1], record.ended_ns))
    lanes += [watch_lane(watcher, subject, own, axis) for (watcher, subject), own in stretches.items()]
    return lanes


def _threshold_ms(record: RunRecord, probe: str) -> float | None:
    """The lowest limit on an answer's time that the experiment states for this probe."""
    stated = [parse_expectation(expected) for name, expected in record.expectations if name == probe]
    limits = [one.limit for one in stated if one.metric in _LATENCY_METRICS and one.operator in {"<", "<="}]
    if probe in record.probe_thresholds:
        limits.append(record.probe_thresholds[probe])
    return min(limits, default=None)


def _place(marks: list[NumberedMark], axis: Axis) -> list[_PlacedMark]:
    """Every label in the first row where it collides with no other; at the right edge it stands left of its line."""
    rows: list[list[tuple[float, float]]] = []
    placed = []
    for one in marks:
        x = axis.x(one.mark.at_ns)
        width = width_of(one.label) + 4
        to_the_right = x + 12 + width <= WIDTH
        left, right = (x - 9, x + 12 + width) if to_the_right else (x - 12 - width, x + 9)
        row = next((n for n, taken in enumerate(rows) if all(right < a or left > b for a, b in taken)), len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append((left, right))
        placed.append(_PlacedMark(one, x, row, x + 12 if to_the_right else x - 12 - width))
    return placed


def _draw_mark(one: _PlacedMark, bottom: float) -> str:
    y = one.row * _ROW + 12
    mark = one.numbered.mark
    body = hover(f"{one.numbered.label} at {clock(mark.at_ns, 2)}: {mark.source}")
    body += element(
        "line", x1=one.x, x2=one.x, y1=y + 8, y2=bottom, stroke="#374151", stroke_dasharray="2 3", class_="mark-line"
    )
    body += element("circle", cx=one.x, cy=y, r=8, fill="#1f2937", class_="mark")
    body += element(
        "text", str(one.numbered.number), x=one.x, y=y + 4, font_size=11, font_family="system-ui, sans-serif",
        font_weight=700, text_anchor="middle", fill="#ffffff", class_="mark-number",
    )  # fmt: skip
    body += label(one.text_left, y + 4, one.numbered.label)
    return element("g", body, data_mark=mark.name.value, data_number=one.numbered.number)


def _bands(periods: list[FaultPeriod], axis: Axis, top: float, bottom: float) -> str:
    body = ""
    for period in periods:
        left, right = bar(axis, period.injected_ns, period.ended_ns or axis.end_ns)
        body += element(
            "rect", x=left, y=top, width=round(right - left, 1), height=bottom - top, fill="#f59e0b",
            fill_opacity=0.13, class_="band", data_band=period.name,
        )  # fmt: skip
    return body


def _grid(record: RunRecord, axis: Axis, top: float, bottom: float) -> str:
    body = element("line", x1=axis.left, x2=axis.right, y1=bottom, y2=bottom, stroke="#6b7280", class_="rule")
    ticks = axis.ticks(record.started_ns)
    fine = len(ticks) > 1 and (ticks[1] - ticks[0]) % NS_PER_S != 0
    for tick in ticks:
        x = axis.x(tick)
        body += element("line", x1=x, x2=x, y1=top, y2=bottom + 4, stroke="#d1d5db", stroke_width=0.7, class_="grid")
        body += label(x, bottom + 17, clock(tick, 1 if fine else 0), size=10, text_anchor="middle")
        body += label(x, bottom + 31, since(tick, record.started_ns), size=10, class_="muted", text_anchor="middle")
    return body + label(8, bottom + 17, "UTC", size=10, class_="muted")


def _definitions(prefix: str) -> str:
    stripes = element("path", d="M0 8L8 0M-2 2L2 -2M6 10L10 6", stroke="#b45309", stroke_width=2, class_="stripe")
    hatch = element(
        "pattern",
        element("rect", width=8, height=8, fill="#fde3b5", class_="stripe-ground") + stripes,
        id=f"{prefix}hatch", width=8, height=8, patternUnits="userSpaceOnUse",
    )  # fmt: skip
    dots = element("path", d="M0 0L6 6", stroke="#6b7280", stroke_width=1, class_="unknown-stripe")
    unknown = element("pattern", dots, id=f"{prefix}unknown", width=6, height=6, patternUnits="userSpaceOnUse")
    return element("defs", hatch + unknown)
