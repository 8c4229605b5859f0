"""The command's exit codes, in one place. They are part of the interface and do not change."""

from enum import IntEnum

from brownout_controller.record import Verdict


class ExitCode(IntEnum):
    """What the `brownout` command's exit status means. All below 64: no clash with sysexits, `timeout` or signals."""

    HELD = 0
    """Held, or simply done."""
    INTERNAL_ERROR = 1
    USAGE = 2
    INVALID_FILE = 3
    """The experiment file is invalid; nothing was sent."""
    REFUSED = 4
    """Nothing was injected."""
    UNREACHABLE = 5
    """Controller or agent unreachable."""
    NOT_PERMITTED = 6
    DEVIATED = 10
    ABORTED = 11
    """By a guard."""
    HALTED = 12
    """By a person."""
    UNDO_NOT_CONFIRMED = 13
    """Wins over all others."""
    INCONCLUSIVE = 14
    """A fault was not proved, or probe data is missing."""


EXIT_CODE_OF_VERDICT = {
    Verdict.HELD: ExitCode.HELD,
    Verdict.DEVIATED: ExitCode.DEVIATED,
    Verdict.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    Verdict.ABORTED: ExitCode.ABORTED,
    Verdict.HALTED: ExitCode.HALTED,
    Verdict.ERRORED: ExitCode.INTERNAL_ERROR,
}
