"""Probes and watchers that run on this host for a controller. They go on while the controller is out of reach."""

import asyncio
import logging
from collections.abc import Callable

from brownout_protos.v1 import fleet_pb2

from brownout_agent.frames import from_values
from brownout_agent.kernel.clock import boottime_ns
from brownout_agent.observe import Change, Probe, Sample, Watcher, build, probe_kinds, watcher_kinds
from brownout_agent.observing import FASTEST_MS, observe

OBSERVERS_MAX = 256
"""At once, for whatever controller: a host is no generator of traffic. An experiment has about 20."""

log = logging.getLogger(__name__)

Send = Callable[[fleet_pb2.AgentMessage], None]


class Observers:
    """Every probe and watcher that a controller asked for, by the controller's id for it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, order: fleet_pb2.Observe) -> None:
        """Start one; an id that runs already is left alone, since a reconnecting controller asks again."""
        if order.observer_id in self._running:
            return
        if len(self._running) >= OBSERVERS_MAX:
            self._fail(order.observer_id, f"{OBSERVERS_MAX} probes and watchers run here already, the most at once")
            self._send(fleet_pb2.AgentMessage(observer_ended=fleet_pb2.ObserverEnded(observer_id=order.observer_id)))
            return
        task = asyncio.create_task(self._run(order))
        self._running[order.observer_id] = task
        task.add_done_callback(lambda _: self._running.pop(order.observer_id, None))

    def end(self, observer_id: str) -> None:
        """End one, if it runs; what it still holds is sent."""
        if (task := self._running.get(observer_id)) is not None:
            task.cancel()

    def end_all(self) -> None:
        """End every one."""
        for observer_id in list(self._running):
            self.end(observer_id)

    async def _run(self, order: fleet_pb2.Observe) -> None:
        settings = from_values(order.parameters)
        try:
            if order.kind in watcher_kinds():
                await self._watch(order, build(watcher_kinds(), order.kind, settings))
            else:
                await self._probe(order, build(probe_kinds(), order.kind, settings))
        except (OSError, ValueError) as error:
            self._fail(order.observer_id, str(error))
        finally:
            ended = fleet_pb2.ObserverEnded(observer_id=order.observer_id)
            self._send(fleet_pb2.AgentMessage(observer_ended=ended))

    async def _probe(self, order: fleet_pb2.Observe, probe: Probe) -> None:
        async def deliver(samples: list[Sample], missed: int) -> None:
            self._send(fleet_pb2.AgentMessage(samples=pack(order.observer_id, samples, missed)))

        await observe(probe, order.every_ms, deliver)

    async def _watch(self, order: fleet_pb2.Observe, watcher: Watcher) -> None:
        if order.every_ms < FASTEST_MS:
            raise ValueError(f"a watcher looks every {FASTEST_MS}ms at the fastest, not every {order.every_ms}ms")
        async for change in watcher.changes(order.every_ms / 1_000):
            self._send(fleet_pb2.AgentMessage(watch=_to_event(order.observer_id, change)))

    def _fail(self, observer_id: str, why: str) -> None:
        trouble = fleet_pb2.ObserverError(observer_id=observer_id, at_boottime_ns=boottime_ns(), message=why)
        self._send(fleet_pb2.AgentMessage(observer_error=trouble))


def pack(observer_id: str, samples: list[Sample], missed: int) -> fleet_pb2.ProbeSamples:
    """Samples as packed columns; outcomes and identities are sent once each and then named by index."""
    outcomes: dict[str, int] = {}
    identities: dict[str, int] = {"": 0}
    return fleet_pb2.ProbeSamples(
        observer_id=observer_id,
        sent_boottime_ns=[sample.sent_ns for sample in samples],
        took_us=[sample.took_us for sample in samples],
        ok=[sample.ok for sample in samples],
        outcome=[outcomes.setdefault(sample.outcome, len(outcomes)) for sample in samples],
        identity=[identities.setdefault(sample.identity, len(identities)) for sample in samples],
        outcomes=list(outcomes),
        identities=list(identities),
        missed=missed,
    )


def unpack(message: fleet_pb2.ProbeSamples) -> list[Sample]:
    """The samples of a message.

    Raises:
        ValueError: columns of unequal length, or an index beyond its table.
    """
    columns = (message.sent_boottime_ns, message.took_us, message.ok, message.outcome, message.identity)
    if len({len(column) for column in columns}) != 1:
        raise ValueError("columns of unequal length")
    try:
        return [
            Sample(sent, took, ok, message.outcomes[outcome], message.identities[identity])
            for sent, took, ok, outcome, identity in zip(*columns, strict=True)
        ]
    except IndexError as error:
        raise ValueError("an index beyond its table") from error


def _to_event(observer_id: str, change: Change) -> fleet_pb2.WatchEvent:
    return fleet_pb2.WatchEvent(
        observer_id=observer_id,
        at_boottime_ns=change.at_ns,
        not_before_boottime_ns=change.not_before_ns,
        subject=change.subject,
        before=change.before,
        after=change.after,
        detail=change.detail,
    )
