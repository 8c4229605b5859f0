"""From pydantic's errors to findings with a place in the file, in the language's own words."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from brownout_agent.faults import catalogue
from pydantic import BaseModel, ValidationError

from brownout_controller.language import later, observers
from brownout_controller.language.diagnostics import Diagnostic, Span, quoted
from brownout_controller.language.document import MappingNode, Node, ScalarNode, SequenceNode
from brownout_controller.language.expectations import Observer
from brownout_controller.language.experiment import (
    KIND_KEY,
    SETTINGS_KEY,
    AgentLostGuard,
    ExperimentFile,
    FaultSpec,
    Identity,
    MaxDurationGuard,
    ProbeGuard,
    ProbeSpec,
    SteadyState,
    Target,
    WatchSpec,
)
from brownout_controller.language.nearest import nearest

Place = tuple[int | str, ...]

SYNONYMS = {
    "action": "inject", "count": "pick", "delay": "at", "description": "hypothesis", "duration": "for",
    "experiment": "name", "fault": "inject", "hosts": "target", "interval": "every", "kind": "inject",
    "labels": "selector", "mode": "pick", "parameters": "with", "params": "with", "period": "every", "start": "at",
    "steadystate": "steady_state", "thresholds": "expect", "title": "name", "type": "inject", "variables": "vars",
    "watchers": "watch",
}  # fmt: skip
"""What other tools call it."""

_MEMBERS: dict[str, tuple[str, type[BaseModel]]] = {
    "targets": ("target", Target),
    "probes": ("probe", ProbeSpec),
    "watch": ("watcher", WatchSpec),
    "faults": ("fault", FaultSpec),
    "guards": ("guard", ProbeGuard),
}
_WANTED = {
    "string_type": ("text", "quote it"),
    "dict_type": ("a mapping", "write `key: value` lines"),
    "tuple_type": ("a list", "write [ ... ] or lines that begin with `- `"),
    "list_type": ("a list", "write [ ... ] or lines that begin with `- `"),
    "model_type": ("a mapping", "write `key: value` lines"),
    "model_attributes_type": ("a mapping", "write `key: value` lines"),
    "bool_type": ("true or false", "write true or false"),
    "bool_parsing": ("true or false", "write true or false"),
    "int_type": ("a whole number", ""),
    "int_parsing": ("a whole number", ""),
    "int_from_float": ("a whole number", ""),
    "float_type": ("a number", ""),
    "float_parsing": ("a number", ""),
    "finite_number": ("a finite number", ""),
}


def findings_of(error: ValidationError, root: MappingNode) -> Iterator[Diagnostic]:
    """Every error of pydantic as a finding."""
    branches: dict[Place, list[str]] = {}
    errors = error.errors(include_url=False)
    misspelt = {
        _meant(located, root)
        for found in errors
        if found["type"] == "extra_forbidden"
        for located in [_Located.at(found["loc"], root)]
    }
    for found in errors:
        located = _Located.at(found["loc"], root)
        if found["type"] in _WANTED and located.missing:  # one branch of a union
            branches.setdefault(located.place, []).append(_WANTED[found["type"]][0])
        elif not _follows(found, located, misspelt):
            yield _finding(found, located)
    for place, wanted in branches.items():
        located = _Located.at(place, root)
        message = f"{_what(located)} must be {' or '.join(wanted)}, and {_shown(located.node)} is not"
        yield Diagnostic("wrong-type", message, located.node.span, help=located.help)


def keys_at(place: Place, root: MappingNode) -> list[str]:
    """The keys that a file may hold at this place."""
    match place:
        case ():
            return keys_of(ExperimentFile)
        case ("steady_state",):
            return keys_of(SteadyState)
        case ("guards", _):
            return [key for guard in (ProbeGuard, AgentLostGuard, MaxDurationGuard) for key in keys_of(guard)]
        case ("probes", _, "identity"):
            return keys_of(Identity)
        case ("probes", _, str(kind)) if kind in observers.kinds(Observer.PROBE):
            return list(observers.fields_by_key(observers.kinds(Observer.PROBE)[kind]))
        case ("watch", _, str(kind)) if kind in observers.kinds(Observer.WATCHER):
            return list(observers.fields_by_key(observers.kinds(Observer.WATCHER)[kind]))
        case ("faults", int(index), "with"):
            inject = _text(child(child(child(root, "faults"), index), "inject"))
            return keys_of(catalogue()[inject].Parameters) if inject in catalogue() else []
        case (str(section), _) if section in _MEMBERS:
            kinds = {"probes": Observer.PROBE, "watch": Observer.WATCHER}
            return keys_of(_MEMBERS[section][1]) + (list(observers.kinds(kinds[section])) if section in kinds else [])
    return []


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys of a section as files write them."""
    names = [field.alias or name for name, field in model.model_fields.items()]
    return [name for name in names if name not in (KIND_KEY, SETTINGS_KEY)]


