"""From text to a tree whose every node knows its place. Only the plain part of YAML: no tags, anchors or merges.

PyYAML's *pure* scanner and parser are state machines; its composer recurses and its C twin overflows the stack on
50 kB of `[`. So the tree is built here from the events, on a stack of its own, and depth is refused as it grows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from brownout_controller.language.diagnostics import Diagnostic, InvalidExperiment, Source, Span, quoted
from brownout_controller.language.scalars import AmbiguousScalar, ScalarValue, resolve_plain
from brownout_controller.language.source import FORBIDDEN_CHARACTER, check_characters

DEEPEST = 32
MOST_NODES = 10_000
"""Values, keys and collections of one file. Far more than an experiment needs, and few enough to check at once."""


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """`text` is what was written, without quotes; `verbatim` says that it stands so, on one line, in the source."""

    value: ScalarValue
    text: str
    span: Span
    verbatim: bool = False
    quote: int = 0
    """How many characters of quoting stand before the text."""


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """A list."""

    items: tuple["Node", ...]
    span: Span


@dataclass(frozen=True)
class MappingNode:
    """Keys and values in the order of the file. No key is there twice."""

    entries: tuple[tuple[ScalarNode, "Node"], ...]
    span: Span

    def get(self, key: str) -> "Node | None":
        """The value of a key."""
        return self._by_text[key][1] if key in self._by_text else None

    def key(self, key: str) -> ScalarNode | None:
        """The key itself, for its place."""
        return self._by_text[key][0] if key in self._by_text else None

    @cached_property
    def _by_text(self) -> dict[str, tuple[ScalarNode, "Node"]]:
        return {key.text: (key, value) for key, value in self.entries}


Node = ScalarNode | SequenceNode | MappingNode


def parse_document(source: Source) -> tuple[MappingNode, list[Diagnostic]]:
    """The tree of the one document in `source`, and what is wrong with it that does not hinder reading on.

    Raises:
        InvalidExperiment: not YAML, empty, two documents, nested too deeply, or not a mapping.
    """
    check_characters(source)
    builder = _Builder(source)
    for event in _events(source):
        builder.feed(event)
    root = builder.root
    if root is None or (isinstance(root, ScalarNode) and root.value is None):
        help_ = "brownout explain experiment"
        raise InvalidExperiment(
            [Diagnostic("empty", "there is no experiment in this file", Span(1, 1), help=help_)], source
        )
    if not isinstance(root, MappingNode):
        what = "a list" if isinstance(root, SequenceNode) else "a single value"
        message = f"an experiment is a mapping that begins with `version: 1`, and this is {what}"
        raise InvalidExperiment([*builder.diagnostics, Diagnostic("not-a-mapping", message, root.span)], source)
    return root, builder.diagnostics


def plain(node: Node) -> Any:
    """The node as plain data: dict, list, text, numbers."""
    if isinstance(node, ScalarNode):
        return node.value
    if isinstance(node, SequenceNode):
        return [plain(item) for item in node.items]
    return {key.text: plain(value) for key, value in node.entries}


def _events(source: Source) -> Iterator[yaml.Event]:
    loader = yaml.SafeLoader(source.text)
    try:
        while loader.check_event():
            event: yaml.Event = loader.get_event()  # type: ignore[no-untyped-call]
            yield event
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InvalidExperiment([_syntax_error(error.problem or "this is not YAML", mark, source)], source) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # Not YAMLError: an escape beyond Unicode ("\UFFFFFFFF"), a directive with thousands of digits.
        raise InvalidExperiment([_syntax_error(str(error), loader.get_mark(), source)], source) from error
    finally:
        loader.dispose()


def _syntax_error(problem: str, mark: Any, source: Source) -> Diagnostic:
    place = Span(mark.line + 1, mark.column + 1) if mark else Span(1, 1)
    help_ = ""
    if "${" in source.line(place.line):
        help_ = 'inside { } and [ ] quote what contains ${...}: "${vars.x}"'
    elif "\\t" in problem:
        help_ = "YAML is indented with spaces, never with tabs"
    return Diagnostic("yaml-syntax", f"this is not YAML: {problem}", place, help=help_)


@dataclass
class _Open:
    """A collection that has begun and not yet ended; of a mapping, keys and values by turns."""

    start: yaml.CollectionStartEvent
    children: list[Node] = field(default_factory=list)


class _Builder:
    """Takes events one by one; its only state is the open collections."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.root: Node | None = None
        self.diagnostics: list[Diagnostic] = []
        self._open: list[_Open] = []
        self._documents = 0
        self._nodes = 0

    def feed(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self._start_document(event)
        elif isinstance(event, yaml.AliasEvent):
            self._report("alias", f"aliases are not read: `*{event.anchor}`", self._span(event), help_="use `vars`")
            self._add(ScalarNode(None, "", self._span(event)))
        elif isinstance(event, yaml.ScalarEvent):
            self._refuse_properties(event)
            self._add(self._scalar(event))
        elif isinstance(event, yaml.CollectionStartEvent):
            self._refuse_properties(event)
            if len(self._open) == DEEPEST:
                message = f"this is nested more than {DEEPEST} deep"
                self._report("too-deep", message, self._span(event))
                raise InvalidExperiment(self.diagnostics, self.source)
            self._open.append(_Open(event))
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end_collection(event)

    def _start_document(self, event: yaml.DocumentStartEvent) -> None:
        self._documents += 1
        if self._documents > 1:
            message = "a second document begins here; one file holds one experiment"
            self._report("two-documents", message, self._span(event), help_="write the second into a file of its own")
            raise InvalidExperiment(self.diagnostics, self.source)
        if event.version or event.tags:
            self._report("directive", "YAML directives (%YAML, %TAG) are not read", Span(self._span(event).line, 1))

    def _end_collection(self, event: yaml.Event) -> None:
        opened = self._open.pop()
        # A block collection ends where the next thing begins; its first line is place enough for a finding.
        end = event if opened.start.flow_style else opened.start
        span = self._span(opened.start, end)
        if isinstance(opened.start, yaml.SequenceStartEvent):
            self._add(SequenceNode(tuple(opened.children), span))
            return
        entries = tuple(self._entries(opened.children))
        if not opened.start.flow_style and entries:
            span = entries[0][0].span
        self._add(MappingNode(entries, span))

    def _entries(self, children: list[Node]) -> Iterator[tuple[ScalarNode, Node]]:
        seen: dict[str, ScalarNode] = {}
        for key, value in zip(children[::2], children[1::2], strict=True):
            if not isinstance(key, ScalarNode):
                self._report("complex-key", "a key is a single word", key.span)
            elif key.text == "<<" and key.verbatim and not key.quote:
                self._report("merge-key", "merge keys are not read", key.span, help_="use `vars`")
            elif key.text in seen:
                first = seen[key.text].span
                message = f"key {quoted(key.text)} is there twice"
                self._report("duplicate-key", message, key.span, label=f"first at {first.line}:{first.column}")
            else:
                seen[key.text] = key
                yield key, value

    def _scalar(self, event: yaml.ScalarEvent) -> ScalarNode:
        span = self._span(event, event)
        quote = 0 if event.style is None else 1
        written = self.source.line(span.line)[span.column - 1 + quote : span.column - 1 + span.length - quote]
        text: str = event.value
        value: ScalarValue = text
        if event.style is None:
            value = self._resolved(text, span)
        elif found := FORBIDDEN_CHARACTER.search(text):
            message = f"character U+{ord(found[0]):04X} has no place in an experiment"
            self._report("control-character", message, span)
            value = text = ""
        return ScalarNode(value, text, span, written == text, quote)

    def _resolved(self, text: str, span: Span) -> ScalarValue:
        try:
            return resolve_plain(text)
        except AmbiguousScalar as error:
            message, _, label = str(error).partition("; ")
            self._report("ambiguous-value", f"{quoted(text)} {message}", span, label=label)
            return None

    def _refuse_properties(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.anchor is not None:
            self._report("anchor", f"anchors are not read: `&{event.anchor}`", self._span(event), help_="use `vars`")
        elif event.tag is not None:
            self._report("tag", f"tags are not read: {quoted(event.tag)}", self._span(event))

    def _add(self, node: Node) -> None:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            self._report("too-large", f"an experiment has at most {MOST_NODES} values", node.span)
            raise InvalidExperiment(self.diagnostics, self.source)
        if self._open:
            self._open[-1].children.append(node)
        else:
            self.root = node

    def _report(self, code: str, message: str, span: Span, *, label: str = "", help_: str = "") -> None:
        self.diagnostics.append(Diagnostic(code, message, span, label, help_))

    def _span(self, start: yaml.Event, end: yaml.Event | None = None) -> Span:
        """From the start of one event to the end of another, or to the end of the line if that is further down."""
        first, last = start.start_mark, (end or start).end_mark
        assert first is not None, "every event of the pure parser has marks"
        assert last is not None
        line = self.source.line(first.line + 1)
        stop = last.column if last.line == first.line else len(line)
        return Span(first.line + 1, first.column + 1, max(1, stop - first.column))
