"""The summary at a run's end, for the terminal. Every symbol stands beside a word, so colour is never needed."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from brownout_controller.analysis.expectations import ExpectationResult
from brownout_controller.analysis.verdict import Findings
from brownout_controller.analysis.wording import counted, duration
from brownout_controller.record import RunRecord, Verdict
from brownout_controller.reporting.facts import AnatomyTable, anatomy_tables, fault_rows
from brownout_controller.reporting.residue import residue_rows
from brownout_controller.reporting.visible import visible

_STYLES = {
    Verdict.HELD: "bold green",
    Verdict.DEVIATED: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.ABORTED: "bold magenta",
    Verdict.HALTED: "bold magenta",
    Verdict.ERRORED: "bold red",
}
_SYMBOLS = {Verdict.HELD: ("✓", "+"), Verdict.DEVIATED: ("✗", "x"), Verdict.INCONCLUSIVE: ("?", "?")}


def summary(
    record: RunRecord, findings: Findings, reports: Sequence[str] = (), *, ascii_only: bool = False
) -> RenderableType:
    """What a run came to, as a Rich renderable for 80 columns and more.

    Args:
        record: the run.
        findings: what was concluded from it.
        reports: paths of the reports that were written.
        ascii_only: for a terminal whose encoding has no other symbols.
    """
    parts: list[RenderableType] = [_verdict_line(record, findings, ascii_only)]
    if findings.expectations:
        parts.append(_expectations(findings.expectations, ascii_only))
    parts += [_line("why", reason) for reason in findings.reasons]
    parts += [_anatomy(table) for table in anatomy_tables(record, findings)]
    parts += _effects(record)
    undo_style = "" if "NOT CONFIRMED" not in findings.undo_summary else "bold red"
    parts.append(_line("undo", findings.undo_summary, undo_style))
    parts += _residue(record)
    parts += [_line("report", path) for path in reports]
    parts.append(Text(f"  [exit {int(findings.exit_code)}]", style="dim"))
    return Group(*parts)


def _verdict_line(record: RunRecord, findings: Findings, ascii_only: bool) -> RenderableType:
    style = _STYLES[findings.verdict]
    took = duration((record.ended_ns - record.started_ns) / 1e6)
    head = Text.assemble(
        ("# " if ascii_only else "█ ", style),
        (findings.verdict.value.upper(), style),
        f"  run {visible(record.run_id)}  {took}  {visible(record.name)}",
    )
    lines = [head, _line("", findings.headline)]
    if record.hypothesis:
        lines.append(_line("hypothesis", record.hypothesis))
    return Group(*lines)


def _expectations(results: Sequence[ExpectationResult], ascii_only: bool) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", ratio=1)
    for result in results:
        symbol = _SYMBOLS[result.verdict][1 if ascii_only else 0]
        verdict = Text(f"{symbol} {result.verdict.value}", style=_STYLES[result.verdict])
        table.add_row(verdict, _text(result.name), _text(result.text), _text(result.evidence))
    return Padding(table, (0, 0, 0, 2))


def _anatomy(anatomy: AnatomyTable) -> RenderableType:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("time (UTC)", no_wrap=True)
    table.add_column("after", no_wrap=True, justify="right")
    table.add_column("mark", no_wrap=True)
    table.add_column("seen by", overflow="fold", ratio=1)
    for row in anatomy.marks:
        style = "" if row.seen else "dim"
        cells = (row.time, row.after_injection, row.label, row.source)
        table.add_row(*(Text(visible(cell), style=style) for cell in cells))
    durations = [f"{row.label} {row.value} ({row.bounds})" for row in anatomy.durations if row.value != "not measured"]
    title = _line("anatomy", f"{anatomy.fault} on {anatomy.hosts}, {anatomy.seen_from}")
    lines: list[RenderableType] = [title, Padding(table, (0, 0, 0, 4))]
    lines += [_line("", text) for text in durations]
    lines += [_line("note", note) for note in anatomy.notes]
    return Group(*lines)


def _effects(record: RunRecord) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for row in fault_rows(record):
        proved = "proved" if row.proved else "NOT PROVED"
        amount = f"asked {row.asked}, achieved {row.achieved}" if row.asked != "-" else proved
        word = f" {proved}" if row.asked != "-" else ""
        text = f"{row.name} ({row.kind}) on {row.host}: {amount}{word}; {row.evidence}"
        lines.append(_line("effect", text, "" if row.proved else "yellow"))
    return lines


def _residue(record: RunRecord) -> list[RenderableType]:
    """What the audit has to say beyond `clean`, which stands with the undo."""
    lines: list[RenderableType] = []
    for row in residue_rows(record):
        lines += [_line("residue", f"{row.host}: {line}", "bold red") for line in row.left]
        lines += [_line("not read", f"{row.host}: {line}", "" if row.is_clean else "yellow") for line in row.unread]
        if row.changed_meanwhile:
            others = counted(len(row.changed_meanwhile), "difference")
            lines.append(_line("meanwhile", f"{row.host}: {others} that no fault of this run could have made"))
    return lines


def _line(head: str, content: str, style: str = "") -> RenderableType:
    """One indented line under a short word, wrapped with its indent kept."""
    text = Text(f"{head}: " if head else "", style="dim")
    text.append(visible(content), style=style or "not dim")
    return Padding(text, (0, 0, 0, 2))


def _text(content: str) -> Text:
    return Text(visible(content))
