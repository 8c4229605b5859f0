"""What this host has obeyed, kept across restarts: the largest epoch, and when its latest faults were begun.

One small JSON file beside the journal, replaced as a whole before an order is answered. Undo never needs it. What it
cannot tell or cannot keep refuses orders.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from brownout_agent.epochs import check_step
from brownout_agent.kernel.durable import sync_folder

DAY_NS = 24 * 3600 * 10**9
_FILE_BYTES_MAX = 2**20


class LedgerError(Exception):
    """The ledger cannot be read or written; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class _Page:
    epoch: int = 0
    agent_id: str = ""
    """Whose orders carried that epoch. One that joins anew is another agent, for whom epochs begin anew."""
    begun_ns: tuple[int, ...] = ()
    """Wall-clock times in the order in which they were noted."""


class Ledger:
    """The ledger of one state directory. Whoever holds its journal may write it."""

    def __init__(self, folder: Path) -> None:
        """Read it; one that cannot be read is told when it is asked."""
        self.path = folder / "ledger"
        self._trouble = ""
        try:
            self._page = _read(self.path)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            self._trouble = f"{self.path} cannot be read: {error}"

    @property
    def epoch(self) -> int:
        """The largest epoch that was obeyed.

        Raises:
            LedgerError: nobody knows.
        """
        return self._known().epoch

    def check_epoch(self, epoch: int, agent_id: str) -> None:
        """Let the epoch of an order to this agent pass.

        Raises:
            EpochRefused: the order must not be obeyed.
            LedgerError: nobody knows.
        """
        known = self._known()
        is_same = known.agent_id in {"", agent_id}  # a page of an earlier release does not say whose it is
        check_step(known.epoch if is_same else 0, epoch)

    def begun_within_a_day(self, now_ns: int) -> int:
        """How many noted faults were begun in the 24 h before `now_ns` (wall clock); one in the future counts as well.

        Raises:
            LedgerError: nobody knows.
        """
        return sum(begun_ns > now_ns - DAY_NS for begun_ns in self._known().begun_ns)

    def take(self, epoch: int, begun_ns: int, counted: int, agent_id: str = "") -> None:
        """Note what an order to this agent that is about to be obeyed changes; durable when it returns.

        The latest `counted` beginnings are kept, whatever their age: a clock that was wrong may be set right again.

        Raises:
            EpochRefused: it must not be obeyed.
            LedgerError: it could not be noted.
        """
        old = self._known()
        begun = (*old.begun_ns, begun_ns)[-counted:] if counted else old.begun_ns
        self.check_epoch(epoch, agent_id)
        page = _Page(epoch, agent_id, begun)
        if page == old:
            return
        try:
            _write(self.path, page)
        except OSError as error:
            raise LedgerError(f"{self.path} cannot be written: {error}") from error
        self._page = page

    def _known(self) -> _Page:
        if self._trouble:
            raise LedgerError(self._trouble)
        return self._page


def _read(path: Path) -> _Page:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return _Page()
    with os.fdopen(descriptor, "rb") as file:
        plain = json.loads(file.read(_FILE_BYTES_MAX))
    epoch, begun_ns = int(plain["epoch"]), tuple(int(begun_ns) for begun_ns in plain["begun_ns"])
    return _Page(epoch, str(plain.get("agent_id", "")), begun_ns)


def _write(path: Path, page: _Page) -> None:
    fresh = path.with_name("ledger.new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(asdict(page)).encode())
            file.flush()
            os.fsync(descriptor)
        fresh.rename(path)
        sync_folder(path.parent)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise
