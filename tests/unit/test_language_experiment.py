"""Experiments as values, and every way in which a file is not one: code, line and column."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from brownout_controller.language import InvalidExperiment, check, load_experiment, parse_experiment
from brownout_controller.language.diagnostics import Diagnostic, Source
from brownout_controller.language.experiment import AgentLostGuard, MaxDurationGuard, ProbeGuard
from brownout_controller.language.selectors import Pick, Selector
from brownout_controller.language.source import decode
from hypothesis import given
from hypothesis import strategies as st

CASES = Path(__file__).parent / "language_cases"
TEMPLATES = sorted((Path(__file__).parents[2] / "controller/src/brownout_controller/experiments").rglob("*.yaml"))

GOOD = """\
version: 1
name: checkout
hypothesis: It holds.
vars: {shop: "http://shop.test:8080", share: 50}
targets:
  app: {selector: "role=app", pick: 50%, exclude: [app-9], resolve: at_injection}
probes:
  checkout:
    http: {url: "${vars.shop}/healthz", status: 204, timeout: 500ms}
    identity: {header: X-Served-By}
    every: 100ms
    from: [controller, "role=edge"]
  port: {tcp: "shop.test:8080"}
watch:
  lb: {haproxy: {socket: /run/haproxy/admin.sock, backend: shop}, from: "role=edge"}
steady_state: {before: 5s, after: 1m}
expect:
  checkout: ["availability >= 99%", "outage < 15s"]
  lb: "changes == 1"
guards:
  - {probe: checkout, abort_if: "outage > 45s", for: 10s}
  - {agent_lost: 15s}
  - {max_duration: 10m}
faults:
  - name: busy
    inject: cpu.load
    target: app
    with: {percent: "${vars.share}", of: own}
    at: 30s
    for: 30s
  - inject: network.blackhole
    target: "host=app-1"
    after: busy
    wait: 1m
    for: 2m30s
