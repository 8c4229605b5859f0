"""The local policy: whatever is wrong with it, nothing is allowed."""

import os
from pathlib import Path

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Refusal
from brownout_agent.injector.policy import EMBEDDED, Policy, load
from pydantic import BaseModel

GOOD = """
version: 1
environment: staging
faults:
  cpu.load: {allow: true, max_seconds: 60, max: {percent: 90}}
  memory.load: {allow: false}
limits: {concurrent: 2}
"""


def cpu(percent: float = 50) -> BaseModel:
    parameters: BaseModel = catalogue()["cpu.load"].Parameters.model_validate({"percent": percent})
    return parameters


@pytest.fixture
def good(tmp_path: Path) -> Policy:
    return write(tmp_path, GOOD)


def write(folder: Path, text: str, mode: int = 0o644) -> Policy:
    path = folder / "policy.yaml"
    path.write_text(text)
    path.chmod(mode)
    return load(path)


def test_what_is_allowed_passes(good: Policy) -> None:
    good.check("cpu.load", cpu(), 60, "staging", 1)


@pytest.mark.parametrize(
    ("kind", "percent", "seconds", "environment", "running", "reason"),
    [
        ("cpu.load", 95, 10, "staging", 0, "percent 95; this host allows at most 90"),
        ("cpu.load", 50, 61, "staging", 0, "61 s; this host allows at most 60 s"),
        ("cpu.load", 50, 10, "production", 0, "for environment `production`, this host is `staging`"),
        ("cpu.load", 50, 10, "staging", 2, "2 faults run here already"),
        ("memory.load", 50, 10, "staging", 0, "does not allow memory.load"),
        ("network.loss", 50, 10, "staging", 0, "does not allow network.loss"),
    ],
)
def test_what_goes_beyond_is_refused_with_the_figure(
    good: Policy, kind: str, percent: float, seconds: float, environment: str, running: int, reason: str
) -> None:
    with pytest.raises(Refusal, match=reason):
        good.check(kind, cpu(percent), seconds, environment, running)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the file"),
        ("version: 2\nenvironment: staging\nfaults: {}", "version"),
        ("version: 1\nenvironment: staging\nfaults: {}\nextra: 1", "extra"),
        ("version: 1\nenvironment: staging\nfaults: {cpu.load: {allow: maybe}}", "allow"),
        ("version: 1\nenvironment: staging\nfaults: {cpu.load: {allow: true, max_seconds: -1}}", "max_seconds"),
        ("[unclosed", "not YAML"),
        ("!!python/object/apply:os.system [id]", "not YAML"),
        ("x" * 70_000, "larger than"),
    ],
)
def test_an_invalid_file_refuses_everything_and_says_why(tmp_path: Path, text: str, why: str) -> None:
    policy = write(tmp_path, text)
    assert policy.file is None
    assert why in policy.why
    with pytest.raises(Refusal, match="refuses every fault"):
        policy.check("cpu.load", cpu(), 1, "staging", 0)


def test_a_missing_file_refuses_everything(tmp_path: Path) -> None:
    assert load(tmp_path / "none.yaml").file is None


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write_refuses_everything(tmp_path: Path, mode: int) -> None:
    policy = write(tmp_path, GOOD, mode)
    assert policy.file is None
    assert "chmod 644" in policy.why


def test_a_link_refuses_everything(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text(GOOD)
    (tmp_path / "policy.yaml").symlink_to(tmp_path / "real.yaml")
    assert load(tmp_path / "policy.yaml").file is None


def test_a_fifo_refuses_everything_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "policy.yaml")
    assert load(tmp_path / "policy.yaml").file is None


def test_one_machine_mode_has_a_modest_policy_and_says_so() -> None:
    EMBEDDED.check("cpu.load", cpu(), 900, "staging", 3)
    assert "built-in" in EMBEDDED.why
    with pytest.raises(Refusal):
        EMBEDDED.check("cpu.load", cpu(), 901, "staging", 0)
