"""The policy's section `exec`: what cannot be a program refuses everything, and nothing but lists is taken."""

import json
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults.contract import Commands
from brownout_agent.injector.policy import EMBEDDED, Policy, load

GOOD = {"apply": ["/bin/a", "x y"], "undo": ["/bin/b"], "measure": ["/bin/c"]}
HEAD = 'version: 1\nenvironment: staging\nfaults: {"*": {allow: true}}\n'


def policy(folder: Path, named: Any) -> Policy:
    path = folder / "policy.yaml"
    path.write_text(f"{HEAD}exec: {json.dumps(named)}\n")
    return load(path)


def test_faults_see_what_is_named_and_how_long_it_may_take(tmp_path: Path) -> None:
    named = {"stop-replica": {**GOOD, "undo_within_s": 3}}
    (one,) = policy(tmp_path, named).host((), frozenset(), "exec.run").commands
    assert one == Commands("stop-replica", ("/bin/a", "x y"), ("/bin/b",), ("/bin/c",), 10.0, 3.0, 2.0)


def test_where_nothing_is_named_nothing_is_executed(tmp_path: Path) -> None:
    assert EMBEDDED.host((), frozenset(), "exec.run").commands == ()
    assert policy(tmp_path, {}).host((), frozenset(), "exec.run").commands == ()
    assert load(tmp_path / "no such file").host((), frozenset(), "exec.run").commands == ()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"apply": ["a"]}, "is not the absolute path of a program"),
        ({"undo": ["/bin/../tmp/b"]}, "is not the absolute path of a program"),
        ({"measure": ["/"]}, "is not the absolute path of a program"),
        ({"apply": []}, "at least 1 item"),
        ({"apply": "/bin/a x"}, "valid tuple"),
        ({"apply": ["/bin/a", 1]}, "valid string"),
        ({"apply": ["/bin/a", "x\0y"]}, "should match pattern"),
        ({"apply": ["/bin/a", "x" * 1_025]}, "at most 1024 characters"),
        ({"apply": ["/bin/a"] * 33}, "at most 32 items"),
        ({"undo": None}, "valid tuple"),
        ({"undo_within_s": 11}, "less than or equal to 10"),
        ({"apply_within_s": 0}, "greater than 0"),
        ({"measure_within_s": ".inf"}, "valid number"),
        ({"shell": True}, "Extra inputs are not permitted"),
    ],
)
def test_what_is_no_program_refuses_everything_and_says_why(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    found = policy(tmp_path, {"good": GOOD, "bad": {**GOOD, **changes}})
    assert found.file is None
    assert "exec.bad" in found.why
    assert why in found.why


@pytest.mark.parametrize("missing", ["apply", "undo", "measure"])
def test_none_of_the_three_may_be_missing(tmp_path: Path, missing: str) -> None:
    found = policy(tmp_path, {"bad": {key: argv for key, argv in GOOD.items() if key != missing}})
    assert found.file is None
    assert f"exec.bad.{missing}: Field required" in found.why


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "a/b", "x" * 64])
def test_a_name_is_one_that_an_experiment_can_write(tmp_path: Path, name: str) -> None:
    assert policy(tmp_path, {name: GOOD}).file is None


def test_there_are_not_more_names_than_anybody_can_keep_in_mind(tmp_path: Path) -> None:
    assert policy(tmp_path, {f"n{number}": GOOD for number in range(64)}).file is not None
    assert "at most 64 items" in policy(tmp_path, {f"n{number}": GOOD for number in range(65)}).why
