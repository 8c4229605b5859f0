"""What an agent lets a controller have it ask: a hostile one must not make a generator of traffic of a host."""

import asyncio
from collections.abc import Awaitable, Callable

from brownout_agent.agent.observers import OBSERVERS_MAX, Observers
from brownout_agent.frames import to_value
from brownout_protos.v1 import fleet_pb2


def story(told: Callable[[Observers, list[fleet_pb2.AgentMessage]], Awaitable[None]]) -> None:
    async def whole() -> None:
        said: list[fleet_pb2.AgentMessage] = []
        observers = Observers(said.append)
        try:
            await told(observers, said)
        finally:
            observers.end_all()
            async with asyncio.timeout(5):
                while observers._running:
                    await asyncio.sleep(0.01)

    asyncio.run(whole())


def order(observer_id: str, kind: str, every_ms: int, **settings: str) -> fleet_pb2.Observe:
    parameters = {name: to_value(value) for name, value in settings.items()}
    return fleet_pb2.Observe(observer_id=observer_id, kind=kind, every_ms=every_ms, parameters=parameters)


def errors(said: list[fleet_pb2.AgentMessage]) -> dict[str, str]:
    found = [message.observer_error for message in said if message.HasField("observer_error")]
    return {error.observer_id: error.message for error in found}


def test_more_observers_at_once_than_any_experiment_has_are_refused() -> None:
    async def told(observers: Observers, said: list[fleet_pb2.AgentMessage]) -> None:
        for number in range(OBSERVERS_MAX + 1):
            observers.start(order(f"o-{number}", "tcp", 60_000, address="127.0.0.1:1"))
        assert errors(said) == {f"o-{OBSERVERS_MAX}": "256 probes and watchers run here already, the most at once"}
        assert said[-1].observer_ended.observer_id == f"o-{OBSERVERS_MAX}"
        observers.start(order("o-0", "tcp", 60_000, address="127.0.0.1:1"))
        assert len(errors(said)) == 1, "one that runs is asked for again by a controller that comes back"

    story(told)


def test_neither_a_probe_nor_a_watcher_asks_faster_than_every_50_ms() -> None:
    async def told(observers: Observers, said: list[fleet_pb2.AgentMessage]) -> None:
        observers.start(order("probe", "tcp", 49, address="127.0.0.1:1"))
        observers.start(order("watch", "haproxy", 49, socket="/nowhere", backend="shop"))
        async with asyncio.timeout(5):
            while len(errors(said)) < 2:
                await asyncio.sleep(0.01)
        assert all("every 50ms at the fastest, not every 49ms" in why for why in errors(said).values())

    story(told)
