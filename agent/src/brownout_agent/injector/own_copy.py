"""The injector's own copy of what it was ordered and what it did, which no agent and no controller can rewrite.

In the form of the agent's (`host_log.py`), in the injector's state folder, which is root's. An order that is about to
be obeyed is durable here before anything is done about it, or it is refused. What follows is written by a thread: a
slow disk keeps no undo waiting, and what a full one does not take yet is tried again.
"""

import logging
import threading
import time
from collections import deque

from brownout_agent.host_log import HostLog
from brownout_agent.injector.journal import Mark
from brownout_agent.injector.live import FaultStatus
from brownout_agent.injector.order import Order
from brownout_agent.injector.threads import in_thread

RETRY_EVERY_S = 1.0
WAITING_MAX = 1_000
CHEAP_AT_ONCE = 100
CHEAP_EVERY_S = 10.0
"""What anybody at the door can cause without a fault, as refusals, is written at this pace at most, and counted beyond
it: else a flood of it would push everything before it out of a copy of bounded size. At this pace that takes days."""
INJECTOR = "injector"

log = logging.getLogger(__name__)


class OwnCopy:
    """The copy of one injector. Whoever holds its journal may write it. Safe for several threads."""

    def __init__(self, host_log: HostLog) -> None:
        self._log = host_log
        self._lock = threading.Lock()
        """Of who writes."""
        self._waiting: deque[dict[str, str]] = deque()
        self._queue_lock = threading.Lock()
        """Never held while something is written."""
        self._is_writing = self._is_closed = False
        self._states: dict[str, Mark] = {}
        self._left_out = 0
        self._cheap = float(CHEAP_AT_ONCE)
        self._refilled_s = time.monotonic()
        self._is_failing = False

    def obey(self, order: Order) -> None:
        """Keep that an order is about to be obeyed, and all that came before it; durable when it returns.

        Raises:
            OSError: it could not be kept, so it must not be obeyed.
        """
        record = _record(f"agent:{order.agent_id}", "fault.inject", order.fault_id, "obeyed", kind=order.kind)
        record |= {"duration_ms": f"{order.duration_s * 1_000:.0f}", "run_id": order.run_id, "epoch": str(order.epoch)}
        with self._lock:
            self._flush()
            self._log.keep(**record)

    def tell(self, status: FaultStatus) -> None:
        """Note how a fault has come to stand; the same state again is left alone."""
        if not status.kind:  # stopped before its start: no fault
            self.note_cheap("unknown", "fault.stop", status.fault_id, "obeyed", status.message)
        elif self._states.get(status.fault_id) is not status.state and status.state is not Mark.RECORDED:
            self._states[status.fault_id] = status.state
            if status.state is Mark.CLEAN:
                del self._states[status.fault_id]
            reason = status.message or "; ".join(status.residue)
            self.note(
                INJECTOR, "fault.state", status.fault_id, status.state, reason, kind=status.kind, cause=status.cause
            )

    def note(self, actor: str, action: str, subject: str, outcome: str, reason: str = "", **detail: str) -> None:
        """Have a record kept as soon as the disk takes it."""
        with self._queue_lock:
            if len(self._waiting) >= WAITING_MAX:
                self._left_out += 1
                return
            if self._left_out:
                detail["left_out"], self._left_out = str(self._left_out), 0
            detail["happened_ns"] = str(time.time_ns())
            self._waiting.append(_record(actor, action, subject, outcome, reason, **detail))
            if self._is_writing or self._is_closed:
                return
            self._is_writing = True
        writing = in_thread(self._write)
        if writing.done() and writing.exception() is not None:  # no thread is to be had: the next record tries again
            self._is_writing = False

    def note_cheap(self, actor: str, action: str, subject: str, outcome: str, reason: str) -> None:
        """The same for what costs nobody anything to cause: at a bounded pace, and counted beyond it."""
        now_s = time.monotonic()
        self._cheap = min(CHEAP_AT_ONCE, self._cheap + (now_s - self._refilled_s) / CHEAP_EVERY_S)
        self._refilled_s = now_s
        if self._cheap < 1:
            self._left_out += 1
            return
        self._cheap -= 1
        self.note(actor, action, subject, outcome, reason)

    def close(self) -> None:
        """Keep what is waiting, as far as the disk takes it, and write no more: another process may from now on."""
        with self._lock:
            self._try_to_flush()
            self._is_closed = True

    def _write(self) -> None:
        """Until nothing is waiting."""
        while True:
            with self._lock:
                is_done = self._is_closed or self._try_to_flush()
            with self._queue_lock:
                if self._is_closed or not self._waiting:
                    self._is_writing = False
                    return
            if not is_done:
                time.sleep(RETRY_EVERY_S)

    def _try_to_flush(self) -> bool:
        try:
            self._flush()
        except OSError as error:
            if not self._is_failing:
                log.error("%d records are not in this host's own copy yet: %s", len(self._waiting), error)
            self._is_failing = True
            return False
        self._is_failing = False
        return True

    def _flush(self) -> None:
        """Raises OSError: what is waiting from there on still is."""
        while self._waiting:
            self._log.keep(**self._waiting[0])
            self._waiting.popleft()


def _record(actor: str, action: str, subject: str, outcome: str, reason: str = "", **detail: str) -> dict[str, str]:
    named = {"actor": actor, "action": action, "subject": subject, "outcome": outcome, "reason": reason}
    return {**detail, **named}
