"""The report as Markdown, to paste into a post-mortem, an issue or a chat."""

import re
from collections.abc import Iterable, Sequence

from brownout_controller.analysis.verdict import Findings
from brownout_controller.analysis.wording import clock, date_and_clock
from brownout_controller.record import RunRecord
from brownout_controller.reporting.facts import (
    AnatomyTable,
    anatomy_tables,
    fault_rows,
    impact_rows,
    limits,
    measured,
    provenance,
    timeline_rows,
)
from brownout_controller.reporting.residue import residue_rows
from brownout_controller.reporting.visible import visible

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|!~@&])")
MOST_ROWS = 60
"""Of a longer timeline the first and the last are shown: the JSON holds all."""


def to_markdown(record: RunRecord, findings: Findings) -> str:
    """The whole report. What hosts and people wrote is escaped: it cannot make markup, mentions or links."""
    sections = (
        _head(record, findings),
        _expectations(findings),
        _timeline(record, findings),
        *(_anatomy(table) for table in anatomy_tables(record, findings)),
        _impact(record),
        _faults(record),
        _residue(record),
        _list("Limits", limits(record)),
        _list("Reproduce", (f"{name}: {value}" for name, value in provenance(record))),
        "### Action items\n\n" + _table(("What", "Owner", "Due", "Link"), [("", "", "", "")]),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def escape(text: object) -> str:
    """Text as text: control characters written out, markup escaped."""
    return _MARKUP.sub(r"\\\1", visible(text))


def _head(record: RunRecord, findings: Findings) -> str:
    lines = [
        f"## {findings.verdict.value.upper()}: {escape(findings.headline)}",
        "",
        f"Run {escape(record.run_id)} of {escape(record.name)}, {date_and_clock(record.started_ns)} to "
        f"{clock(record.ended_ns, 0)}, by {escape(record.operator)}. Faults: {escape(findings.effects_summary)}; "
        f"undo: {escape(findings.undo_summary)}.",
        "",
        f"> Hypothesis: {escape(record.hypothesis or 'none was stated')}",
    ]
    if findings.reasons:
        lines += ["", *(f"- {escape(reason)}" for reason in findings.reasons)]
    return "\n".join(lines)


def _expectations(findings: Findings) -> str:
    rows = [
        (result.name, result.text, measured(result), result.verdict.value, result.evidence)
        for result in findings.expectations
    ]
    return "### Expected and measured\n\n" + _table(("", "Expected", "Measured", "Verdict", "Evidence"), rows)


def _timeline(record: RunRecord, findings: Findings) -> str:
    rows = [
        (row.time, row.since, f"({row.number}) {row.what}" if row.number else row.what, row.seen_by)
        for row in timeline_rows(record, findings)
    ]
    if len(rows) > MOST_ROWS:
        left_out = len(rows) - MOST_ROWS
        rows = [*rows[: MOST_ROWS // 2], ("...", "", f"{left_out} more", ""), *rows[-MOST_ROWS // 2 :]]
    return "### Timeline\n\n" + _table(("Time (UTC)", "T+", "What", "Seen by"), rows)


def _anatomy(table: AnatomyTable) -> str:
    marks = [(row.label, row.time, row.after_injection, row.uncertainty, row.source) for row in table.marks]
    durations = [(row.label, row.value, row.bounds) for row in table.durations]
    notes = "".join(f"\n\n{escape(note)}." for note in table.notes)
    return (
        f"### Failover anatomy: {escape(table.fault)} on {escape(table.hosts)} ({escape(table.seen_from)})\n\n"
        + _table(("Duration", "Measured", "Between"), durations)
        + "\n\n"
        + _table(("Mark", "Time (UTC)", "After injection", "May be off by", "Seen by"), marks)
        + notes
    )


def _impact(record: RunRecord) -> str:
    header = ("Probe", "From", "Requests", "Failed", "Availability", "Longest outage", "p50", "p95", "p99")
    rows = [
        (row.probe, row.vantage, row.requests, row.failed, row.availability, f"{row.longest_outage} "
         f"({row.outage_bounds})", row.p50, row.p95, row.p99)
        for row in impact_rows(record)
    ]  # fmt: skip
    return "### Impact\n\n" + _table(header, rows) if rows else ""


def _faults(record: RunRecord) -> str:
    header = ("Fault", "Host", "In effect (UTC)", "Asked", "Achieved", "Proved", "Evidence", "Undo")
    rows = [
        (f"{row.name} ({row.kind})", row.host, row.in_effect or "never", row.asked, row.achieved,
         "yes" if row.proved else "NO", row.evidence, "; ".join((row.undo, *row.residue)))
        for row in fault_rows(record)
    ]  # fmt: skip
    return "### Faults as injected and undone\n\n" + _table(header, rows) if rows else ""


def _residue(record: RunRecord) -> str:
    header = ("Host", "State", "Left", "Changed meanwhile", "Not read")
    rows = [
        (row.host, row.state, "; ".join(row.left), "; ".join(row.changed_meanwhile), "; ".join(row.unread))
        for row in residue_rows(record)
    ]
    return "### Residue audit\n\n" + _table(header, rows) if rows else ""


def _list(title: str, lines: Iterable[str]) -> str:
    written = "\n".join(f"- {escape(line)}" for line in lines)
    return f"### {title}\n\n{written}" if written else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(escape(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)
