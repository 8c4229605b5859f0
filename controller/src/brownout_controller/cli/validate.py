"""`brownout validate FILE...`: every finding about experiment files, offline. Nothing is sent anywhere."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from brownout_controller.exit_codes import ExitCode
from brownout_controller.language import Diagnostic, InvalidExperiment, Source, check
from brownout_controller.language.diagnostics import Severity, printable
from brownout_controller.language.source import read_source


class OutputFormat(StrEnum):
    """How findings are written: for people, one a line, for GitHub Actions, for programs."""

    FULL = "full"
    CONCISE = "concise"
    GITHUB = "github"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Finding:
    """A diagnostic and the file it is about."""

    source: Source
    diagnostic: Diagnostic


def validate(
    paths: Sequence[Path], overrides: Mapping[str, str], output_format: OutputFormat = OutputFormat.FULL
) -> tuple[str, ExitCode]:
    """What to print about the files, and the exit code: 3 if any has an error. Warnings alone are no error."""
    findings = [finding for path in paths for finding in _findings(path, overrides)]
    has_errors = any(finding.diagnostic.severity is Severity.ERROR for finding in findings)
    return _WRITERS[output_format](findings, len(paths)), ExitCode.INVALID_FILE if has_errors else ExitCode.HELD


def _findings(path: Path, overrides: Mapping[str, str]) -> list[Finding]:
    try:
        checked = check(read_source(path), overrides)
    except InvalidExperiment as error:
        return [Finding(error.source, diagnostic) for diagnostic in error.diagnostics]
    return [Finding(checked.source, diagnostic) for diagnostic in checked.warnings]


def _full(findings: Sequence[Finding], files: int) -> str:
    return "\n".join([*(found.diagnostic.render(found.source) for found in findings), _summary(findings, files)])


def _concise(findings: Sequence[Finding], files: int) -> str:
    return "\n".join([*map(_line, findings), _summary(findings, files)])


def _line(finding: Finding) -> str:
    found = finding.diagnostic
    label = f" ({found.label})" if found.label else ""
    text = printable(f"{found.message}{label}")
    return f"{printable(finding.source.name)}:{found.line}:{found.column}: {found.severity}[{found.code}] {text}"


def _github(findings: Sequence[Finding], _files: int) -> str:
    return "\n".join(_github_command(finding) for finding in findings)


def _github_command(finding: Finding) -> str:
    """A workflow command; GitHub asks for `%`, line ends, and in properties also `:` and `,` to be escaped."""
    found = finding.diagnostic
    file = _percent_escaped(printable(finding.source.name)).replace(":", "%3A").replace(",", "%2C")
    text = _percent_escaped(printable("; ".join(filter(None, (found.message, found.label)))))
    place = f"line={max(found.line, 1)},col={max(found.column, 1)}"
    return f"::{found.severity} file={file},{place},title={found.code}::{text}"


def _percent_escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _json(findings: Sequence[Finding], _files: int) -> str:
    return json.dumps(
        [
            {
                "file": finding.source.name,
                "line": finding.diagnostic.line,
                "column": finding.diagnostic.column,
                "length": finding.diagnostic.span.length,
                **{name: value for name, value in dataclasses.asdict(finding.diagnostic).items() if name != "span"},
            }
            for finding in findings
        ],
        indent=2,
    )


def _summary(findings: Sequence[Finding], files: int) -> str:
    errors = sum(finding.diagnostic.severity is Severity.ERROR for finding in findings)
    warnings = len(findings) - errors
    counts = [_counted(number, word) for number, word in ((errors, "error"), (warnings, "warning")) if number]
    return f"{' and '.join(counts) or 'No errors'} in {_counted(files, 'file')}. Nothing was sent."


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


_WRITERS: dict[OutputFormat, Callable[[Sequence[Finding], int], str]] = {
    OutputFormat.FULL: _full,
    OutputFormat.CONCISE: _concise,
    OutputFormat.GITHUB: _github,
    OutputFormat.JSON: _json,
}
