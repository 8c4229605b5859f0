"""One trial: a group of faults on a host, one strike in one phase, and the kernel watched until everything is gone."""

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from tests.support.deaths import FAULT_S, Column, FaultCase, Outcome, Phase
from tests.support.deaths_controller import ControllerLink

UP_WITHIN_S = 40.0
QUIET_S = 2.0
"""No fault and no holder for so long: none comes any more."""
BRISK_S = 1.5
"""So long after the strike a trial keeps its turn of the CPU; the rest of it is waiting. Those whose whole bound is
within it have the CPU to themselves."""
GRACE_S = 5.0
"""Watched beyond the bound, to tell late from never."""
INJECT_WITHIN_S = 2.0
"""The longest time from the orders to a strike in mid-injection."""
_STARTER, _STARTER_S = "brownout_agent.faults.process_start", 20.0
"""After that time it is killed by whoever started it."""
_LOOK_AGAIN_S = 0.05
_BLIND_S = 0.5
"""Looks further apart than this cannot tell late from in time; on a starved machine that happens."""
_LOOKED_WITHIN_S = 30.0
_EARLY_S = 2.0
_MIB = 2**20


class AnyHost(Protocol):
    """What a trial needs of a host, whatever it is made of."""

    name: str
    tags: dict[FaultCase, str]
    scratch: Path
    controller: ControllerLink

    async def start(self) -> None:
        """Bring up what is not up; returns when it takes orders."""

    async def left(self, fault_ids: list[str]) -> tuple[list[str], int]:
        """What its kernel still shows of faults, and the free bytes of its disk.

        Raises:
            HostFailed: it does not say.
        """


@dataclass
class Scene:
    """A trial as it goes: what was seen of each fault, and when, on the monotonic clock."""

    host: AnyHost
    faults: tuple[FaultCase, ...]
    column: Column
    phase: Phase
    random: random.Random
    bound_s: float
    duration_s: float = FAULT_S
    ids: dict[FaultCase, str] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)
    gone_at_s: dict[str, float] = field(default_factory=dict)
    """When a fault that had been there was first not there, the latest time."""
    there_until_s: dict[str, float] = field(default_factory=dict)
    """When the last look began that found it there."""
    looked_s: float = 0.0
    """When the latest look began."""
    busy_s: float = 0.0
    """The last look at which a fault or a holder was there."""
    ends_by_itself: bool = False
    """Whether each fault is to last as long as was ordered, and no less."""
    looked: asyncio.Condition = field(default_factory=asyncio.Condition)

    def see(self, there: set[str], *, is_busy: bool, began_s: float) -> None:
        """Take in a look at the kernel that is just done. `is_busy`: a fault or a holder is there."""
        now_s = time.monotonic()
        for kind in there - self.there:
            self.gone_at_s.pop(kind, None)
        for kind in self.there - there:
            self.gone_at_s[kind] = now_s
        self.there_until_s |= dict.fromkeys(there, began_s)
        if is_busy:
            self.busy_s = now_s
        self.there = there
        self.looked_s = began_s

    async def tell(self) -> None:
        """Wake whoever waits for a look."""
        async with self.looked:
            self.looked.notify_all()

    async def until(self, holds: Callable[[], bool], within_s: float) -> bool:
        """Whether it came to hold in time; asked after every look."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s), self.looked:
                await self.looked.wait_for(holds)
                return True
        return False

    def inject_all(self) -> None:
        """Order every fault at once."""
        for fault in self.faults:
            self.ids[fault] = str(uuid.uuid4())
            parameters = fault.filled_in(self.host.tags[fault], str(self.host.scratch))
            self.host.controller.inject(self.host.name, self.ids[fault], fault.kind, parameters, self.duration_s)

    def all_are_told(self) -> bool:
        """Whether every fault was reported to be in effect."""
        return all(fault_id in self.host.controller.active_s for fault_id in self.ids.values())

    def stop_all(self) -> float:
        """Order the end of every fault; returns when."""
        for fault_id in self.ids.values():
            self.host.controller.stop(self.host.name, fault_id)
        return time.monotonic()

    async def pause(self, longest_s: float) -> None:
        """A random instant."""
        await asyncio.sleep(self.random.uniform(0, longest_s))

    def due(self) -> "Since":
        """When the time of each fault is up. It counts from when it is in effect, which the report of it tells."""
        self.ends_by_itself = True
        told_s = self.host.controller.active_s
        return {fault.kind: told_s[fault_id] + self.duration_s for fault, fault_id in self.ids.items()}

    def all_since(self, second: float) -> "Since":
        """The same for every fault."""
        return dict.fromkeys((fault.kind for fault in self.ids), second)


Since = dict[str, float]
"""Per kind of fault, the monotonic second from which its end is counted."""
Strike = Callable[[Scene], Awaitable[Since]]


class Turns:
    """Who may burden the CPU: a few trials at a time, or one alone, whose bound a busy machine would not let be met."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = asyncio.Semaphore(count)
        self._one_gathers = asyncio.Lock()
        """Two that each wait for the other's turns would wait for ever."""

    @contextlib.asynccontextmanager
    async def turn(self, *, alone: bool) -> AsyncIterator[None]:
        """While inside, it is this trial's turn, or nobody else's."""
        taken = 0
        try:
            async with self._one_gathers if alone else contextlib.nullcontext():
                while taken < (self._count if alone else 1):
                    await self._free.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._free.release()


class Censored(Exception):
    """The trial did not come as far as its strike, so its cells say nothing."""


class HostFailed(Exception):
    """The host is not what it must be. After the strike it counts as something left."""


