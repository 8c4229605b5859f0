"""A network fault that means one unit's sockets keeps to them when the unit is started anew, and the meter sees that.

Who is started anew has another control group at the same path. The holder looks there every LOOK_S and puts each new
one into its table's set, beside those before it, whose sockets may have something left to send. What a new group did
before it was put there was not met; for how long that may have been, the holder counts. The meter looks by itself
whether the group that is there now is in the set, and asks the kernel for that.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

from brownout_agent.faults.contract import Facts, Record, Refusal
from brownout_agent.faults.network_group import SocketGroup
from brownout_agent.faults.network_rules import admission, admitted
from brownout_agent.kernel.nftables import Nftables, NftablesError
from brownout_agent.kernel.processes import ProcessKey
from brownout_agent.kernel.socket_groups import id_of
from brownout_agent.kernel.tally import Tally, read_tally

LOOK_S = 0.02
_RENEWED, _UNMET_US = "renewed", "unmet_us"
_NAMES = (_RENEWED, _UNMET_US)
_NS_PER_US, _US_PER_S = 1_000, 1_000_000
_UNMET_MAX = 0.05
"""The share of the fault's time for which new groups may not have been met."""
_ADMITTED_WITHIN_S = 0.5


def follow(nft: Nftables, table: str, group: SocketGroup | None) -> Facts:
    """Have the rules of the table meet this group's sockets, from now until this process ends. None: nothing to do.

    Returns facts for the meter.

    Raises:
        Refusal: there is no such group any more.
        OSError: the kernel refused, or there is no memory to count in.
    """
    if group is None:
        return {}
    follower = _Follower(nft, table, group)
    if not follower.look():
        raise Refusal(f"{group.name} has no control group any more", "start it, and try again")
    threading.Thread(target=follower.keep_looking, daemon=True).start()
    return {"group_tally": follower.tally.descriptor}


class _Follower:
    """Puts what is at the group's path into the set."""

    def __init__(self, nft: Nftables, table: str, group: SocketGroup) -> None:
        self._nft, self._table, self._group = nft, table, group
        self._folder = Path(group.folder)
        self._met: int | None = None
        self._complete_ns = 0
        """When it was last known that nothing went unmet."""
        self.tally = Tally(_NAMES)

    def look(self) -> bool:
        """Whether the group that is there now is in the set."""
        now_ns, number = time.monotonic_ns(), id_of(self._folder)
        if number not in {None, self._met}:
            self._admit(number)
        if number in {None, self._met}:
            self._complete_ns = now_ns
        return number is not None and number == self._met

    def keep_looking(self) -> None:
        """For good. What the kernel refuses ends this process, and the fault with it."""
        try:
            while True:
                time.sleep(LOOK_S)
                self.look()
        except OSError as error:
            os.write(2, f"{self._group.name} cannot be followed: {error}\n".encode())
            os._exit(1)

    def _admit(self, number: int | None) -> None:
        try:
            self._nft.run(admission(self._table, self._group.element))
        except NftablesError:
            if id_of(self._folder) == number:
                raise  # it is not for want of the group
            return
        if id_of(self._folder) != number:
            return  # which of them it was is not known: the next look puts the new one there
        if self._met is not None:
            self.tally.add(_RENEWED)
            self.tally.add(_UNMET_US, (time.monotonic_ns() - self._complete_ns) // _NS_PER_US)
        self._met = number


class GroupMeter:
    """Whether the group's sockets are met, seen from outside of the holder."""

    def __init__(self, record: Record[Any], table: str, group: SocketGroup) -> None:
        self._holder: ProcessKey = record.holders[0]
        self._tally = int(record.facts["group_tally"])
        self._table, self._group = table, group
        self._begun_s = time.monotonic()
        self._looks = self._absent = 0
        self._met: int | None = None
        self._noted = dict.fromkeys(_NAMES, 0)
        self._lost = ""

    def sample(self) -> None:
        """Look once."""
        self._looks += 1
        try:
            self._noted = read_tally(self._holder, self._tally, _NAMES)
            self._see_admitted()
        except OSError as error:
            self._lost = f"; whether {self._group.name} was met could not be seen: {error}"

    @property
    def is_whole(self) -> bool:
        """Whether all that the group did was met, but for a moment after each start."""
        unmet_s = self._noted[_UNMET_US] / _US_PER_S
        return not self._lost and unmet_s <= _UNMET_MAX * (time.monotonic() - self._begun_s)

    @property
    def text(self) -> str:
        """What came and went, for people; "" where nothing did."""
        parts = []
        if renewed := self._noted[_RENEWED]:
            unmet_ms = self._noted[_UNMET_US] / 1_000
            parts.append(
                f"; {self._group.name} was started anew {renewed} times, and met again {unmet_ms:.3g} ms later at most "
                "in all"
            )
        if self._absent:
            parts.append(f"; {self._group.name} was not there in {self._absent} of {self._looks} looks")
        return "".join(parts) + self._lost

    def _see_admitted(self) -> None:
        deadline_s = time.monotonic() + _ADMITTED_WITHIN_S
        while (number := id_of(Path(self._group.folder))) not in {None, self._met}:
            try:
                with Nftables() as nft:
                    nft.run(admitted(self._table, self._group.element))
            except NftablesError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(LOOK_S)
            else:
                self._met = number
        self._absent += number is None
