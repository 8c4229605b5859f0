"""What the faults that only use things up have in common: they need no right to do it, and a limit over them.

Their processes run as a user of their own without any capability (`kernel/credentials.py`), in a control group of their
own (`kernel/own_groups.py`) that is limited in memory and in processes. An injector that is not root can give neither:
then its stressors run as it does.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from brownout_agent.faults.contract import Facts, Fault, FaultParameters, Hold, Record, Refusal
from brownout_agent.kernel import own_groups
from brownout_agent.kernel.credentials import give_up_root

OVERHEAD_BYTES = 256 * 2**20
"""What a stressor's processes may use beside the memory that the fault is about."""
_SPARE_PROCESSES = 4
_FACT = "group_parents"

P = TypeVar("P", bound=FaultParameters)


class Stressor(Fault[P], Generic[P]):
    """Base of these faults. `prepare` adds `place()` to its facts; `apply` calls `confine` first, and forks before it
    calls `become_stressor`, each fork through `as_stressor`."""

    def undo(self, record: Record[P]) -> None:
        own_groups.remove(_groups(record.facts, record.fault_id))

    def residue(self, record: Record[P]) -> list[str]:
        groups = _groups(record.facts, record.fault_id)
        return [f"control group {group} is still there" for group in groups if group.exists()]


def place() -> Facts:
    """Where this fault's control groups will be made."""
    return {_FACT: [str(parent) for parent in own_groups.parents()]}


def confine(facts: Facts, hold: Hold, *, forks: int = 0, memory_bytes: int = 0) -> None:
    """Move the holder into a control group of its own, with room for so many forks and so much memory.

    Raises:
        Refusal: there is no such group to be had.
    """
    try:
        own_groups.enter(
            _groups(facts, hold.fault_id), memory_bytes + OVERHEAD_BYTES, processes=1 + forks + _SPARE_PROCESSES
        )
    except OSError as error:
        raise Refusal(f"no control group for this stressor: {error}") from error


def become_stressor() -> None:
    """Have the holder itself give up root."""
    give_up_root(os.getppid())  # the injector: root, so that its death has been ours until now


def as_stressor(work: Callable[[], None]) -> Callable[[], None]:
    """`work`, done by a fork of this holder that has given up root before."""
    holder_pid = os.getpid()

    def run() -> None:
        give_up_root(holder_pid)
        work()

    return run


def _groups(facts: Facts, fault_id: str) -> list[Path]:
    return [Path(parent) / own_groups.group_name(fault_id) for parent in facts.get(_FACT, ())]