def subject_of(place: Place, root: MappingNode) -> str:
    """What people call the thing at a place: fault `kill-primary`, guard 2, `steady_state`, the experiment."""
    match place:
        case (str(section), str() | int() as which, *_) if section in _MEMBERS:
            word = _MEMBERS[section][0]
            if isinstance(which, str):
                return f"{word} {quoted(which)}"
            node = child(child(root, section), which)
            name = _text(child(node, "name")) or _text(child(node, "inject"))
            return f"{word} {quoted(name)}" if name else f"{word} {which + 1}"
        case (str(section), *_):
            return f"`{section}`"
    return "the experiment"


def help_at(place: Place, root: MappingNode) -> str:
    """The command that explains what belongs at a place: names and numbers left out, and only keys that exist."""
    topic: list[str] = []
    for depth, step in enumerate(place):
        if step in keys_at(place[:depth], root):
            topic.append(str(step))
    return f"brownout explain {'.'.join(topic) or 'experiment'}"


def child(node: Node | None, step: int | str) -> Node | None:
    """The node one step below, or None if it is not there."""
    if isinstance(node, MappingNode):
        return node.get(str(step))
    if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.items):
        return node.items[step]
    return None


def span_within(node: ScalarNode, start: int, end: int) -> Span:
    """The place of a part of a scalar's text; of all of it where the source spells it differently."""
    if not node.verbatim:
        return node.span
    return Span(node.span.line, node.span.column + node.quote + start, max(1, end - start))


@dataclass(frozen=True, slots=True)
class _Located:
    """Where an error belongs: the deepest node that is there, its key, and the path as files write it."""

    place: Place
    node: Node
    key: ScalarNode | None
    root: MappingNode
    missing: Place
    """The rest of the path, which the file does not have."""

    @classmethod
    def at(cls, loc: Place, root: MappingNode) -> "_Located":
        node: Node = root
        key: ScalarNode | None = None
        place: Place = ()
        for depth, step in enumerate(loc):
            written = _written_step(step, node)
            below = child(node, written)
            if below is None:
                return cls(place, node, key, root, (written, *loc[depth + 1 :]))
            key = node.key(str(written)) if isinstance(node, MappingNode) else None
            node, place = below, (*place, written)
        return cls(place, node, key, root, ())

    @property
    def subject(self) -> str:
        return subject_of(self.place, self.root)

    @property
    def inner(self) -> str:
        """The path below the subject, dotted: `with.percent`."""
        skipped = 2 if self.place and self.place[0] in _MEMBERS else 1
        steps = [str(step) for step in self.place[skipped:]]
        return ".".join(steps)

    @property
    def help(self) -> str:
        return help_at((*self.place, *self.missing), self.root)


def _written_step(step: int | str, node: Node) -> int | str:
    """The key under which a file has what the model calls the kind or its settings, or by a field's own name."""
    if step == "parameters" and child(node, step) is None:
        return "with"
    if step not in (KIND_KEY, SETTINGS_KEY) or not isinstance(node, MappingNode):
        return step
    own = {"identity", "every", "from"}
    written = [name.text for name, _ in node.entries if name.text not in own]
    known = [*observers.kinds(Observer.PROBE), *observers.kinds(Observer.WATCHER)]
    return next((name for name in written if name in known), written[0] if written else step)


def _finding(found: Any, located: _Located) -> Diagnostic:
    kind, context = found["type"], found.get("ctx", {})
    if found["loc"] and found["loc"][-1] == "[key]":
        return _bad_name(located)
    if kind == "extra_forbidden":
        return _unknown_key(located)
    if kind == "missing" or KIND_KEY in located.missing:
        return _missing_key(found, located)
    if kind in ("too_short", "too_long"):
        few = kind == "too_short"
        bound = context["min_length"] if few else context["max_length"]
        message = f"{_what(located)}: {'at least' if few else 'at most'} {bound}, and there {_are(context)}"
        return Diagnostic("wrong-count", message, _key_span(located), help=located.help)
    if "text" in context:
        return _own_finding(kind, context, located)
    return _value_finding(found, located)


def _own_finding(code: str, context: Any, located: _Located) -> Diagnostic:
    node = located.node
    span = node.span
    if context["part"] and isinstance(node, ScalarNode):
        span = span_within(node, *context["part"])
    if located.key and code in ("unknown-kind", "not-yet") and located.place[0] in ("probes", "watch"):
        span = located.key.span
    what = located.subject if code in ("unknown-kind", "not-yet") else _what(located)
    message = context["text"] if code in ("unknown-metric", "bad-threshold") else f"{what}: {context['text']}"
    return Diagnostic(code, message, span, context["label"], "" if code == "not-yet" else located.help)


