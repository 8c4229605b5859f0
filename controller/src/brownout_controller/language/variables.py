"""`${vars.x}` in values: put in before anything is validated, so every message speaks of what will be used."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from brownout_controller.language.diagnostics import Diagnostic, InvalidExperiment, Source, Span, quoted
from brownout_controller.language.document import MappingNode, Node, ScalarNode, SequenceNode
from brownout_controller.language.nearest import nearest
from brownout_controller.language.scalars import AmbiguousScalar, resolve_plain
from brownout_controller.language.source import FORBIDDEN_CHARACTER, LARGEST_BYTES

_PLACEHOLDER = re.compile(r"\$\$\{|\$\{([^{}]*)\}")


def substitute(root: MappingNode, overrides: Mapping[str, str], source: Source) -> tuple[MappingNode, list[Diagnostic]]:
    """The tree with every `${vars.x}` replaced, and what was wrong with some. `$${` stands for a literal `${`.

    `overrides` takes the place of values under `vars`, as `--var x=value` gives them; they are read as plain scalars.

    Raises:
        InvalidExperiment: the replaced text is larger than an experiment may be.
    """
    values, diagnostics = _values(root.get("vars"), overrides)
    writer = _Writer(values, source, diagnostics)
    entries = []
    for key, value in root.entries:
        if key.text != "vars":
            entries.append((key, writer.replaced(value)))
        elif isinstance(value, MappingNode):
            entries.append(
                (key, MappingNode(tuple((name, values[name.text]) for name, _ in value.entries), value.span))
            )
        else:
            entries.append((key, value))
    return MappingNode(tuple(entries), root.span), writer.diagnostics


def _values(declared: Node | None, overrides: Mapping[str, str]) -> tuple[dict[str, Node], list[Diagnostic]]:
    values = {key.text: value for key, value in declared.entries} if isinstance(declared, MappingNode) else {}
    diagnostics = []
    for value in values.values():
        if isinstance(value, ScalarNode) and _PLACEHOLDER.search(value.text):
            message = "a variable cannot be made of other variables"
            diagnostics.append(Diagnostic("bad-variable", message, value.span, "write the text out"))
    for name, text in overrides.items():
        option = f"--var {name}={text}"
        if name not in values:
            similar = nearest(name, values)
            hint = f"did you mean --var {similar}={text}?" if similar else f"declare `{name}` under `vars` first"
            diagnostics.append(Diagnostic("unknown-variable", f"{quoted(option)}: no such variable", help=hint))
            continue
        try:
            if FORBIDDEN_CHARACTER.search(text):
                raise AmbiguousScalar("holds a control character")
            values[name] = ScalarNode(resolve_plain(text), text, values[name].span)
        except AmbiguousScalar as error:
            diagnostics.append(Diagnostic("bad-variable", f"{quoted(option)}: the value {error}"))
    return values, diagnostics


@dataclass
class _Writer:
    """Replaces placeholders, and keeps count: a few kilobytes of `${vars.x}` must not grow into gigabytes."""

    values: Mapping[str, Node]
    source: Source
    diagnostics: list[Diagnostic] = field(default_factory=list)
    written: int = 0

    def replaced(self, node: Node) -> Node:
        if isinstance(node, ScalarNode):
            return self._scalar(node) if "${" in node.text else node
        if isinstance(node, SequenceNode):
            return SequenceNode(tuple(self.replaced(item) for item in node.items), node.span)
        for key, _ in node.entries:
            if _PLACEHOLDER.search(key.text):
                self._report("bad-variable", "variables stand in values, not in keys", key.span)
        return MappingNode(tuple((key, self.replaced(value)) for key, value in node.entries), node.span)

    def _scalar(self, node: ScalarNode) -> ScalarNode:
        whole = _PLACEHOLDER.fullmatch(node.text)
        if whole and whole[1] is not None:
            value = self._lookup(whole, node)
            return ScalarNode(value.value, value.text, node.span) if value else ScalarNode(None, "", node.span)
        return self._joined(node)

    def _joined(self, node: ScalarNode) -> ScalarNode:
        parts = []
        end = 0
        for match in _PLACEHOLDER.finditer(node.text):
            value = self._lookup(match, node) if match[1] is not None else None
            parts += [node.text[end : match.start()], value.text if value else "${" if match[1] is None else ""]
            self.written += len(parts[-1])
            end = match.end()
            if self.written > LARGEST_BYTES:
                self._report("too-large", f"with its variables this is over {LARGEST_BYTES // 1024} KiB", node.span)
                raise InvalidExperiment(self.diagnostics, self.source)
        text = "".join([*parts, node.text[end:]])
        return ScalarNode(text, text, node.span)

    def _lookup(self, match: re.Match[str], node: ScalarNode) -> ScalarNode | None:
        name = match[1].strip()
        span = node.span
        if node.verbatim:
            span = Span(span.line, span.column + node.quote + match.start(), len(match[0]))
        family, _, variable = name.partition(".")
        if family == "secrets":
            self._report("not-yet", "this version does not read secrets", span)
            return None
        value = self.values.get(variable) if family == "vars" else None
        if isinstance(value, ScalarNode):
            return value
        if family == "vars" and value is None:
            similar = nearest(variable, self.values)
            label = f"did you mean `${{vars.{similar}}}`?" if similar else f"declare `{variable}` under `vars`"
            self._report("unknown-variable", f"there is no variable {quoted(variable)}", span, label)
        elif family != "vars":
            help_ = "a literal `${` is written `$${`"
            self._report("unknown-variable", f"{quoted(match[0])} names no variable", span, "write ${vars.name}", help_)
        return None

    def _report(self, code: str, message: str, span: Span, label: str = "", help_: str = "") -> None:
        self.diagnostics.append(Diagnostic(code, message, span, label, help_))
