"""From text to a tree: what of YAML is read, and what is refused, where."""

from typing import Any

import pytest
import yaml
from brownout_controller.language.diagnostics import InvalidExperiment, Source
from brownout_controller.language.document import DEEPEST, MappingNode, ScalarNode, parse_document, plain


def _plain(text: str) -> Any:
    root, diagnostics = parse_document(Source("x.yaml", text))
    assert diagnostics == []
    return plain(root)


def _findings(text: str) -> list[tuple[str, int, int]]:
    try:
        _, diagnostics = parse_document(Source("x.yaml", text))
    except InvalidExperiment as error:
        diagnostics = list(error.diagnostics)
    return [(found.code, found.line, found.column) for found in diagnostics]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("NO", "NO"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("10", 10),
        ("-7", -7),
        ("0", 0),
        ("0x1F", 31),
        ("0o17", 15),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2026-12-24", "2026-12-24"),
        ("10mbit", "10mbit"),
        ("50%", "50%"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("'010'", "010"),
        ('"1:30"', "1:30"),
        ("'no'", "no"),
        ("nan", "nan"),
    ],
)
def test_an_unquoted_scalar_is_what_yaml_1_2_says(written: str, value: object) -> None:
    found = _plain(f"key: {written}\n")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "written",
    ["010", "-012", "00", "1:30", "20:30:40", ".nan", ".inf", "-.Inf", "1e400", "-1e999", "9" * 200_000, "2e19"],
)
def test_a_scalar_that_readers_of_yaml_do_not_agree_on_is_refused(written: str) -> None:
    assert _findings(f"a: 1\nkey: {written}\n") == [("ambiguous-value", 2, 6)]


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        ("", "empty", 1, 1),
        ("  \n\n# only words\n", "empty", 1, 1),
        ("---\n", "empty", 1, 1),
        ("~\n", "empty", 1, 1),
        ("- a\n- b\n", "not-a-mapping", 1, 1),
        ("just words\n", "not-a-mapping", 1, 1),
        ("a: 1\n---\nb: 2\n", "two-documents", 2, 1),
        ("a: 1\nb: 2\na: 3\n", "duplicate-key", 3, 1),
        ("a: {b: 1, c: 2, b: 3}\n", "duplicate-key", 1, 17),
        ("a: 1\n'a': 3\n", "duplicate-key", 2, 1),
        ("a: &x 1\n", "anchor", 1, 4),
        ("a: &x [1]\n", "anchor", 1, 4),
        ("a: *x\n", "alias", 1, 4),
        ("a: {<<: 1}\n", "merge-key", 1, 5),
        ("a: !!python/object/apply:os.system [x]\n", "tag", 1, 4),
        ("a: !x 1\n", "tag", 1, 4),
        ("a: ! 1\n", "tag", 1, 4),
        ("!!map {a: 1}\n", "tag", 1, 1),
        ("%YAML 1.1\n---\na: 1\n", "directive", 1, 1),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", "directive", 1, 1),
        ("? [a]\n: 1\n", "complex-key", 1, 3),
        ("a: [1\n", "yaml-syntax", 2, 1),
        ("a:\n\tb: 1\n", "yaml-syntax", 2, 1),
        ("a: b: c\n", "yaml-syntax", 1, 5),
        ('a: "\\UFFFFFFFF"\n', "yaml-syntax", 1, 7),
        ("%YAML 1." + "1" * 5_000 + "\n---\na: 1\n", "yaml-syntax", 1, 9),
        ("a: b\0c\n", "control-character", 1, 5),
        ("a: b\x1b[31m\n", "control-character", 1, 5),
        ("a: b\n# \u202e tuo edisni\n", "control-character", 2, 3),
        ("a: b\u2028c\n", "control-character", 1, 5),
        ("a: \ud800\n", "control-character", 1, 4),
        ('a: "\\e[31m"\n', "control-character", 1, 4),
        ('a: "\\0"\n', "control-character", 1, 4),
    ],
)
def test_what_is_not_plain_yaml_is_refused_at_its_place(text: str, code: str, line: int, column: int) -> None:
    assert (code, line, column) in _findings(text)


def test_every_finding_of_one_text_is_reported() -> None:
    text = "a: &x 010\nb: *x\na: !t 1\n<<: {c: 1:30}\n"
    assert [code for code, _, _ in _findings(text)] == [
        "anchor",
        "ambiguous-value",
        "alias",
        "tag",
        "ambiguous-value",
        "duplicate-key",
        "merge-key",
    ]


@pytest.mark.parametrize(
    "bomb",
    ["[" * 50_000, "{" * 50_000, "- " * 25_000, "? " * 25_000, "{a: " * 12_500, "a: " + "[" * 50_000, "[\n" * 25_000],
)
def test_a_depth_bomb_is_refused_after_a_bounded_number_of_events(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = yaml.SafeLoader.get_event

    def counted(loader: yaml.SafeLoader) -> Any:
        event = real(loader)  # type: ignore[no-untyped-call]
        seen.append(type(event).__name__)
        return event

    monkeypatch.setattr(yaml.SafeLoader, "get_event", counted)
    codes = [code for code, _, _ in _findings(bomb)]
    assert codes == ["too-deep"]
    assert len(seen) <= 3 * DEEPEST


def test_the_deepest_allowed_nesting_is_read_and_one_more_is_not() -> None:
    lists = DEEPEST - 1
    assert _plain("a: " + "[" * lists + "]" * lists + "\n")["a"] is not None
    assert _findings("a: " + "[" * (lists + 1) + "]" * (lists + 1) + "\n") == [("too-deep", 1, 4 + lists)]


def test_crlf_lines_count_as_one_line_end_each() -> None:
    assert _findings("a: 1\r\nb: 2\r\na: 3\r\n") == [("duplicate-key", 3, 1)]


def test_a_scalar_knows_where_its_text_stands_in_the_source() -> None:
    root, _ = parse_document(Source("x.yaml", "key: \"abc\"\nplain: a b\nfolded: >\n  x\n  y\nescaped: 'it''s'\n"))
    nodes = {key.text: value for key, value in root.entries if isinstance(value, ScalarNode)}
    assert {
        name: (node.span.line, node.span.column, node.span.length, node.verbatim, node.quote)
        for name, node in nodes.items()
    } == {
        "key": (1, 6, 5, True, 1),
        "plain": (2, 8, 3, True, 0),
        "folded": (3, 9, 1, False, 1),
        "escaped": (6, 10, 7, False, 1),
    }
    assert isinstance(root, MappingNode)
    assert nodes["folded"].text == "x y\n"
