"""Many refusals of nobody in particular become one entry with a count: whoever knocks must not fill the log."""

import re
import time
from dataclasses import dataclass, replace

from brownout_controller.audit.entry import NOBODY, AuditEntry, Outcome

WINDOW_S = 60.0
_KEYS_MAX = 1_000
_PORT = re.compile(r"(?<=[\]\d]):\d+$")


@dataclass(slots=True)
class _Repeats:
    begun_s: float
    latest: AuditEntry
    count: int = 0


class Folding:
    """Lets the first entry of a kind pass, and counts what follows within a minute. Not for several threads."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._open: dict[tuple[str, str, str], _Repeats] = {}

    def is_repeat(self, entry: AuditEntry) -> bool:
        """Whether an entry is counted, and so need not be kept by itself."""
        if entry.actor != NOBODY or entry.outcome is not Outcome.REFUSED:
            return False
        key = self._key(entry)
        repeats = self._open.get(key)
        if repeats is None:
            self._open[key] = _Repeats(time.monotonic(), entry)
            return False
        repeats.latest = entry
        repeats.count += _count(entry)
        return True

    def over(self, *, all_of_them: bool = False) -> list[AuditEntry]:
        """What was counted in windows that are over now: one entry each, which says how many it stands for."""
        until_s = time.monotonic() - self._window_s
        done = {key: one for key, one in self._open.items() if all_of_them or one.begun_s <= until_s}
        for key in done:
            del self._open[key]
        return [_folded(one) for one in done.values() if one.count]

    def _key(self, entry: AuditEntry) -> tuple[str, str, str]:
        """By address; where there are very many of them, all the rest together."""
        key = (entry.action, entry.subject, _PORT.sub("", entry.origin))
        return key if key in self._open or len(self._open) < _KEYS_MAX else (entry.action, "", "")


def _count(entry: AuditEntry) -> int:
    said = entry.detail.get("count", "")
    return int(said) if said.isdecimal() else 1


def _folded(repeats: _Repeats) -> AuditEntry:
    return replace(repeats.latest, detail={**repeats.latest.detail, "count": str(repeats.count), "folded": "yes"})
