"""exec.run without a control group: what its meter makes of exit codes and numbers, and what it refuses to execute."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from brownout_agent.faults.contract import Host, Record, Refusal
from brownout_agent.faults.exec_run import ExecParameters, ExecRun, printed_number
from pydantic import ValidationError

from tests.support.executed import NAME, commands

PARAMETERS = ExecParameters(name=NAME)
PRINTS = ("/usr/bin/python3", "-I", "-S", "-c", "import sys; print(sys.argv[2]); sys.exit(int(sys.argv[1]))")


def host(file: Path, **changes: object) -> Host:
    return Host(commands=(replace(commands(file), **changes),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stdout", "number"),
    [("7", 7.0), ("seen\n-1.5 seconds", -1.5), ("", None), ("nan", None), ("inf", None), ("7s", None), ("\n", None)],
)
def test_the_number_that_the_last_line_begins_with(stdout: str, number: float | None) -> None:
    assert printed_number(stdout.strip()) == number


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "../x", "x" * 64, "x\n"])
def test_an_order_gives_a_name_and_nothing_else(name: str) -> None:
    with pytest.raises(ValidationError):
        ExecParameters.model_validate({"name": name})
    with pytest.raises(ValidationError):
        ExecParameters.model_validate({"name": NAME, "apply": ["/bin/true"]})


def test_a_host_whose_policy_names_nothing_says_so_and_refuses(tmp_path: Path) -> None:
    found = ExecRun().detect(Host())
    assert not found.able
    assert "under `exec:`" in found.remedy
    with pytest.raises(Refusal, match="names no `mark`; it names nothing"):
        ExecRun().prepare(PARAMETERS, Host())
    with pytest.raises(Refusal, match="names no `other`; it names mark"):
        ExecRun().prepare(ExecParameters(name="other"), host(tmp_path / "file"))


def test_what_is_named_twice_at_one_time_is_refused(tmp_path: Path) -> None:
    there = replace(host(tmp_path / "file"), unfinished=(("exec.run", {"name": NAME}), ("cpu.load", {})))
    with pytest.raises(Refusal, match="mark is on already, or is not undone yet"):
        ExecRun().prepare(PARAMETERS, there)


def test_what_is_there_already_is_not_ours_to_undo(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(Refusal, match="what mark brings about is there already"):
        ExecRun().prepare(PARAMETERS, host(file))


def test_who_cannot_tell_before_can_prove_nothing_after(tmp_path: Path) -> None:
    with pytest.raises(
        Refusal, match=r"it cannot be told whether mark is there: .* exit code 2; stdout: why"
    ) as caught:
        ExecRun().prepare(PARAMETERS, host(tmp_path / "file", measure=(*PRINTS, "2", "why")))
    assert "end with 0 where the effect is there and with 1 where it is not" in caught.value.remedy


def test_a_program_that_others_could_replace_is_not_executed(tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    program = folder / "program"
    program.write_text("#!/usr/bin/true\n")
    away = tmp_path / "link"
    away.symlink_to(program)

    def refused(path: Path = program) -> str:
        with pytest.raises(Refusal) as caught:
            ExecRun().prepare(PARAMETERS, host(tmp_path / "file", undo=(str(path),)))
        return caught.value.reason

    program.chmod(0o644)
    assert refused() == f"{program} cannot be executed"
    program.chmod(0o775)
    assert refused() == f"{program} is not executed: {program} can be changed by others than root"
    program.chmod(0o1777)  # sticky means nothing on a file
    assert f"{program} can be changed" in refused()
    program.chmod(0o755)
    folder.chmod(0o777)
    assert f"{folder} can be changed by others than root" in refused()
    assert f"{folder} can be changed by others than root" in refused(away)
    folder.chmod(0o755)
    assert refused(folder / "none") == f"{folder}/none is not there: No such file or directory"
    assert refused(folder) == f"{folder} cannot be executed"
    assert ExecRun().prepare(PARAMETERS, host(tmp_path / "file", undo=(str(away),)))["undo"] == (str(away),)


@pytest.mark.parametrize(
    ("readings", "proved", "text"),
    [
        ((("0", "3 s"), ("0", "5 s")), True, "in 2 of 2 readings /usr/bin/python3 said that the effect was there"),
        ((("0", "3"), ("0", "5")), True, "with numbers from 3 to 5, 4 on average"),
        ((("0", "x"), ("1", "away")), False, "in 1 of 2 readings"),
        ((("2", "lost"), ("0", "x")), False, "ended with exit code 2; stdout: lost; stderr: nothing"),
    ],
)
def test_proved_is_what_every_reading_says(
    tmp_path: Path, readings: tuple[tuple[str, str], ...], proved: bool, text: str
) -> None:
    one = asdict(commands(tmp_path / "file"))
    facts = {**one, "group_parents": []}
    meter = ExecRun().measure(Record("id", PARAMETERS, facts, 1.0), Host())
    assert not meter.effect().proved
    for reading in readings:
        facts["measure"] = (*PRINTS, *reading)
        meter.sample()
    effect = meter.effect()
    assert effect.proved is proved
    assert text in effect.explanation
    assert effect.achieved == 100 * sum(code == "0" for code, _ in readings) / len(readings)
