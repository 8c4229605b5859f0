"""Whatever text stands in an experiment's file: an experiment or findings, never a traceback, never long.

Ten thousand texts: noise, YAML of any shape, and a real experiment with pieces of it changed, moved and repeated.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from brownout_controller.language import Diagnostic, InvalidExperiment, parse_experiment

TEXTS = 10_000
WITHIN_S = 1.0
_PIECES = (
    ":", " ", "\n", "- ", "  ", "? ", "| ", "> ", "&a ", "*a", "!!python/object:os.system ", "<<: ", "{", "}", "[", "]",
    '"', "'", "#", "%", "---\n", "...\n", "\t", "\ufeff", "\0", "\x85", "\u2028", "no", "0x1F", "1:30", "010", ".nan",
    "1e400", "9" * 400, "${vars.x}", "${", "}}", "~", "null", "é", "🔥", "\u202e", "[" * 40, "{a: " * 40, "- " * 40,
)  # fmt: skip


def experiments() -> list[str]:
    root = Path(__file__).parents[2]
    files = [*(root / "experiments").glob("*/*.yaml"), *(root / "tests/unit/language_cases").glob("*.yaml")]
    assert files, "there is a real experiment to begin with"
    return [file.read_text() for file in files]


def noise(rng: random.Random) -> str:
    return "".join(rng.choice(_PIECES) for _ in range(rng.randrange(60)))


def changed(rng: random.Random, text: str) -> str:
    """A piece replaced, a line taken away, repeated, moved or indented otherwise; several times over."""
    lines = text.splitlines(keepends=True)
    for _ in range(rng.randint(1, 4)):
        at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
        line = lines[at]
        cut = rng.randrange(len(line) + 1)
        match rng.randrange(6):
            case 0:
                lines[at] = line[:cut] + rng.choice(_PIECES) + line[cut + rng.randrange(3) :]
            case 1:
                lines.insert(to, line)
            case 2:
                lines[at], lines[to] = lines[to], line
            case 3:
                lines[at] = "  " * rng.randrange(20) + line.lstrip()
            case 4:
                lines[at] = line.partition(":")[0] + ": " + rng.choice(_PIECES) + "\n"
            case _:
                lines[at] = rng.choice(_PIECES) + "\n"
    return "".join(lines)


def is_valid(text: str) -> bool:
    """Whether it is an experiment.

    Raises:
        AssertionError: nobody can tell, or it is refused without a word.
    """
    findings: tuple[Diagnostic, ...]
    try:
        parse_experiment(text)
        return True
    except InvalidExperiment as error:
        findings = error.diagnostics
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error} of {text!r}") from error
    assert findings, f"refused without a finding: {text!r}"
    return False


@pytest.mark.slow
def test_ten_thousand_texts_are_an_experiment_or_findings_within_a_second_each() -> None:
    seed = int(os.environ.get("BROWNOUT_SEED", random.SystemRandom().getrandbits(32)))
    print(f"BROWNOUT_SEED={seed}")
    rng, real = random.Random(seed), experiments()
    makers: list[Callable[[], str]] = [lambda: noise(rng), *[lambda: changed(rng, rng.choice(real))] * 4]
    valid = longest_s = 0.0
    for _ in range(TEXTS):
        text = rng.choice(makers)()
        begun_s = time.thread_time()
        valid += is_valid(text)
        longest_s = max(longest_s, time.thread_time() - begun_s)
    print(f"{valid:g} valid, the longest took {longest_s:.3f} s")
    assert longest_s < WITHIN_S
    assert valid < TEXTS / 2, "most of them are broken"
