"""What is wrong with a file, where, and what would be right: values, and how they look as plain text.

The look is rustc's: code and message, `--> file:line:column`, the source line, carets, and the next command.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

_WIDEST_LINE = 160
_BEFORE_CARET = 60
_LONGEST_QUOTE = 60
MOST_FINDINGS = 100


class Severity(StrEnum):
    """An error stops the file from being used; a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one line. Line and column count from 1, in characters; line 0 is the file as a whole."""

    line: int
    column: int
    length: int = 1


WHOLE_FILE = Span(0, 0, 0)


@dataclass(frozen=True)
class Source:
    """An experiment's text and the name that people know it by."""

    name: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        """The lines without their ends."""
        return self.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")

    def line(self, number: int) -> str:
        """The line of that number, counted from 1; empty past the end."""
        return self.lines[number - 1] if number <= len(self.lines) else ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. `code` is stable; `label` stands behind the carets; `help` is the next thing to do."""

    code: str
    message: str
    span: Span = WHOLE_FILE
    label: str = ""
    help: str = ""
    severity: Severity = Severity.ERROR

    @property
    def line(self) -> int:
        """Counted from 1; 0 for the file as a whole."""
        return self.span.line

    @property
    def column(self) -> int:
        """Counted from 1, in characters; 0 for the file as a whole."""
        return self.span.column

    def render(self, source: Source) -> str:
        """The finding as people read it, several lines without a final newline. Control characters are escaped."""
        head = f"{self.severity}[{self.code}]: {printable(self.message)}"
        name = printable(source.name)
        if not self.line:
            arrow = [f" --> {name}"]
            notes = [f"  = {note}" for note in (printable(self.label), self._help()) if note]
            return "\n".join([head, *arrow, *notes])
        width = len(str(self.line))
        text, carets = _excerpt(source.line(self.line), self.span)
        margin = " " * width
        lines = [
            head,
            f"{margin}--> {name}:{self.line}:{self.column}",
            f"{margin} |",
            f"{self.line} | {text}".rstrip(),
            f"{margin} | {carets} {printable(self.label)}".rstrip(),
        ]
        return "\n".join([*lines, f"{margin} = {self._help()}"] if self.help else lines)

    def _help(self) -> str:
        return f"help: {printable(self.help)}" if self.help else ""


class InvalidExperiment(Exception):
    """The file is not an experiment. Nothing was sent. `diagnostics` holds the findings in order of the file: all of
    them, or the first hundred and how many more there are."""

    def __init__(self, diagnostics: Iterable[Diagnostic], source: Source) -> None:
        ordered = in_order(diagnostics)
        self.diagnostics = ordered[:MOST_FINDINGS]
        if len(ordered) > MOST_FINDINGS:
            self.diagnostics += (Diagnostic("more", f"{len(ordered) - MOST_FINDINGS} more findings are not shown"),)
        self.source = source
        super().__init__(render_all(self.diagnostics, source))


def in_order(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """By line and column, each once, errors before warnings."""
    return tuple(sorted(dict.fromkeys(diagnostics), key=lambda found: (found.line, found.column, found.severity)))


def render_all(diagnostics: Iterable[Diagnostic], source: Source) -> str:
    """All findings as people read them."""
    return "\n".join(diagnostic.render(source) for diagnostic in diagnostics)


def printable(text: str) -> str:
    """The text with every character that is not plainly visible written as an escape: no terminal obeys a file."""
    return "".join(_visible(character) for character in text)


def quoted(value: object) -> str:
    """A value of the user's as messages quote it: in backquotes, and short."""
    text = str(value)
    return f"`{text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 1] + '…'}`"


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _excerpt(line: str, span: Span) -> tuple[str, str]:
    """The source line and the carets under the span; of a very long line, the part around the span."""
    start = span.column - 1
    length = max(1, min(span.length, len(line) - start))
    shift = max(0, start - _BEFORE_CARET) if len(line) > _WIDEST_LINE else 0
    shown = line[shift : shift + _WIDEST_LINE]
    before = [_visible(character) for character in line[shift:start].replace("\t", " ")]
    under = [_visible(character) for character in line[start : start + length].replace("\t", " ")]
    room = _WIDEST_LINE - (start - shift)
    text = printable(shown.replace("\t", " "))
    lead, tail = ("…" if shift else ""), ("…" if shift + _WIDEST_LINE < len(line) else "")
    carets = " " * (_columns(lead) + _columns("".join(before))) + "^" * max(1, _columns("".join(under[:room])))
    return lead + text + tail, carets


def _columns(text: str) -> int:
    """How many terminal columns the text takes."""
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