"""
LINES = GOOD.splitlines()


def _findings(text: str, overrides: Mapping[str, str] | None = None) -> list[Diagnostic]:
    with pytest.raises(InvalidExperiment) as caught:
        parse_experiment(text, "x.yaml", overrides or {})
    return list(caught.value.diagnostics)


def _with_line(number: int, line: str) -> str:
    """The good experiment with one line replaced."""
    return "\n".join([*LINES[: number - 1], line, *LINES[number:]]) + "\n"


def test_the_smallest_experiment_has_the_defaults_that_are_documented() -> None:
    experiment = load_experiment(CASES / "minimal.yaml")
    (fault,) = experiment.faults
    probe = experiment.probes["checkout"]
    assert (fault.name, fault.at_ms, fault.for_ms, fault.parameters) == ("network-blackhole", None, 30_000, {})
    assert experiment.target_of(fault).selector == Selector.parse("role=app")
    assert (experiment.target_of(fault).pick, experiment.target_of(fault).if_none) == (Pick(1), "fail")
    assert (probe.kind, probe.every_ms, probe.vantages) == ("http", 200, ("controller",))
    assert probe.settings["url"] == "http://shop.test:8080/healthz"
    assert probe.settings["timeout_ms"] == 2_000
    assert (experiment.steady_state.before_ms, experiment.steady_state.after_ms) == (10_000, 20_000)
    assert (experiment.environment, experiment.guards) == ("staging", ())
    assert [(name, expectation.text) for name, expectation in experiment.expectations()] == [
        ("checkout", "outage < 5s"),
        ("checkout", "recovery < 10s"),
    ]


def test_every_key_reaches_the_value_in_its_canonical_unit() -> None:
    experiment = parse_experiment(GOOD)
    checkout = experiment.probes["checkout"]
    assert checkout.settings["url"] == "http://shop.test:8080/healthz"
    assert (checkout.settings["timeout_ms"], checkout.settings["identity_header"]) == (500, "X-Served-By")
    assert (checkout.every_ms, checkout.vantages) == (100, ("controller", "role=edge"))
    assert experiment.probes["port"].settings["address"] == "shop.test:8080"
    assert experiment.watch["lb"].settings["backend"] == "shop"
    assert experiment.watch["lb"].vantage == "role=edge"
    probe_guard, agent_guard, time_guard = experiment.guards
    assert isinstance(probe_guard, ProbeGuard)
    assert (probe_guard.probe, probe_guard.abort_if.limit, probe_guard.for_ms) == ("checkout", 45_000, 10_000)
    assert isinstance(agent_guard, AgentLostGuard)
    assert agent_guard.agent_lost_ms == 15_000
    assert isinstance(time_guard, MaxDurationGuard)
    assert time_guard.max_duration_ms == 600_000
    busy, gone = experiment.faults
    assert (busy.at_ms, busy.for_ms, busy.parameters) == (30_000, 30_000, {"percent": 50, "of": "own"})
    assert (gone.name, gone.after, gone.wait_ms, gone.for_ms) == ("network-blackhole", "busy", 60_000, 150_000)
    target = experiment.target_of(busy)
    assert (target.pick.of(5), target.exclude, target.resolve) == (3, ("app-9",), "at_injection")


def test_the_experiment_keeps_its_text_and_its_digest() -> None:
    experiment = parse_experiment("# ä\n" + GOOD)
    assert experiment.source == "# ä\n" + GOOD
    assert experiment.source_sha256 == parse_experiment("# ä\n" + GOOD, "other").source_sha256
    assert experiment.source_sha256 != parse_experiment(GOOD).source_sha256


def test_the_experiment_cannot_be_changed() -> None:
    experiment = parse_experiment(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        experiment.name = "other"  # type: ignore[misc]


def test_faults_without_a_name_are_told_apart() -> None:
    fault = "  - {inject: network.blackhole, target: app, for: 1s}\n"
    named = "  - {name: network-blackhole-2, inject: network.blackhole, target: app, for: 1s}\n"
    experiment = parse_experiment(GOOD + fault + named + fault)
    assert [found.name for found in experiment.faults] == [
        "busy",
        "network-blackhole",
        "network-blackhole-3",
        "network-blackhole-2",
        "network-blackhole-4",
    ]


def test_a_fault_may_come_after_one_whose_name_was_made() -> None:
    follows = "  - {inject: network.blackhole, target: app, after: network-blackhole, for: 1s}\n"
    assert parse_experiment(GOOD + follows).faults[2].after == "network-blackhole"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_experiment_that_is_shipped_is_valid_and_without_warnings(path: Path) -> None:
    text = path.read_text()
    checked = check(Source(path.name, text))
    assert checked.warnings == ()
    assert checked.experiment.hypothesis


def test_the_templates_were_found() -> None:
    assert TEMPLATES


def test_what_a_later_version_will_do_is_refused_by_name_and_never_ignored() -> None:
    with pytest.raises(InvalidExperiment) as caught:
        load_experiment(CASES / "full.yaml")
    assert [(found.code, found.line, found.column) for found in caught.value.diagnostics] == [
        ("not-yet", 19, 12),  # probe kind sql
        ("not-yet", 19, 24),  # secrets
        ("not-yet", 20, 12),  # probe kind prometheus
        ("not-yet", 24, 13),  # watcher kind patroni
        ("not-yet", 30, 1),  # alerts
        ("not-yet", 34, 32),  # metric value
        ("not-yet", 39, 1),  # load
        ("not-yet", 62, 21),  # a shape
        ("not-yet", 66, 1),  # schedule
        ("not-yet", 67, 1),  # notify
        ("not-yet", 68, 11),  # secrets
        ("not-yet", 69, 1),  # report
    ]


@pytest.mark.parametrize(
    ("line", "text", "code", "column", "says"),
    [
        (1, "version: 2", "wrong-value", 10, "write 1"),
        (1, 'version: "1"', "wrong-value", 10, "write 1"),
        (2, "name: ../etc", "bad-name", 7, "a-z, 0-9 and -"),
        (2, "name: Größe", "bad-name", 7, "a-z, 0-9 and -"),
        (2, "name: " + "a" * 64, "bad-name", 7, "up to 63"),
        (2, 'name: "a\\nb"', "bad-name", 7, "a-z, 0-9 and -"),
        (2, "name: 5", "wrong-type", 7, "quote it"),
        (2, "nmae: checkout", "unknown-key", 1, "did you mean `name`?"),
        (2, "name:", "wrong-type", 6, "quote it"),
        (3, "hypothesis: [a]", "wrong-type", 13, "quote it"),
        (3, "source: x", "unknown-key", 1, "known here"),
        (3, "labels: {tier: 1}", "wrong-type", 16, "quote it"),
        (3, "schedule: {}", "not-yet", 1, "take it out"),
        (6, '  app: {selector: ""}', "bad-selector", 19, "role=app"),
        (6, '  app: {selector: "a=b", pick: 0}', "bad-pick", 32, "1, all or 50%"),
        (6, '  app: {selector: "a=b", pick: -1}', "bad-pick", 32, "1, all or 50%"),
        (6, '  app: {selector: "a=b", pick: 101%}', "bad-pick", 32, "1, all or 50%"),
        (6, '  app: {selector: "a=b", if_none: maybe}', "wrong-value", 35, "'fail' or 'skip'"),
        (6, '  app: {labels: "a=b"}', "unknown-key", 9, "did you mean `selector`?"),
        (9, '    http: {ur: "http://x"}', "unknown-key", 12, "did you mean `url`?"),
        (9, "    http: {}", "missing-key", 5, "add `url`"),
        (9, '    http: {url: "gopher://x"}', "bad-value", 17, "http://"),
        (9, '    http: {url: "file:///etc/passwd"}', "bad-value", 17, "http://"),
        (9, '    http: "http://x y"', "bad-value", 11, "percent-encode"),
        (9, '    http: {url: "http://x", status: 42}', "bad-value", 37, "200-399"),
        (9, '    http: {url: "http://x", timeout: 2}', "bad-duration", 38, "did you mean 2s?"),
        (9, '    http: {url: "http://x", timeout_ms: 2000}', "unknown-key", 29, "did you mean `timeout`?"),
        (9, '    http: {url: "http://x", identity_header: X}', "unknown-key", 29, "known here"),
        (9, '    http: {url: "http://x", tls_verify: no}', "wrong-type", 41, "write true or false"),
        (9, '    http: {url: "http://x", status: [200]}', "wrong-type", 37, "a whole number or text"),
        (9, "    htpp: {}", "unknown-kind", 5, "did you mean `http`?"),
        (9, "    sql: {}", "not-yet", 5, "`http`"),
        (10, "    identity: {heeder: X}", "unknown-key", 16, "did you mean `header`?"),
        (11, "    every: 100", "bad-duration", 12, "did you mean 100s?"),
        (11, "    every: 10ms", "bad-duration", 12, "50ms"),
        (11, "    every: 0s", "bad-duration", 12, "longer"),
        (11, "    every: -1s", "bad-duration", 12, "negative"),
        (11, "    every: .nan", "ambiguous-value", 12, "write a number"),
        (11, "    interval: 1s", "unknown-key", 5, "did you mean `every`?"),
        (12, "    from: []", "wrong-count", 5, "at least 1"),
        (12, "    from: edge", "bad-selector", 11, "did you mean host=edge?"),
        (13, '  port: {tcp: "shop.test"}', "bad-value", 15, "shop.test:5432"),
        (13, '  port: {tcp: "a:1", http: "http://x"}', "unknown-key", 22, "has no key `http`"),
        (13, '  port: {tcp: "a:1", kind: http}', "unknown-key", 22, "has no key `kind`"),
        (13, '  port: {tcp: "a:1", identity: {header: X}}', "bad-value", 32, "leave it out"),
        (13, "  port: {every: 1s}", "missing-key", 9, "add `http` or `tcp`"),
        (13, "  port: 5", "wrong-type", 9, "key: value"),
        (15, "  lb: {haproxy: {socket: /x}}", "missing-key", 8, "add `backend`"),
        (15, "  lb: {patroni: {}}", "not-yet", 8, "`haproxy`"),
        (16, "steady_state: {before: 1:30}", "ambiguous-value", 24, "1m30s"),
        (16, "steady_state: {before: 010}", "ambiguous-value", 24, "write 10"),
        (16, "steady_state: {before: 25h}", "bad-duration", 24, "longer than 24h"),
        (18, '  checkout: ["p95 < 300"]', "bad-threshold", 21, "300ms or 300s?"),
        (18, '  checkout: ["availability >= 101%"]', "bad-threshold", 31, "0% to 100%"),
        (18, '  checkout: ["outtage < 5s"]', "unknown-metric", 15, "did you mean `outage`?"),
        (18, '  checkout: ["changes == 1"]', "wrong-metric", 15, "a probe has availability"),
        (18, '  chekcout: ["outage < 5s"]', "unknown-name", 3, "did you mean `checkout`?"),
        (18, "  checkout: [5]", "wrong-type", 14, "outage < 5s"),
        (19, '  lb: "outage < 5s"', "wrong-metric", 8, "time_to_detect"),
        (21, '  - {probe: chckout, abort_if: "outage > 45s"}', "unknown-name", 13, "did you mean `checkout`?"),
        (21, '  - {probe: checkout, abort_if: "outage > 45"}', "bad-threshold", 43, "45ms or 45s?"),
        (21, '  - {probe: checkout, abort_if: "changes > 4"}', "wrong-metric", 34, "a probe has availability"),
        (21, "  - {probe: checkout}", "missing-key", 5, "add `abort_if`"),
        (22, "  - {agent_lots: 15s}", "unknown-key", 6, "did you mean `agent_lost`?"),
        (22, "  - {agent_lost: 15s, for: 1s}", "unknown-key", 23, "has no key `for`"),
        (22, "  - 15s", "wrong-type", 5, "abort_if"),
        (25, "  - name: Busy", "bad-name", 11, "a-z, 0-9 and -"),
        (26, "    inject: cpu.laod", "unknown-fault", 13, "did you mean `cpu.load`?"),
        (26, "    inject: clock.skew", "not-yet", 13, "faults list"),
        (27, "    target: ap", "unknown-name", 13, "did you mean `app`?"),
        (27, '    target: "role="', "bad-selector", 13, "role=app"),
        (27, '    target: ""', "bad-value", 13, "at least 1 character"),
        (28, "    with: {percent: 101}", "bad-value", 21, "up to 100"),
        (28, "    with: {percent: 0}", "bad-value", 21, "above 0"),
        (28, "    with: {percent: -5}", "bad-value", 21, "above 0"),
        (28, "    with: {percent: .inf}", "ambiguous-value", 21, "write a number"),
        (28, "    with: {percnt: 50}", "unknown-key", 12, "did you mean `percent`?"),
        (28, "    with: {percent: 50, of: half}", "wrong-value", 29, "'total' or 'own'"),
        (28, "    with: {percent: {ramp: [20, 90], over: 2m}}", "not-yet", 21, "change over time"),
        (28, "    with: {}", "missing-key", 11, "add `percent`"),
        (28, "    with: 5", "wrong-type", 11, "key: value"),
        (29, "    at: 30", "bad-duration", 9, "did you mean 30s?"),
        (29, "    wait: 30s", "contradiction", 5, "did you mean `at`?"),
        (30, "    for: 30", "bad-duration", 10, "did you mean 30s?"),
        (30, "    for: 0s", "bad-duration", 10, "longer"),
        (30, "    for: forever", "bad-duration", 10, "30s, 300ms or 2h45m"),
        (30, "    durration: 30s", "unknown-key", 5, "did you mean `for`?"),
        (33, "    after: bussy", "unknown-name", 12, "did you mean `busy`?"),
        (33, "    after: network-blackhole", "unknown-name", 12, "earlier"),
        (34, "    at: 5s", "contradiction", 5, "keep one"),
    ],
)
def test_one_wrong_line_is_one_finding_at_its_place(line: int, text: str, code: str, column: int, says: str) -> None:
    found = next(iter(_findings(_with_line(line, text))))
    assert (found.code, found.line, found.column) == (code, line, column)
    assert says in f"{found.message} {found.label} {found.help}"


def test_a_fault_without_for_is_refused_where_the_fault_begins() -> None:
    (found,) = _findings("\n".join(LINES[:29] + LINES[30:]))
    assert (found.code, found.line, found.column, found.label) == ("missing-key", 25, 5, "add `for`")


def test_every_missing_key_of_one_place_is_named() -> None:
    found = _findings("version: 1\nname: a\nfaults:\n  - {}\n")
    assert [(each.line, each.column, each.label) for each in found] == [
        (4, 5, "add `inject`"),
        (4, 5, "add `target`"),
        (4, 5, "add `for`"),
    ]


@pytest.mark.parametrize("faults", ["faults: []", "faults:"])
def test_an_experiment_without_faults_is_refused(faults: str) -> None:
    (found,) = _findings(f"version: 1\nname: a\n{faults}\n")
    assert found.line == 3
    assert found.code in {"wrong-count", "wrong-type"}


def test_a_fault_that_stands_further_down_cannot_be_waited_for() -> None:
    text = _with_line(25, "  - name: busy\n    after: late").replace("    at: 30s\n", "")
    (found,) = _findings(text + "  - {name: late, inject: network.blackhole, target: app, for: 1s}\n")
    assert (found.code, found.line, found.label) == ("unknown-name", 26, "write faults in their order")


def test_a_fault_cannot_come_after_itself() -> None:
    (found,) = _findings(_with_line(29, "    after: busy"))
    assert (found.code, found.line, found.column, found.label) == ("unknown-name", 29, 12, "name an earlier fault")


def test_two_faults_of_one_name_are_told_where_the_first_is() -> None:
    (found,) = _findings(_with_line(31, "  - name: busy\n    inject: network.blackhole"))
    assert (found.code, found.line, found.column, found.label) == ("duplicate-name", 31, 11, "first at 25:11")


def test_a_name_cannot_be_probe_and_watcher_at_once() -> None:
    found = _findings(_with_line(15, "  port: {haproxy: {socket: /x, backend: shop}}"))
    assert [(each.code, each.line, each.column) for each in found] == [
        ("duplicate-name", 15, 3),
        ("unknown-name", 19, 3),
    ]


def test_mistakes_in_all_sections_are_reported_together_in_order() -> None:
    text = GOOD
    for before, after in (
        ("version: 1", "version: 2"),
        ("role=app", "role="),
        ("every: 100ms", "every: 100"),
        ("outage < 15s", "outage < 15"),
        ("agent_lost: 15s", "agent_lots: 15s"),
        ("inject: cpu.load", "inject: cpu.lod"),
        ("target: app\n", "target: ap\n"),
        ("for: 2m30s", "for: ever"),
    ):
        text = text.replace(before, after, 1)
    assert [(found.line, found.code) for found in _findings(text)] == [
        (1, "wrong-value"),
        (6, "bad-selector"),
        (11, "bad-duration"),
        (18, "bad-threshold"),
        (22, "unknown-key"),
        (26, "unknown-fault"),
        (27, "unknown-name"),
        (35, "bad-duration"),
    ]


def test_more_findings_than_anyone_reads_are_counted() -> None:
    found = _findings("version: 1\nname: a\n" + "".join(f"k{number}: 1\n" for number in range(150)))
    assert len(found) == 101
    assert found[-1].message == "51 more findings are not shown"  # 150 keys and the missing faults


def test_doubtful_expectations_are_warnings_and_not_errors() -> None:
    text = _with_line(18, '  checkout: ["outage < 100ms", "recovery < 5m"]').replace("hypothesis: It holds.\n", "")
    checked = check(Source("x.yaml", text))
    assert [(found.code, found.line, found.column, str(found.severity)) for found in checked.warnings] == [
        ("nothing-expected", 1, 1, "warning"),
        ("too-coarse", 17, 14, "warning"),
        ("too-short", 17, 32, "warning"),
    ]


WORDS = """\
[ ] { } : , - ? & * ! | > ' " % @ # << --- ... ${vars. version: faults: name inject: cpu.load with: probes: http:
expect: outage 5s 010 1:30 .nan for: after: target: guards: vars: é null true 99999999999999999999999
"""
BLANKS = ["\n", "\t", " ", "  ", "\r\n", "- ", ": ", "\0", "\ufeff", "\u202e", "\\"]
YAML_WORDS = st.sampled_from([*WORDS.split(), *BLANKS])


@st.composite
def _broken(draw: st.DrawFn) -> bytes:
    """The good experiment with some stretches cut out or overwritten."""
    data = GOOD.encode()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 30)))
        data = data[:start] + draw(YAML_WORDS.map(str.encode) | st.binary(max_size=6)) + data[end:]
    return data


@pytest.mark.parametrize(
    "other", [None, 5, -1.5, True, "", "x", [], [1], [None], {}, {"a": 1}, [{}], [["a"]]], ids=repr
)
def test_a_wrong_thing_in_any_one_place_is_a_finding_or_fine(other: object) -> None:
    data = yaml.safe_load(GOOD)
    outcomes = [
        _refusal(yaml.safe_dump(_replaced(data, path, other), sort_keys=False).encode()) for path in _paths(data)
    ]
    assert len(outcomes) > 60
    assert sum(outcome is not None for outcome in outcomes) > 30


def _paths(data: Any) -> Iterator[tuple[int | str, ...]]:
    """Every place in nested data, the whole first."""
    yield ()
    steps = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for step, below in steps:
        yield from ((step, *path) for path in _paths(below))


def _replaced(data: Any, path: tuple[int | str, ...], other: object) -> Any:
    if not path:
        return other
    step, *rest = path
    copied: Any = dict(data) if isinstance(data, dict) else list(data)
    copied[step] = _replaced(data[step], tuple(rest), other)
    return copied


@given(st.binary(max_size=300) | st.lists(YAML_WORDS, max_size=60).map("".join).map(str.encode) | _broken())
def test_no_bytes_raise_anything_but_findings_that_lie_in_the_file_and_can_be_printed(data: bytes) -> None:
    error = _refusal(data)
    if error is None:
        return
    assert error.diagnostics
    for found in error.diagnostics:
        assert 0 <= found.line <= len(error.source.lines) + 1, found
        assert found.column <= len(error.source.line(found.line)) + 1, found
    assert str(error).replace("\n", "").isprintable()


def _refusal(data: bytes) -> InvalidExperiment | None:
    try:
        check(decode(data, "x.yaml"))
    except InvalidExperiment as error:
        return error
    return None