async def trial(
    scene: Scene, strike: Strike, seed: int, watching: AbstractContextManager[None], turns: Turns
) -> list[Outcome]:
    """Every fault of the scene under its column, in its phase: one outcome each."""
    with watching:
        try:
            async with turns.turn(alone=scene.bound_s <= BRISK_S and not scene.column.on_uml):
                free_before = await _reach_strike(scene)
                was_there = set(scene.there)
                since = await strike(scene)
                await asyncio.sleep(BRISK_S)
        except Censored as error:
            return _outcomes(scene, seed, censored=str(error))
        except HostFailed as error:
            return _outcomes(scene, seed, left=(str(error),))
        try:
            await _watch_end(scene, since)
        except Censored as error:
            return _outcomes(scene, seed, censored=str(error))
        gone = {kind: _gone_after_s(scene, kind, second) for kind, second in since.items()}
        early = _early(scene, since)
        try:
            left = await _leftovers(scene, free_before, max(since.values()) + scene.bound_s + scene.column.restart_s)
        except HostFailed as error:
            left = (str(error),)
    outcomes = _outcomes(scene, seed, gone=gone, was_there=was_there, left=early + left)
    return [replace(one, censored=_blind(scene, one, since[one.fault])) for one in outcomes]


async def _reach_strike(scene: Scene) -> int:
    """Bring the host up, order, wait for the phase; returns the free bytes before.

    Raises:
        Censored: it did not come that far.
    """
    try:
        await scene.host.start()
    except AssertionError as error:
        raise Censored(str(error)) from error
    if not await scene.until(lambda: not scene.there, 10):
        raise Censored(f"before any order there was {sorted(scene.there)}")
    try:
        _, free_before = await scene.host.left([])
    except HostFailed as error:
        raise Censored(str(error)) from error
    scene.inject_all()
    if scene.phase is Phase.INJECT:
        await scene.pause(INJECT_WITHIN_S)
        return free_before
    kinds = {fault.kind for fault in scene.ids}
    if not await scene.until(lambda: scene.there == kinds and scene.all_are_told(), UP_WITHIN_S):
        words = [scene.host.controller.reports.get(scene.ids[fault], "?") for fault in scene.ids]
        raise Censored(f"never came about: {sorted(kinds - scene.there)}: {words}")
    if scene.duration_s == FAULT_S:
        await scene.pause(0.5)
    if scene.phase is Phase.UNDO:
        scene.stop_all()
        await scene.pause(0.3)
    return free_before


async def _watch_end(scene: Scene, since: Since) -> None:
    """Until nothing was on for a while, or the bound is past by GRACE_S; what was seen last was seen after that.

    Raises:
        Censored: nobody looked.
    """
    begun_s = time.monotonic()
    await scene.until(
        lambda: time.monotonic() - max(scene.busy_s, begun_s) > QUIET_S,
        max(QUIET_S, max(since.values()) + scene.bound_s + scene.column.restart_s + GRACE_S - begun_s),
    )
    over_s = time.monotonic()
    if not await scene.until(lambda: scene.looked_s > over_s, _LOOKED_WITHIN_S):
        raise Censored(f"nobody looked at the kernel for {_LOOKED_WITHIN_S:g} s")


def _blind(scene: Scene, outcome: Outcome, since_s: float) -> str:
    """Why nobody knows whether it was late: "" unless its bound fell between two looks that were far apart."""
    if outcome.judgement != "late" or outcome.gone_after_s is None:
        return ""
    there_s = scene.there_until_s[outcome.fault] - since_s
    is_known = there_s > outcome.bound_s or outcome.gone_after_s - there_s < _BLIND_S
    return "" if is_known else f"nobody looked between {there_s:.2f} s and {outcome.gone_after_s:.2f} s"


def _early(scene: Scene, since: Since) -> tuple[str, ...]:
    """Faults that ended before their time. The report from which it counts may be some time on its way."""
    if not scene.ends_by_itself:
        return ()
    early = {kind: second - scene.gone_at_s.get(kind, second) for kind, second in since.items()}
    return tuple(f"{kind} ended {by_s:.1f} s early" for kind, by_s in early.items() if by_s > _EARLY_S)


async def _leftovers(scene: Scene, free_before: int, until_s: float) -> tuple[str, ...]:
    """What is left at `until_s`, or nothing as soon as nothing is.

    A program that starts what was killed holds no fault, and ends by itself: it has the rest of its own time.
    """
    while True:
        left, free = await scene.host.left(list(scene.ids.values()))
        if free_before - free > _MIB:
            left.append(f"{free_before - free} bytes of disk are not free again")
        ends_itself = all(_STARTER in one for one in left)
        if not left or time.monotonic() > until_s + (_STARTER_S if ends_itself else 0.0):
            return tuple(left)
        await asyncio.sleep(_LOOK_AGAIN_S)


def _outcomes(
    scene: Scene,
    seed: int,
    *,
    gone: dict[str, float | None] | None = None,
    was_there: set[str] | None = None,
    left: tuple[str, ...] = (),
    censored: str = "",
) -> list[Outcome]:
    return [
        Outcome(
            column=scene.column.name,
            phase=scene.phase,
            fault=fault.kind,
            seed=seed,
            was_there=fault.kind in (was_there or ()),
            gone_after_s=(gone or {}).get(fault.kind),
            bound_s=round(scene.column.bound_of(fault, scene.bound_s), 3),
            leftovers=left,
            censored=censored,
            said=scene.host.controller.reports.get(scene.ids.get(fault, ""), "")[:600],
        )
        for fault in scene.faults
    ]


def _gone_after_s(scene: Scene, kind: str, since_s: float) -> float | None:
    if kind in scene.there:
        return None
    return round(max(0.0, scene.gone_at_s.get(kind, 0.0) - since_s), 3)
