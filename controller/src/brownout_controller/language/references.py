"""What one place of a file says of another: names that must exist, orders that must make sense.

It works on the tree, so that a mistake in one section does not hide those in the others.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from brownout_agent.quantities import format_duration_ms

from brownout_controller.language.diagnostics import Diagnostic, Severity, quoted
from brownout_controller.language.document import MappingNode, Node, ScalarNode, SequenceNode, plain
from brownout_controller.language.expectations import METRICS, Expectation, Observer, parse_expectation
from brownout_controller.language.experiment import Experiment, named
from brownout_controller.language.findings import span_within, subject_of
from brownout_controller.language.forms import NAME_PATTERN
from brownout_controller.language.nearest import nearest
from brownout_controller.language.selectors import Selector


def check_references(root: MappingNode) -> Iterator[Diagnostic]:
    """Every name that leads nowhere, or to the wrong thing."""
    yield from _check_expectations(root)
    yield from _check_guards(root)
    yield from _check_faults(root)


def check_sense(experiment: Experiment, root: MappingNode) -> Iterator[Diagnostic]:
    """Warnings about a valid experiment that will likely not say what its author hopes."""
    for key, label in (
        ("hypothesis", "say in one sentence what should hold"),
        ("expect", "without it every run is `held`"),
    ):
        if not getattr(experiment, key):
            yield _warning("nothing-expected", f"the experiment has no `{key}`", root, label)
    for name, expectation in experiment.expectations():
        node = _expectation_node(root, name, expectation)
        probe = experiment.probes.get(name)
        if node and probe and expectation.metric in ("outage", "recovery") and probe.every_ms >= expectation.limit:
            every = format_duration_ms(probe.every_ms)
            message = f"{quoted(expectation.text)} cannot be told by a probe that asks every {every}"
            yield _warning("too-coarse", message, node, "ask more often")
        if node and expectation.metric == "recovery" and expectation.limit > experiment.steady_state.after_ms:
            after = format_duration_ms(experiment.steady_state.after_ms)
            message = f"{quoted(expectation.text)} may not be told: the run ends {after} after the last fault"
            yield _warning("too-short", message, node, "lengthen `steady_state.after`")


def _check_expectations(root: MappingNode) -> Iterator[Diagnostic]:
    probes, watchers = _members(root, "probes"), _members(root, "watch")
    for name in watchers.keys() & probes.keys():
        key = watchers[name][0]
        yield Diagnostic("duplicate-name", f"{quoted(name)} is both a probe and a watcher", key.span, "rename one")
    for name, (key, value) in _members(root, "expect").items():
        if name not in probes and name not in watchers:
            yield _unknown(
                f"`expect` speaks of {quoted(name)}, which is no probe and no watcher", key, {**probes, **watchers}
            )
            continue
        observer = Observer.PROBE if name in probes else Observer.WATCHER
        for node in value.items if isinstance(value, SequenceNode) else (value,):
            yield from _check_metric(node, name, observer)


def _check_metric(node: Node | None, name: str, observer: Observer) -> Iterator[Diagnostic]:
    expectation = _expectation(node)
    if expectation is None or not isinstance(node, ScalarNode) or METRICS[expectation.metric].observer is observer:
        return
    start = node.text.index(expectation.metric)
    span = span_within(node, start, start + len(expectation.metric))
    fitting = ", ".join(metric.name for metric in METRICS.values() if metric.observer is observer)
    message = f"a {observer} such as {quoted(name)} does not measure `{expectation.metric}`"
    yield Diagnostic(
        "wrong-metric", message, span, f"a {observer} has {fitting}", f"brownout explain {expectation.metric}"
    )


def _check_guards(root: MappingNode) -> Iterator[Diagnostic]:
    probes = _members(root, "probes")
    guards = root.get("guards")
    for guard in guards.items if isinstance(guards, SequenceNode) else ():
        if not isinstance(guard, MappingNode):
            continue
        probe = guard.get("probe")
        if isinstance(probe, ScalarNode) and probe.text and probe.text not in probes:
            yield _unknown(f"a guard speaks of {quoted(probe.text)}, which is no probe", probe, probes)
        elif isinstance(probe, ScalarNode):
            yield from _check_metric(guard.get("abort_if"), probe.text, Observer.PROBE)


def _check_faults(root: MappingNode) -> Iterator[Diagnostic]:
    targets = _members(root, "targets")
    faults = root.get("faults")
    nodes = faults.items if isinstance(faults, SequenceNode) else ()
    names = [_name(fault) for fault in named([plain(node) for node in nodes])]
    first: dict[str, Node] = {}
    for index, (fault, name) in enumerate(zip(nodes, names, strict=True)):
        if not isinstance(fault, MappingNode):
            continue
        yield from _check_target(fault, targets)
        yield from _check_timing(fault, subject_of(("faults", index), root), names, index)
        written = fault.get("name")
        if name is None:
            continue
        if written and name in first:
            label = f"first at {first[name].span.line}:{first[name].span.column}"
            yield Diagnostic("duplicate-name", f"there are two faults {quoted(name)}", written.span, label)
        first.setdefault(name, written or fault)


def _name(fault: object) -> str | None:
    name = fault.get("name") if isinstance(fault, dict) else None
    return name if isinstance(name, str) else None


def _check_target(fault: MappingNode, targets: Mapping[str, object]) -> Iterator[Diagnostic]:
    target = _scalar(fault, "target")
    if target is None or target.text in targets or not target.text:
        return
    if re.fullmatch(NAME_PATTERN, target.text):
        help_ = f"a host of that name is target: host={target.text}"
        yield _unknown(f"there is no target {quoted(target.text)}", target, targets, help_)
        return
    try:
        Selector.parse(target.text)
    except ValueError as error:
        message, _, label = str(error).partition("; ")
        yield Diagnostic("bad-selector", message, target.span, label, "brownout explain faults.target")


def _check_timing(fault: MappingNode, subject: str, names: Sequence[str | None], index: int) -> Iterator[Diagnostic]:
    after, at, wait = _scalar(fault, "after"), fault.key("at"), fault.key("wait")
    if after and at:
        message = f"{subject} has both `at` and `after`"
        yield Diagnostic("contradiction", message, at.span, "keep one of them", "brownout explain faults.at")
    if wait and not after:
        yield Diagnostic("contradiction", f"{subject} has `wait` without `after`", wait.span, "did you mean `at`?")
    if after is None or not after.text or after.text in names[:index]:
        return
    if after.text == names[index]:
        yield Diagnostic("unknown-name", f"{subject} would come after itself", after.span, "name an earlier fault")
    elif after.text in names:
        message = f"{subject} comes after {quoted(after.text)}, which stands further down"
        yield Diagnostic("unknown-name", message, after.span, "write faults in their order")
    else:
        earlier = [name for name in names[:index] if name]
        yield _unknown(f"{subject} comes after {quoted(after.text)}, which is no fault", after, earlier)


def _members(root: MappingNode, section: str) -> dict[str, tuple[ScalarNode, Node]]:
    node = root.get(section)
    return {key.text: (key, value) for key, value in node.entries} if isinstance(node, MappingNode) else {}


def _scalar(node: Node, key: str) -> ScalarNode | None:
    value = node.get(key) if isinstance(node, MappingNode) else None
    return value if isinstance(value, ScalarNode) else None


def _expectation(node: Node | None) -> Expectation | None:
    try:
        return parse_expectation(node.text) if isinstance(node, ScalarNode) else None
    except ValueError:
        return None  # reported where its form is checked


def _expectation_node(root: MappingNode, name: str, expectation: Expectation) -> ScalarNode | None:
    value = _members(root, "expect")[name][1]
    nodes = value.items if isinstance(value, SequenceNode) else (value,)
    return next((node for node in nodes if isinstance(node, ScalarNode) and _expectation(node) == expectation), None)


def _unknown(message: str, node: ScalarNode, known: Iterable[str], help_: str = "") -> Diagnostic:
    names = list(known)
    similar = nearest(node.text, names)
    listed = f"there are {', '.join(names)}" if names else ""
    return Diagnostic("unknown-name", message, node.span, f"did you mean `{similar}`?" if similar else listed, help_)


def _warning(code: str, message: str, node: Node, label: str) -> Diagnostic:
    return Diagnostic(code, message, node.span, label, severity=Severity.WARNING)
