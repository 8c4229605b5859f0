"""Variables: what they become, how they are set from outside, and what goes wrong at which place."""

from collections.abc import Mapping

import pytest
from brownout_controller.language import Diagnostic, InvalidExperiment, parse_experiment

TEXT = """\
version: 1
name: a
hypothesis: %s
vars: {share: 50, shop: "http://shop.test", odd: "010"}
probes: {web: {http: "${vars.shop}"}}
faults:
  - {inject: cpu.load, target: "role=app", with: {percent: "${vars.share}"}, for: 1s}
"""


def _text(hypothesis: str) -> str:
    return TEXT.replace("%s", hypothesis)


def _findings(text: str, overrides: Mapping[str, str] | None = None) -> list[Diagnostic]:
    with pytest.raises(InvalidExperiment) as caught:
        parse_experiment(text, "x.yaml", overrides or {})
    return list(caught.value.diagnostics)


def test_a_variable_alone_keeps_its_type_and_within_text_it_is_text() -> None:
    experiment = parse_experiment(_text('"${vars.share} % of ${vars.shop}, ${ vars.odd }"'))
    assert experiment.hypothesis == "50 % of http://shop.test, 010"
    assert experiment.faults[0].parameters == {"percent": 50}
    assert experiment.probes["web"].settings["url"] == "http://shop.test"


def test_a_doubled_dollar_is_a_literal_one() -> None:
    assert parse_experiment(_text("costs $5, $${vars.shop} and $$")).hypothesis == "costs $5, ${vars.shop} and $$"


def test_an_override_takes_the_place_of_the_value_and_is_kept() -> None:
    experiment = parse_experiment(_text("x"), overrides={"share": "75", "shop": "https://other.test"})
    assert experiment.faults[0].parameters == {"percent": 75}
    assert experiment.probes["web"].settings["url"] == "https://other.test"
    assert experiment.vars == {"share": 75, "shop": "https://other.test", "odd": "010"}


def test_a_value_given_from_outside_is_judged_like_one_in_the_file() -> None:
    (found,) = _findings(_text("x"), {"share": "150"})
    assert (found.code, found.line, found.column) == ("bad-value", 7, 60)
    assert "150" in found.message


@pytest.mark.parametrize(
    ("overrides", "code", "says"),
    [
        ({"shar": "1"}, "unknown-variable", "did you mean --var share=1?"),
        ({"zzzzz": "1"}, "unknown-variable", "declare `zzzzz`"),
        ({"share": "010"}, "bad-variable", "octal"),
        ({"shop": "a\x1b[2J"}, "bad-variable", "control character"),
    ],
)
def test_a_wrong_override_is_a_finding_about_the_command(overrides: Mapping[str, str], code: str, says: str) -> None:
    found = _findings(_text("x"), overrides)[0]
    assert (found.code, found.line) == (code, 0)
    assert says in f"{found.message} {found.help}"


@pytest.mark.parametrize(
    ("hypothesis", "code", "column", "says"),
    [
        ("a ${vars.shpo} b", "unknown-variable", 15, "did you mean `${vars.shop}`?"),
        ('"a ${vars.shpo} b"', "unknown-variable", 16, "did you mean `${vars.shop}`?"),
        ("${vars.shpo}", "unknown-variable", 13, "did you mean `${vars.shop}`?"),
        ("${shop}", "unknown-variable", 13, "write ${vars.name}"),
        ("${secrets.TOKEN}", "not-yet", 13, "secrets"),
    ],
)
def test_a_placeholder_that_leads_nowhere_is_a_finding_at_its_place(
    hypothesis: str, code: str, column: int, says: str
) -> None:
    (found,) = [each for each in _findings(_text(hypothesis)) if each.line == 3]
    assert (found.code, found.column) == (code, column)
    assert says in f"{found.message} {found.label}"


def test_variables_are_not_made_of_variables_and_do_not_stand_in_keys() -> None:
    text = _text("x").replace('odd: "010"', 'odd: "${vars.shop}"').replace("probes: {web", 'probes: {"${vars.odd}"')
    assert [(found.code, found.line, found.column) for found in _findings(text)] == [
        ("bad-variable", 4, 50),
        ("bad-variable", 5, 10),
    ]


def test_a_variable_that_is_no_single_value_is_refused() -> None:
    found = _findings(_text("x").replace('"010"', "[1]"))
    assert [(each.code, each.line, each.column) for each in found] == [("wrong-type", 4, 50)]


def test_a_small_file_cannot_grow_into_a_large_one() -> None:
    text = _text('"' + "${vars.shop}" * 5_000 + '"').replace("http://shop.test", "x" * 4_000)
    assert [found.code for found in _findings(text)] == ["too-large"]


def test_an_unquoted_placeholder_in_braces_is_a_syntax_error_that_says_so() -> None:
    (found,) = _findings(_text("x").replace('"${vars.share}"', "${vars.share}"))
    assert (found.code, found.line) == ("yaml-syntax", 7)
    assert 'quote what contains ${...}: "${vars.x}"' in found.help
