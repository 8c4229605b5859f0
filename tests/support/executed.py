"""What `exec.run` executes in tests: programs that make a file, look for it, and take it away."""

import json
from pathlib import Path

from brownout_agent.faults.contract import Commands

NAME = "mark"


def commands(file: Path, name: str = NAME) -> Commands:
    """Of the policy, as the fault sees them."""
    path = str(file)
    return Commands(name, ("/usr/bin/touch", path), ("/usr/bin/rm", "-f", path), ("/usr/bin/test", "-e", path))


def section(*named: Commands) -> str:
    """As a policy names them: a line of YAML."""
    programs = ("apply", "undo", "measure", "apply_within_s", "undo_within_s", "measure_within_s")
    return f"exec: {json.dumps({one.name: {key: getattr(one, key) for key in programs} for one in named})}\n"
