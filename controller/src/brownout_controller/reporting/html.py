"""The report as one HTML file: no script, no request to anywhere, light and dark, on paper and on a phone."""

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from brownout_controller.analysis.verdict import Findings
from brownout_controller.analysis.wording import clock, date_and_clock, duration
from brownout_controller.record import RunRecord
from brownout_controller.reporting import facts
from brownout_controller.reporting.residue import residue_rows
from brownout_controller.reporting.timeline import close_up, draw_timeline
from brownout_controller.reporting.visible import visible

MOST_ROWS = 400
"""Of a longer timeline the first and the last are shown: the JSON holds all."""


def to_html(record: RunRecord, findings: Findings) -> str:
    """The whole report. What hosts and people wrote is escaped, its control characters written out."""
    rows = facts.timeline_rows(record, findings)
    window = close_up(findings)
    return _environment().get_template("report.html.j2").render(
        record=record,
        findings=findings,
        style=_style(),
        style_hash=_style_hash(),
        began=date_and_clock(record.started_ns),
        ended=clock(record.ended_ns, 0),
        took=duration((record.ended_ns - record.started_ns) / 1e6),
        timeline=_markup(draw_timeline(record, findings)),
        close_up=_markup(draw_timeline(record, findings, window, "c")) if window else None,
        rows=rows if len(rows) <= MOST_ROWS else (*rows[: MOST_ROWS // 2], *rows[-MOST_ROWS // 2 :]),
        rows_left_out=max(0, len(rows) - MOST_ROWS),
        anatomies=facts.anatomy_tables(record, findings),
        impact=facts.impact_rows(record),
        faults=facts.fault_rows(record),
        residue=residue_rows(record),
        limits=facts.limits(record),
        provenance=facts.provenance(record),
        source=_source(record.source),
        measured=facts.measured,
        prose=_prose,
    )  # fmt: skip


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("brownout_controller.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _finalize(value: Any) -> Any:
    """Every expression of the template goes through here, then through autoescape."""
    return value if isinstance(value, Markup) else visible(value)


def _markup(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704 - made by draw_timeline, which escapes all text and attributes


def _prose(text: str) -> Markup:
    """A sentence in which backticks set off what people type."""
    parts = str(escape(visible(text))).split("`")
    coded = (f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts[:-1]))
    return Markup("".join(coded) + parts[-1])  # noqa: S704 - every part was escaped


def _source(source: str) -> Markup:
    return Markup("\n").join(escape(visible(line)) for line in source.splitlines())


@cache
def _style() -> Markup:
    css = files("brownout_controller.reporting").joinpath("templates/report.css").read_text(encoding="utf-8")
    return Markup(css)  # noqa: S704 - our own file


def _style_hash() -> str:
    return b64encode(sha256(_style().encode()).digest()).decode()
