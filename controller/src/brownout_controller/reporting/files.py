"""Reports as files: which formats there are, and where they go."""

from collections.abc import Callable, Sequence
from pathlib import Path

from brownout_controller.analysis.verdict import Findings
from brownout_controller.record import RunRecord
from brownout_controller.reporting.document import to_json
from brownout_controller.reporting.html import to_html
from brownout_controller.reporting.markdown import to_markdown

FORMATS: dict[str, Callable[[RunRecord, Findings], str]] = {"html": to_html, "md": to_markdown, "json": to_json}


def render(record: RunRecord, findings: Findings, form: str) -> str:
    """The report in one format of FORMATS."""
    return FORMATS[form](record, findings)


def write_reports(record: RunRecord, findings: Findings, folder: Path, forms: Sequence[str]) -> list[Path]:
    """Write `brownout-RUN.FORMAT` for each format into `folder`, made if need be; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for form in forms:
        path = folder / f"brownout-{record.run_id}.{form}"
        path.write_text(render(record, findings, form), encoding="utf-8")
        written.append(path)
    return written
