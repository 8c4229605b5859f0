"""What `exec.run` may execute: the section `exec` of the local policy.

Each name stands for three programs with their arguments, as lists. Nothing of an order ever becomes part of them, and
no shell reads them: `*`, `$HOME` and `;` are characters like any other.
"""

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from brownout_agent.faults.contract import Commands

NAMES_MAX = 64
_ARGUMENTS_MAX = 32


def _is_program(argv: tuple[str, ...]) -> tuple[str, ...]:
    path = PurePosixPath(argv[0])
    if not path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"{argv[0]!r} is not the absolute path of a program; write it as `which {path.name}` shows it")
    return argv


Argument = Annotated[str, Field(max_length=1_024, pattern=r"^[^\x00]*$")]
Argv = Annotated[tuple[Argument, ...], Field(min_length=1, max_length=_ARGUMENTS_MAX), AfterValidator(_is_program)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")]


class ExecRule(BaseModel):
    """Three programs that belong together, and how long each of them may take."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    apply: Argv
    undo: Argv
    measure: Argv
    apply_within_s: Annotated[float, Field(gt=0, le=15)] = 10.0
    undo_within_s: Annotated[float, Field(gt=0, le=10)] = 10.0
    measure_within_s: Annotated[float, Field(gt=0, le=3)] = 2.0

    def commands(self, name: str) -> Commands:
        """As faults take them."""
        return Commands(name=name, **dict(self))