def _value_finding(found: Any, located: _Located) -> Diagnostic:
    span, value = located.node.span, _shown(located.node)
    kind, context = found["type"], found.get("ctx", {})
    if kind in _WANTED:
        wanted, label = _WANTED[kind]
        message = f"{_what(located)} must be {wanted}, and {value} is not"
        return Diagnostic("wrong-type", message, span, label, located.help)
    if kind == "literal_error":
        return Diagnostic("wrong-value", f"{_what(located)} cannot be {value}", span, f"write {context['expected']}")
    if kind == "string_pattern_mismatch":
        return Diagnostic("bad-name", f"{_what(located)}: {value} is not a name", span, "use a-z, 0-9 and -, up to 63")
    if should := re.match(r"(?:Input|String|Value|Number|List|Tuple) should ", found["msg"]):
        message = f"{_what(located)} must {found['msg'][should.end() :]}, and {value} is not"
        return Diagnostic("bad-value", message, span, help=located.help)
    message, _, label = found["msg"].removeprefix("Value error, ").partition("; ")
    return Diagnostic("bad-value", f"{_what(located)}: {message}", span, label, located.help)


def _follows(found: Any, located: _Located, misspelt: set[Place]) -> bool:
    """Whether the error only follows from another one: a key is missing since it was misspelt, a list seems too short
    to pydantic since it leaves out the items that are wrong."""
    if found["type"] == "missing":
        return (*located.place, *located.missing) in misspelt
    written = len(located.node.items) if isinstance(located.node, SequenceNode) else 1
    return found["type"] == "too_short" and written >= int(found["ctx"]["min_length"])


def _meant(located: _Located, root: MappingNode) -> Place:
    """The place that an unknown key was likely meant for; the place itself if none is near."""
    *parent, name = located.place
    known = keys_at(tuple(parent), root)
    synonyms = {other: key for other, key in SYNONYMS.items() if key in known}
    return (*parent, nearest(str(name), known, synonyms) or name)


def _unknown_key(located: _Located) -> Diagnostic:
    assert located.key is not None, "a key that is too much is there"
    name, parent = located.key.text, located.place[:-1]
    if not parent and name in later.SECTIONS:
        label = "take it out to run the rest"
        return Diagnostic("not-yet", f"this version does not do `{name}`", located.key.span, label)
    known, meant = keys_at(parent, located.root), _meant(located, located.root)
    label = f"did you mean `{meant[-1]}`?" if meant[-1] in known else f"known here: {', '.join(known)}"
    where = [str(step) for step in takewhile(lambda step: isinstance(step, str), parent[2:])]
    subject = subject_of(parent, located.root) + (f", `{'.'.join(where)}`," if where else "")
    message = f"{subject} has no key {quoted(name)}"
    return Diagnostic("unknown-key", message, located.key.span, label, help_at(meant, located.root))


def _missing_key(found: Any, located: _Located) -> Diagnostic:
    if "text" in found.get("ctx", {}):
        return _own_finding(found["type"], found["ctx"], located)
    path = [step for step in map(str, located.missing) if step not in (KIND_KEY, SETTINGS_KEY)]
    name = ".".join([located.inner, *path] if located.inner else path)
    return Diagnostic(
        "missing-key", f"{located.subject} needs `{name}`", _key_span(located), f"add `{path[-1]}`", located.help
    )


def _bad_name(located: _Located) -> Diagnostic:
    assert located.key is not None, "a key that is wrong is there"
    message = f"{quoted(located.key.text)} is not a name"
    return Diagnostic("bad-name", message, located.key.span, "use a-z, 0-9 and -, up to 63 of them")


def _what(located: _Located) -> str:
    inner = located.inner
    return f"`{inner}` of {located.subject}" if inner else located.subject


def _key_span(located: _Located) -> Span:
    """The key whose value lacks something, if it has one; a list item begins where it begins."""
    return located.key.span if located.key and located.place[-1:] != ("with",) else located.node.span


def _shown(node: Node) -> str:
    if isinstance(node, ScalarNode):
        return quoted(node.text) if node.text else "nothing"
    return "a list" if isinstance(node, SequenceNode) else "a mapping"


def _are(context: Any) -> str:
    count = context["actual_length"]
    return f"is {count}" if count == 1 else f"are {count or 'none'}"


def _text(node: Node | None) -> str:
    return node.text if isinstance(node, ScalarNode) else ""
