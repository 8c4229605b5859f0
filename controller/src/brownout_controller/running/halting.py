"""The controller's halt lever: it ends everything on every host, blocks every run, and stays pulled until released.

It is kept in the database, so that it outlives controllers and that all of them obey it; but halting never waits for a
database that does not answer: what this process can reach is halted all the same, and that it is not kept is said.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from brownout_protos.v1 import fault_pb2, fleet_pb2

from brownout_controller.audit.entry import AuditEntry, Auditor, Outcome
from brownout_controller.fleet.sessions import LEASE_MS, Arrival, Fleet, HostState
from brownout_controller.store.database import Database, StoreError
from brownout_controller.store.levers import Answer, Lever, Levers

ANSWER_WITHIN_S = LEASE_MS / 1_000 + 2.0
"""After this a host that nobody can reach has undone everything by itself: nobody renewed its leases."""
LOOK_EVERY_S = 0.5
"""How often every controller looks for a lever that another process pulled."""
_DATABASE_WITHIN_S = 1.0
_POLL_S = 0.1
RELEASE = "brownout resume"

T = TypeVar("T")

log = logging.getLogger(__name__)


class _Run(Protocol):
    def halt(self, reason: str) -> None:
        """End it now."""


class Runs(Protocol):
    """Whoever carries runs, by number."""

    @property
    def active(self) -> Mapping[int, _Run]:
        """Those that go on."""


@dataclass(frozen=True, slots=True)
class Halting:
    """What came of a pull."""

    lever: Lever
    confirmed: tuple[str, ...]
    """Hosts that said that the kernel was seen clean."""
    unconfirmed: dict[str, str]
    """Hosts that did not: name -> why."""
    trouble: str
    """Why the lever is not kept; empty when it is."""


@dataclass(slots=True)
class _Pulled:
    """The lever that stands, and what the hosts of this process were told and said."""

    lever: Lever
    waiting: dict[str, str] = field(default_factory=dict)
    """Halt id -> host."""
    answers: dict[str, Answer] = field(default_factory=dict)
    unkept: set[str] = field(default_factory=set)


class HaltLever:
    """The lever of one controller, or of a command beside controllers on the same database.

    Whoever carries runs does so inside of `obeying`.
    """

    def __init__(self, database: Database, fleet: Fleet, auditor: Auditor) -> None:
        self._levers = Levers(database)
        self._fleet = fleet
        self._auditor = auditor
        self._pulled: _Pulled | None = None
        self._runs: Runs | None = None
        self._halted_runs: set[int] = set()
        self._heard = asyncio.Event()
        fleet.listen(self._arrived)

    @property
    def standing(self) -> Lever | None:
        """The lever that halts everything, as far as this process knows."""
        return self._pulled.lever if self._pulled else None

    async def why_not(self) -> str:
        """Why no run may begin now; empty when it may.

        Raises:
            StoreError: nobody can tell.
        """
        lever = self.standing or await _asked(self._levers.standing)
        return f"everything is halted: {lever}; next: {RELEASE}" if lever else ""

    async def pull(self, reason: str, by: str) -> Halting:
        """Halt everything: keep the lever, tell every host, and wait for their answers, ANSWER_WITHIN_S at most.

        Never raises for a database that is down; `Halting.trouble` says so.
        """
        lever, trouble = Lever(0, None, reason, by, time.time_ns()), ""
        try:
            lever = await _asked(lambda: self._levers.pull(reason, by))
        except StoreError as error:
            trouble = str(error)
        self._stand(lever)
        # Halting never waits for the audit log.
        self._auditor.record_later(AuditEntry(by, "lever.pull", "everything", Outcome.ALLOWED, reason=reason))
        deadline_s = time.monotonic() + ANSWER_WITHIN_S
        while True:
            self._heard.clear()
            await self._keep()
            hosts, answers = await self._known_hosts(), await self._answers()
            if hosts <= answers.keys() or time.monotonic() > deadline_s:
                break
            await self._wait_heard(_POLL_S)
        return self._came_of(self.standing or lever, hosts, answers, trouble)

    async def release(self, by: str) -> Lever | None:
        """Let runs begin again; returns the lever that stood, None when there was none.

        Raises:
            StoreError: it could not be kept or audited, so everything stays halted.
        """
        entry = AuditEntry(by, "lever.release", "everything", Outcome.ALLOWED)
        await asyncio.to_thread(self._auditor.record, entry)
        lever = await asyncio.to_thread(self._levers.release, by) or self.standing
        self._pulled = None
        return lever

    @asynccontextmanager
    async def obeying(self, runs: Runs) -> AsyncIterator[None]:
        """Inside, these runs and every host are halted as soon as anybody on this database pulls a lever."""
        task = asyncio.create_task(self._obey(runs))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._keep()

    async def _obey(self, runs: Runs) -> None:
        self._runs = runs
        trouble = ""
        while True:
            self._heard.clear()
            try:
                await self._look(runs)
                await self._keep()
                trouble = ""
            except StoreError as error:
                if str(error) != trouble:
                    log.warning("nobody can tell whether a halt was ordered elsewhere: %s", error)
                trouble = str(error)
            if self._pulled is not None and self._halt_runs(runs, self._pulled.lever):
                self._tell_hosts()  # what such a run has just ordered must not outlive the halt
            await self._wait_heard(LOOK_EVERY_S)

    # ---- what others pulled --------------------------------------------------------------------------------------

    async def _look(self, runs: Runs) -> None:
        for lever in await asyncio.to_thread(self._levers.of_runs, tuple(runs.active)):
            run = runs.active.get(lever.run_number or 0)
            if run is not None and lever.run_number not in self._halted_runs:
                self._halted_runs.add(lever.run_number or 0)
                run.halt(f"halted: {lever}")
        standing = await asyncio.to_thread(self._levers.standing)
        if standing is not None:
            if self._pulled is None or self._pulled.lever != standing:
                self._stand(standing)
        elif self._pulled is not None and self._pulled.lever.number:
            self._pulled = None  # released elsewhere

    # ---- telling hosts and hearing them --------------------------------------------------------------------------

    def _stand(self, lever: Lever) -> None:
        """Runs first: what they order after a host has halted would stay."""
        if self._pulled is None or self._pulled.lever != lever:
            self._pulled = _Pulled(lever)
        if self._runs is not None:
            self._halt_runs(self._runs, lever)
        self._tell_hosts()

    def _halt_runs(self, runs: Runs, lever: Lever) -> bool:
        fresh = [number for number in runs.active if number not in self._halted_runs]
        for number in fresh:
            self._halted_runs.add(number)
            runs.active[number].halt(f"everything is halted: {lever}")
        return bool(fresh)

    def _tell_hosts(self) -> None:
        for host in self._fleet.connected:
            self._tell(host)

    def _tell(self, host: HostState) -> None:
        if self._pulled is None or host.session is None:
            return
        halt = fault_pb2.Halt(halt_id=str(uuid.uuid4()), reason=str(self._pulled.lever))
        self._pulled.waiting[halt.halt_id] = host.name
        host.session.send(fleet_pb2.ControllerMessage(halt=halt))

    def _arrived(self, arrival: Arrival) -> None:
        pulled, message = self._pulled, arrival.message
        if pulled is None:
            return
        if arrival.up:
            self._tell(arrival.host)
        elif message is not None and message.HasField("halted"):
            if pulled.waiting.pop(message.halted.halt_id, None) != arrival.host.name:
                return
            halted = message.halted
            why = halted.message or f"not verified gone: {', '.join(halted.remaining)}"
            pulled.answers[arrival.host.name] = Answer(arrival.host.name, halted.clean, "" if halted.clean else why)
            pulled.unkept.add(arrival.host.name)
            self._heard.set()

    # ---- what is kept --------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Keep what is not kept yet: a lever that was pulled while the database was down, and answers."""
        pulled = self._pulled
        if pulled is None:
            return
        try:
            if not pulled.lever.number:
                reason, by = pulled.lever.reason, pulled.lever.pulled_by
                pulled.lever = await _asked(lambda: self._levers.pull(reason, by))
            for host in sorted(pulled.unkept):
                number, answer = pulled.lever.number, pulled.answers[host]
                await _asked(partial(self._levers.answer, number, answer))
                pulled.unkept.discard(host)
        except StoreError as error:
            log.warning("a halt or an answer to it is not kept yet: %s", error)

    async def _known_hosts(self) -> frozenset[str]:
        """As far as can be told now; the only host of one-machine mode is known as long as its run goes on."""
        here = frozenset(self._fleet.hosts)
        try:
            return here | await _asked(self._levers.known_hosts)
        except StoreError:
            return here

    async def _answers(self) -> dict[str, Answer]:
        pulled = self._pulled
        if pulled is None:
            return {}
        try:
            kept = await _asked(partial(self._levers.answers, pulled.lever.number))
        except StoreError:
            kept = {}
        return kept | pulled.answers

    def _came_of(self, lever: Lever, hosts: frozenset[str], answers: dict[str, Answer], trouble: str) -> Halting:
        clean = {name for name, answer in answers.items() if answer.clean}
        unconfirmed = {name: self._why(name, answers.get(name)) for name in sorted((hosts | answers.keys()) - clean)}
        return Halting(lever, tuple(sorted(clean)), unconfirmed, "" if lever.number else trouble)

    def _why(self, name: str, answer: Answer | None) -> str:
        if answer is not None:
            return answer.message
        host = self._fleet.hosts.get(name)
        if host is not None and host.connected:
            return f"it did not answer within {ANSWER_WITHIN_S:g} s"
        return f"no controller reached it within {ANSWER_WITHIN_S:g} s; by now its leases should have run out"

    async def _wait_heard(self, at_most_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._heard.wait()


async def _asked(work: Callable[[], T]) -> T:
    """What the database answers, if it does so in time; what it was asked to do may still be done later.

    Raises:
        StoreError: it does not.
    """
    try:
        async with asyncio.timeout(_DATABASE_WITHIN_S):
            return await asyncio.to_thread(work)
    except TimeoutError:
        raise StoreError(f"the database did not answer within {_DATABASE_WITHIN_S:g} s") from None
