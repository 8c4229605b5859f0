"""A supervisor at work, with a real journal and real holders, for faults that are wrong or come at the wrong moment."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from brownout_agent.faults import catalogue
from brownout_agent.faults.contract import Effect, Facts, Fault, Host, Meter, Record
from brownout_agent.faults.cpu_load import CpuLoad
from brownout_agent.host_log import HostLog
from brownout_agent.injector import admission
from brownout_agent.injector.admission import Admission
from brownout_agent.injector.journal import Journal, Mark
from brownout_agent.injector.ledger import Ledger
from brownout_agent.injector.live import FaultStatus
from brownout_agent.injector.order import Order
from brownout_agent.injector.own_copy import OwnCopy
from brownout_agent.injector.policy import EMBEDDED
from brownout_agent.injector.supervisor import Supervisor

WITHIN_S = 20.0


@dataclass
class Bad:
    """What is wrong with `cpu.load` on the injector's side; its holder is the real one."""

    prepare: Callable[[], None] = lambda: None
    measure: Callable[[], None] = lambda: None
    sample: Callable[[], None] = lambda: None
    undo: Callable[[], None] = lambda: None
    undos: int = 0


class _Meter(Meter):
    def __init__(self, bad: Bad) -> None:
        self._bad = bad
        self._samples = 0

    def sample(self) -> None:
        self._bad.sample()
        self._samples += 1

    def effect(self) -> Effect:
        return Effect(1.0, 1.0, "%", True, "as asked", samples=self._samples)


def _bad_fault(bad: Bad) -> Fault[Any]:
    class _BadLoad(CpuLoad):
        def prepare(self, parameters: Any, host: Host) -> Facts:
            bad.prepare()
            return super().prepare(parameters, host)

        def measure(self, record: Record[Any], host: Host) -> Meter:
            bad.measure()
            return _Meter(bad)

        def undo(self, record: Record[Any]) -> None:
            super().undo(record)
            bad.undos += 1
            bad.undo()

    return _BadLoad()


@dataclass
class House:
    """A supervisor at work, and all that it told."""

    supervisor: Supervisor
    journal: Journal
    told: list[FaultStatus] = field(default_factory=list)
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    def states(self, fault_id: str) -> list[Mark]:
        return [status.state for status in self.told if status.fault_id == fault_id]

    async def until(self, fault_id: str, state: Mark) -> FaultStatus:
        await until(lambda: state in self.states(fault_id))
        return next(status for status in self.told if (status.fault_id, status.state) == (fault_id, state))


async def until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    journal = Journal(folder)
    told: list[FaultStatus] = []
    admission = Admission(EMBEDDED, Ledger(folder), OwnCopy(HostLog(folder)))
    it = House(Supervisor(journal, admission, told.append), journal, told)
    it.tasks += [asyncio.create_task(it.supervisor.run()), asyncio.create_task(it.supervisor.retry_leftovers())]
    try:
        yield it
    finally:
        async with asyncio.timeout(WITHIN_S):
            await it.supervisor.shut_down()
        for task in it.tasks:
            assert not task.done(), task
            task.cancel()
        await asyncio.gather(*it.tasks, return_exceptions=True)
        journal.close()


def order(**more: Any) -> Order:
    values = {"kind": "cpu.load", "parameters": {"percent": 1, "of": "own", "cores": "0"}, "environment": "staging"}
    return Order(**{"fault_id": str(uuid.uuid4()), "run_id": "", "duration_s": 30.0, "lease_s": 20.0, **values, **more})


def wrong_load(monkeypatch: pytest.MonkeyPatch) -> Bad:
    """`cpu.load` as the supervisor finds it from now on; nothing is wrong with it yet."""
    wrong = Bad()
    faults = {**catalogue(), "cpu.load": _bad_fault(wrong)}
    monkeypatch.setattr(admission, "catalogue", lambda: faults)
    return wrong


def story(folder: Path, told: Callable[[House], Awaitable[None]]) -> None:
    async def in_a_house() -> None:
        async with house(folder) as it:
            await told(it)

    asyncio.run(in_a_house())


def raises(error: Exception) -> Callable[[], None]:
    def raising() -> None:
        raise error

    return raising
