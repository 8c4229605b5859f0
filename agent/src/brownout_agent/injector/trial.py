"""The trial of a fault that could cut its host off: in effect, but not for long unless it is shown to be harmless.

It is passed when the agent has proved, by a question that its controller answered after the rules were in effect, that
it still reaches it, and when for WATCH_S no connection by which people hold the host has suffered. Until then the
kernel's own limits are those of the trial (TRIAL_S): a fault that cuts everything off, its injector included, ends.
"""

from collections.abc import Callable
from concurrent.futures import Future

from brownout_agent.injector.threads import in_thread

WATCH_S = 1.0
"""Time for a segment to stay unanswered twice: 200 ms and 400 ms at least (RFC 6298 as Linux has it)."""
_WATCH_NS = int(WATCH_S * 1e9)


class Trial:
    """One trial that has begun; asked now and then how it stands. Nothing in it blocks."""

    def __init__(self, find_harm: Callable[[], str], began_ns: int) -> None:
        self._find_harm = find_harm
        self._began_ns = began_ns
        self._is_answered = False
        self._look_at(began_ns)

    def answer(self) -> None:
        """The agent has proved that it reaches its controller."""
        self._is_answered = True

    def outcome(self, now_ns: int) -> str | None:
        """None while it goes on; "" when it is passed; else why it is not. `now_ns` is CLOCK_BOOTTIME.

        Two looks: one as soon as the fault is in effect, for what the rules show, and one after WATCH_S.
        """
        if not self._look.done():
            return None
        try:
            harm = self._look.result()
        except OSError as error:
            harm = f"nobody can tell whether it hurts SSH: {error}"
        is_watched = self._looked_ns >= self._began_ns + _WATCH_NS
        if harm or (is_watched and self._is_answered):
            return harm
        if not is_watched and now_ns >= self._began_ns + _WATCH_NS:
            self._look_at(now_ns)
        return None

    def _look_at(self, now_ns: int) -> None:
        self._looked_ns = now_ns
        self._look: Future[str] = in_thread(self._find_harm)
