"""How findings look: the place, the carets, and nothing that a terminal would obey."""

import pytest
from brownout_controller.language import InvalidExperiment, parse_experiment
from brownout_controller.language.diagnostics import Diagnostic, Severity, Source, Span, in_order, quoted


def test_findings_look_like_this() -> None:
    text = (
        "version: 1\n"
        "name: checkout\n"
        'probes: {checkout: {http: "http://shop.test"}}\n'
        'expect: {checkout: ["p95 < 300"]}\n'
        "faults:\n"
        "  - inject: network.blackhole\n"
        '    target: "role=app"\n'
        "    durration: 30s\n"
    )
    with pytest.raises(InvalidExperiment) as caught:
        parse_experiment(text, "checkout.yaml")
    assert str(caught.value) == (
        "error[bad-threshold]: `p95 < 300` needs a unit\n"
        " --> checkout.yaml:4:28\n"
        "  |\n"
        '4 | expect: {checkout: ["p95 < 300"]}\n'
        "  |                            ^^^ 300ms or 300s?\n"
        "  = help: brownout explain expect\n"
        "error[unknown-key]: fault `network.blackhole` has no key `durration`\n"
        " --> checkout.yaml:8:5\n"
        "  |\n"
        "8 |     durration: 30s\n"
        "  |     ^^^^^^^^^ did you mean `for`?\n"
        "  = help: brownout explain faults.for"
    )


def test_the_margin_is_as_wide_as_the_line_number() -> None:
    source = Source("x.yaml", "\n" * 99 + "a: b\n")
    assert Diagnostic("c", "m", Span(100, 4)).render(source) == (
        "error[c]: m\n   --> x.yaml:100:4\n    |\n100 | a: b\n    |    ^"
    )


def test_a_finding_about_the_file_has_no_line() -> None:
    found = Diagnostic("missing-file", "there is no such file", help="look elsewhere")
    assert found.render(Source("x.yaml", "")) == (
        "error[missing-file]: there is no such file\n --> x.yaml\n  = help: look elsewhere"
    )


def test_control_characters_are_escaped_wherever_they_come_from_and_carets_still_fit() -> None:
    source = Source("a\x1b[2J.yaml", "k\x1b[31m: \u202evalue\n")
    found = Diagnostic("c", "bad \x07 thing", Span(1, 9, 6), "not \x9b this", "no \x00")
    assert found.render(source) == (
        "error[c]: bad \\x07 thing\n"
        " --> a\\x1b[2J.yaml:1:9\n"
        "  |\n"
        "1 | k\\x1b[31m: \\u202evalue\n"
        "  |            ^^^^^^^^^^^ not \\x9b this\n"
        "  = help: no \\x00"
    )


def test_carets_stand_under_wide_and_combining_characters() -> None:
    lines = Diagnostic("c", "m", Span(1, 5, 2)).render(Source("x", "日e\u0301: 本b\n")).splitlines()
    assert lines[4] == "  |     ^^^"
    assert Diagnostic("c", "m", Span(1, 6, 1)).render(Source("x", "日e\u0301: 本b\n")).splitlines()[4] == "  |      ^^"


def test_of_a_long_line_only_the_part_around_the_place_is_shown() -> None:
    text = "a: " + "x" * 5_000 + "HERE" + "y" * 5_000
    lines = Diagnostic("c", "m", Span(1, 5_004, 4)).render(Source("x", text)).splitlines()
    assert max(map(len, lines)) < 180
    caret = lines[4].index("^")
    assert lines[3][caret : caret + 4] == "HERE"
    assert (lines[3][4], lines[3][-1], lines[4].count("^")) == ("…", "…", 4)


def test_a_span_past_the_end_of_the_line_still_has_a_caret() -> None:
    assert Diagnostic("c", "m", Span(3, 1, 9)).render(Source("x", "a: [1\n")).splitlines()[3:] == ["3 |", "  | ^"]


def test_findings_are_in_the_order_of_the_file_and_each_once() -> None:
    late, early = Diagnostic("b", "m", Span(2, 1)), Diagnostic("a", "m", Span(1, 5))
    warning = Diagnostic("a", "m", Span(1, 5), severity=Severity.WARNING)
    assert in_order([late, warning, early, late]) == (early, warning, late)


def test_a_long_value_is_quoted_in_short() -> None:
    assert len(quoted("x" * 10_000)) == 62
