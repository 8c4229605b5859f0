"""What the project's papers and ready-made experiments say is true: links lead somewhere, examples are valid."""

import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from brownout_controller import __version__
from brownout_controller.language import check
from brownout_controller.language.diagnostics import Source

ROOT = Path(__file__).parent.parent.parent
PAPERS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EXPERIMENTS = sorted(ROOT.glob("experiments/*/*.yaml"))


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(paper: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", paper.read_text())
    assert [link for link in links if not (paper.parent / link).exists()] == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_ready_made_experiment_is_valid_without_a_warning(path: Path) -> None:
    checked = check(Source(str(path), path.read_text()))
    assert checked.warnings == ()
    assert checked.experiment.name == path.stem


def test_the_shortest_experiment_of_the_readme_is_valid() -> None:
    text = (ROOT / "README.md").read_text()
    block = text.partition("<!-- shortest experiment -->\n```yaml\n")[2].partition("```")[0]
    assert check(Source("README.md", block)).experiment.faults[0].inject == "network.blackhole"


def test_the_experiments_ship_with_the_controller() -> None:
    shipped = resources.files("brownout_controller") / "experiments"
    assert {theme.name for theme in shipped.iterdir()} >= {path.parent.name for path in EXPERIMENTS}


def test_one_version_everywhere() -> None:
    for distribution in ("protos", "agent", "controller"):
        project = tomllib.loads((ROOT / distribution / "pyproject.toml").read_text())["project"]
        assert project["version"] == __version__
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
