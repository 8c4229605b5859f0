"""Runs of one controller, in the background: begun, followed, halted, and seen through to their undo.

`brownout run` and the API begin their runs here, so there is one way from a plan to a record.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from brownout_controller.fleet.sessions import Fleet
from brownout_controller.planning.plan import Plan
from brownout_controller.record import Event
from brownout_controller.running.conclusion import Conclusion, conclude
from brownout_controller.running.engine import Engine, Outcome
from brownout_controller.running.halting import HaltLever
from brownout_controller.running.keeping import RunKeeper
from brownout_controller.store.store import Carrier, RunTaken, Store

RUNS_MAX = 20
"""At one time. Each run has a loop of its own that must not be late."""

log = logging.getLogger(__name__)


class CannotBegin(Exception):
    """This controller begins no run now; the text says why."""


class ActiveRun:
    """One run that goes on. `events` grows only; `conclusion` is there once it is over and kept."""

    def __init__(self, number: int, plan: Plan, engine: Engine, keeper: RunKeeper) -> None:
        self.number = number
        self.plan = plan
        self.engine = engine
        self.events: list[Event] = []
        self.conclusion: Conclusion | None = None
        self._keeper = keeper
        self._let_go = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self.task = asyncio.create_task(self._carry())

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Be called at every event and at the end; call what is returned to stop."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def take(self, event: Event) -> None:
        """An event happened."""
        self.events.append(event)
        self._keeper.take(event)
        self._tell()

    def halt(self, reason: str) -> None:
        """End it now and undo every fault."""
        self.engine.halt(reason)

    def let_go(self) -> None:
        """Wait no longer: agents and injectors undo what is still on by themselves."""
        self._let_go.set()

    async def over(self) -> Conclusion:
        """Wait for its end."""
        return await asyncio.shield(self.task)

    async def _carry(self) -> Conclusion:
        keeping = asyncio.create_task(self._keeper.keep(lambda: self.engine.outcome().record))
        keeping.add_done_callback(self._keeping_ended)
        try:
            outcome = await self._outcome()
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        self.conclusion = await asyncio.to_thread(conclude, outcome, self._keeper)
        self._tell()
        return self.conclusion

    def _keeping_ended(self, keeping: asyncio.Task[None]) -> None:
        """Whoever loses a run to another controller must not go on with it."""
        if not keeping.cancelled() and (error := keeping.exception()) is not None:
            log.error("run %d is halted: %s", self.number, error)
            self.halt(str(error))
            if isinstance(error, RunTaken):
                self.let_go()  # who took it asks its hosts, and they may speak to nobody else any more

    async def _outcome(self) -> Outcome:
        running, letting_go = asyncio.create_task(self.engine.run()), asyncio.create_task(self._let_go.wait())
        try:
            await asyncio.wait({running, letting_go}, return_when=asyncio.FIRST_COMPLETED)
            return running.result() if running.done() else self.engine.outcome()
        except Exception as error:
            log.exception("run %d fails", self.number)
            left = self.engine.outcome()
            reason = f"internal error: {type(error).__name__}: {error}"
            return Outcome(replace(left.record, stopped_by="error", stop_reason=reason), left.refused)
        finally:
            for task in (running, letting_go):
                task.cancel()
            await asyncio.gather(running, letting_go, return_exceptions=True)

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()


class RunManager:
    """Every run that this controller carries, by number."""

    def __init__(self, fleet: Fleet, store: Store, controller_id: str, lever: HaltLever) -> None:
        self.active: dict[int, ActiveRun] = {}
        self._fleet = fleet
        self._store = store
        self._lever = lever
        self._controller_id = controller_id
        self._beginning = asyncio.Lock()
        self._closed_why = ""

    async def begin(
        self,
        plan: Plan,
        operator: str,
        tell: Callable[[Event], None] = lambda _: None,
        only_hosts: frozenset[str] | None = None,
        run_key: str = "",
    ) -> ActiveRun:
        """Begin a run and return at once.

        `tell` hears every event; `only_hosts` are all that a target may mean which is resolved at injection.
        A `run_key` that was used before begins nothing: so an order that is delivered twice is carried out once.

        Raises:
            RunExists: there is a run with this key.
            CannotBegin: everything is halted, or this controller carries no more, or ends.
            StoreError: the run cannot be kept, so it is not begun.
        """
        async with self._beginning:
            if self._closed_why:
                raise CannotBegin(f"no run begins here any more: {self._closed_why}")
            if halted := await self._lever.why_not():
                raise CannotBegin(halted)
            if len(self.active) >= RUNS_MAX:
                raise CannotBegin(f"{RUNS_MAX} runs are going on already, and one controller carries no more")
            carrier = self._carrier(plan, run_key or str(uuid.uuid4()), only_hosts)
            number = await asyncio.to_thread(
                self._store.begin_run, plan.experiment.name, operator, plan.digest, time.time_ns(), carrier
            )

            def take(event: Event) -> None:
                run.take(event)
                tell(event)

            engine = Engine(plan, self._fleet, str(number), operator, take, only_hosts, carrier.run_key)
            keeper = RunKeeper(self._store, number, self._controller_id)
            run = self.active[number] = ActiveRun(number, plan, engine, keeper)
            run.task.add_done_callback(lambda _: self.active.pop(number))
            return run

    def _carrier(self, plan: Plan, run_key: str, only_hosts: frozenset[str] | None) -> Carrier:
        """What another controller needs to know to end this run, should this one die."""
        names = {host for fault in plan.faults for host in fault.hosts}
        if any(fault.chosen_at_injection for fault in plan.faults):
            connected = {host.name for host in self._fleet.connected}
            names |= connected if only_hosts is None else connected & only_hosts
        hosts = {name: self._fleet.hosts[name].agent_id for name in sorted(names) if name in self._fleet.hosts}
        return Carrier(self._controller_id, run_key, tuple(fault.name for fault in plan.faults), hosts)

    async def close(self, reason: str) -> None:
        """Halt every run and wait until each is undone and kept; none begins any more."""
        self._closed_why = reason
        async with self._beginning:
            runs = list(self.active.values())
        for run in runs:
            run.halt(reason)
        await asyncio.gather(*(run.over() for run in runs), return_exceptions=True)
