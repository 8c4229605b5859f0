"""The experiment language: from a YAML file to a frozen `Experiment`, or to findings with line, column and caret.

Nothing here sends, resolves or looks at hosts. A text goes through `source` (bytes to text), `document` (text to a tree
with places), `variables` (`${vars.x}`), `experiment` (the value) and `references` (names that must exist).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from brownout_controller.language.diagnostics import Diagnostic, InvalidExperiment, Severity, Source, in_order
from brownout_controller.language.document import parse_document, plain
from brownout_controller.language.experiment import Experiment, ExperimentFile
from brownout_controller.language.findings import findings_of
from brownout_controller.language.references import check_references, check_sense
from brownout_controller.language.source import read_source
from brownout_controller.language.variables import substitute

__all__ = [
    "Checked",
    "Diagnostic",
    "Experiment",
    "InvalidExperiment",
    "Source",
    "check",
    "load_experiment",
    "parse_experiment",
]

NO_OVERRIDES: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Checked:
    """A valid experiment and the warnings about it, in order of the file."""

    experiment: Experiment
    warnings: tuple[Diagnostic, ...]
    source: Source


def load_experiment(path: Path, overrides: Mapping[str, str] = NO_OVERRIDES) -> Experiment:
    """The experiment in a file; `overrides` are values for its `vars`.

    Raises:
        InvalidExperiment: not an experiment, or not a file that can be read. Holds every finding.
    """
    return check(read_source(path), overrides).experiment


def parse_experiment(text: str, name: str = "experiment", overrides: Mapping[str, str] = NO_OVERRIDES) -> Experiment:
    """The experiment that a text holds; `name` stands for the file in messages.

    Raises:
        InvalidExperiment: not an experiment. Holds every finding.
    """
    return check(Source(name, text), overrides).experiment


def check(source: Source, overrides: Mapping[str, str] = NO_OVERRIDES) -> Checked:
    """The experiment of a text with the warnings about it.

    Raises:
        InvalidExperiment: not an experiment. Holds every finding.
    """
    written, diagnostics = parse_document(source)
    root, of_variables = substitute(written, overrides, source)
    diagnostics += of_variables
    broken = {(found.line, found.column) for found in diagnostics}
    following: list[Diagnostic] = []
    try:
        file = ExperimentFile.model_validate(plain(root))
    except ValidationError as error:
        following += findings_of(error, root)
    following += check_references(root)
    # What stands where the text itself was wrong has no value; anything said of that value is noise.
    diagnostics += [found for found in following if (found.line, found.column) not in broken]
    if diagnostics:
        raise InvalidExperiment(diagnostics, source)
    experiment = Experiment.of(file, source.text, hashlib.sha256(source.text.encode()).hexdigest())
    warnings = [found for found in check_sense(experiment, root) if found.severity is Severity.WARNING]
    return Checked(experiment, in_order(warnings), source)
