"""`brownout validate`: what it prints in each form, and its exit code."""

import json
from pathlib import Path

import pytest
from brownout_controller.cli.validate import OutputFormat, validate
from brownout_controller.exit_codes import ExitCode

MINIMAL = (Path(__file__).parent / "language_cases" / "minimal.yaml").read_text()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A good file, one with two errors, one with a warning, and one that is not there."""
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(MINIMAL)
    Path("bad.yaml").write_text(MINIMAL.replace("outage < 5s", "outage < 5").replace("for: 30s", "forr: 30s"))
    Path("odd.yaml").write_text(MINIMAL.replace("recovery < 10s", "recovery < 10m"))
    return [Path(name) for name in ("good.yaml", "bad.yaml", "odd.yaml", "gone.yaml")]


def test_a_good_file_is_said_to_be_good(files: list[Path]) -> None:
    assert validate(files[:1], {}) == ("No errors in 1 file. Nothing was sent.", ExitCode.HELD)


def test_a_warning_is_shown_and_is_no_error(files: list[Path]) -> None:
    text, exit_code = validate([files[2]], {})
    assert exit_code is ExitCode.HELD
    assert text.startswith("warning[too-short]: `recovery < 10m` may not be told")
    assert text.endswith("\n1 warning in 1 file. Nothing was sent.")


def test_all_findings_of_all_files_are_shown_with_their_sum(files: list[Path]) -> None:
    text, exit_code = validate(files, {})
    assert exit_code is ExitCode.INVALID_FILE
    assert [line for line in text.splitlines() if line.lstrip().startswith("-->")] == [
        " --> bad.yaml:7:24",
        "  --> bad.yaml:11:5",
        " --> odd.yaml:7:29",
        " --> gone.yaml",
    ]
    assert text.endswith("\n3 errors and 1 warning in 4 files. Nothing was sent.")


def test_the_concise_form_has_one_line_a_finding(files: list[Path]) -> None:
    text, _ = validate(files[:2], {}, OutputFormat.CONCISE)
    assert text.splitlines() == [
        "bad.yaml:7:24: error[bad-threshold] `outage < 5` needs a unit (5ms or 5s?)",
        "bad.yaml:11:5: error[unknown-key] fault `network.blackhole` has no key `forr` (did you mean `for`?)",
        "2 errors in 2 files. Nothing was sent.",
    ]


def test_the_github_form_is_workflow_commands_with_percent_escapes(files: list[Path]) -> None:
    Path("a,b.yaml").write_text(MINIMAL.replace("outage < 5s", "availability < 5"))
    text, _ = validate([Path("a,b.yaml")], {}, OutputFormat.GITHUB)
    assert text == "::error file=a%2Cb.yaml,line=7,col=30,title=bad-threshold::`availability < 5` needs a unit; 5%25?"


def test_the_json_form_is_read_by_programs(files: list[Path]) -> None:
    text, _ = validate(files[:2], {}, OutputFormat.JSON)
    found = json.loads(text)
    assert [(each["file"], each["line"], each["column"], each["length"], each["code"]) for each in found] == [
        ("bad.yaml", 7, 24, 1, "bad-threshold"),
        ("bad.yaml", 11, 5, 4, "unknown-key"),
    ]
    assert set(found[0]) == {"file", "line", "column", "length", "code", "message", "label", "help", "severity"}


def test_variables_from_outside_reach_every_file(files: list[Path]) -> None:
    Path("v.yaml").write_text("vars: {time: 1}\n" + MINIMAL.replace("for: 30s", "for: ${vars.time}"))
    assert validate([Path("v.yaml")], {})[1] is ExitCode.INVALID_FILE
    assert validate([Path("v.yaml")], {"time": "30s"})[1] is ExitCode.HELD
