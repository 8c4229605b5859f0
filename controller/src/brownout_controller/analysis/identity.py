"""Who answered: which identity a fault took out of service, when its traffic moved, and when it came back.

One rule decides: an identity that used to answer a share `s` of the requests is absent by chance from `n` answers in
a row with probability (1 - s)**n. Below CHANCE it is not chance: the traffic goes elsewhere. A standby's first answer
is thus enough (s = 1, n = 1); behind a rotation of two it takes ten answers in a row, unbroken by a failure, since a
survivor that had been answering all along proves nothing by answering once more.
"""

import math
from collections import Counter
from dataclasses import dataclass

from brownout_controller.analysis.periods import FaultPeriod
from brownout_controller.record import Series

CHANCE = 0.001


@dataclass(frozen=True, slots=True)
class Move:
    """Indexes into the series: where traffic left the lost identities, and where it came back to one of them."""

    lost: tuple[str, ...]
    moved: int | None
    """First request of the unbroken stretch that somebody else answered; the lost ones answer no more after it."""
    failed_back: int | None
    """First answer of a lost one that came after the undo began."""


def answered_ns(series: Series, index: int) -> int:
    """When the answer came, or the attempt was given up."""
    return series.sent_ns[index] + series.took_ns[index]


def find_move(series: Series, period: FaultPeriod) -> Move:
    """Which identities stopped answering while this fault was in effect, and when others took over."""
    baseline = Counter(_who_answered(series, period.window_begin_ns, period.injected_ns))
    during = _who_answered(series, period.injected_ns, period.undo_begun_ns)
    lost = tuple(sorted(one for one in baseline if _is_lost(one, baseline[one] / baseline.total(), during)))
    if not lost:
        return Move((), None, None)
    share = sum(baseline[one] for one in lost) / baseline.total()
    return Move(lost, _moved(series, period, lost, share), _failed_back(series, period, lost))


def _who_answered(series: Series, begin_ns: int, end_ns: int) -> list[str]:
    """The known identities of all answers that came within [begin_ns, end_ns), in order of sending."""
    return [
        who
        for i, who in enumerate(series.identity)
        if who and series.ok[i] and begin_ns <= answered_ns(series, i) < end_ns
    ]


def _enough_in_a_row(share: float) -> int:
    """The smallest n with (1 - share)**n < CHANCE."""
    return 1 if share >= 1 - CHANCE else math.floor(math.log(CHANCE) / math.log(1 - share)) + 1


def _is_lost(identity: str, share: float, during: list[str]) -> bool:
    others_in_a_row = next((n for n, who in enumerate(reversed(during)) if who == identity), len(during))
    return others_in_a_row >= _enough_in_a_row(share)


def _moved(series: Series, period: FaultPeriod, lost: tuple[str, ...], share: float) -> int | None:
    needed = _enough_in_a_row(share)
    stretch: list[int] = []
    moved: int | None = None
    for i, ok in enumerate(series.ok):
        if not period.injected_ns <= answered_ns(series, i) < period.undo_begun_ns:
            continue
        if not ok:
            stretch = []
        elif series.identity[i] in lost:
            stretch, moved = [], None
        else:
            stretch.append(i)
            if moved is None and len(stretch) == needed:
                moved = stretch[0]
    return moved


def _failed_back(series: Series, period: FaultPeriod, lost: tuple[str, ...]) -> int | None:
    return next(
        (
            i
            for i, ok in enumerate(series.ok)
            if ok
            and series.identity[i] in lost
            and answered_ns(series, i) >= period.undo_begun_ns
            and series.sent_ns[i] < period.window_end_ns
        ),
        None,
    )
