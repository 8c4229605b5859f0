"""Every probe and watcher of a run: those that run here, and those that agents run for us."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from brownout_agent.agent.observers import unpack
from brownout_agent.frames import to_value
from brownout_agent.observe import Change, Probe, Sample, Watcher, build, probe_kinds, watcher_kinds
from brownout_agent.observing import observe
from brownout_protos.v1 import fleet_pb2

from brownout_controller.fleet.clocks import ClockEstimate
from brownout_controller.language.experiment import CONTROLLER
from brownout_controller.planning.plan import PlannedObserver
from brownout_controller.record import Event, EventKind
from brownout_controller.running.collector import CHANGES_MAX, Collector

LAST_SAMPLES_TIMEOUT_S = 5.0
_LOCAL_BATCH_S = 0.25

log = logging.getLogger(__name__)

Send = Callable[[str, fleet_pb2.ControllerMessage], bool]
"""Sends a message to a host; False when it is not connected."""


class Observation:
    """Starts and ends all of them, and puts what they see into the collector."""

    def __init__(
        self,
        observers: Iterable[PlannedObserver],
        run_key: str,
        collector: Collector,
        tell: Callable[[Event], None],
        send: Send,
    ) -> None:
        self._running = {observer.observer_id: observer for observer in observers}
        self._planned = tuple(self._running.values())
        self._run_key = run_key
        self._collector = collector
        self._tell = tell
        self._send = send
        self._blind: dict[str, str] = {}
        self._local: list[asyncio.Task[None]] = []
        self._one_ended = asyncio.Event()
        self._ending = False

    @property
    def mute(self) -> set[str]:
        """The ids of those that have not said a word yet, and may still."""
        return {observer.observer_id for observer in self._planned} - self._collector.heard - self._blind.keys()

    def trouble(self) -> tuple[str, ...]:
        """Who cannot observe and why, one line each; to be mute by now is trouble, too."""
        why = {**dict.fromkeys(self.mute, "nothing was heard of it"), **self._blind}
        return tuple(
            f"{one.name} from {one.vantage} cannot observe: {why[one.observer_id]}"
            for one in self._planned
            if one.observer_id in why
        )

    def start(self) -> None:
        """Start every one. A host that is away is asked when it comes."""
        for observer in self._planned:
            if observer.vantage == CONTROLLER:
                self._local.append(asyncio.create_task(self._observe_here(observer)))
            else:
                self._send(observer.vantage, self._order(observer))

    def resume(self, host: str) -> None:
        """A host is here, maybe again, maybe with another agent process; one that goes on already is left alone."""
        for observer in self._running.values():
            if observer.vantage == host:
                self._send(host, self._order(observer))

    async def end(self) -> None:
        """End every one and wait for its last words, for a while."""
        self._ending = True
        for observer in list(self._running.values()):
            end = fleet_pb2.EndObserve(observer_id=self._wire_id(observer))
            if observer.vantage == CONTROLLER:
                del self._running[observer.observer_id]
            elif not self._send(observer.vantage, fleet_pb2.ControllerMessage(end_observe=end)):
                del self._running[observer.observer_id]
                self._fail(observer, "its host was not connected at the end: its last samples are missing")
        self.drop()
        await asyncio.gather(*self._local, return_exceptions=True)
        try:
            async with asyncio.timeout(LAST_SAMPLES_TIMEOUT_S):
                while self._running:
                    self._one_ended.clear()
                    await self._one_ended.wait()
        except TimeoutError:
            for observer in self._running.values():
                self._fail(observer, "its last samples did not arrive in time")

    def drop(self) -> None:
        """End those that run here, without waiting."""
        for task in self._local:
            task.cancel()

    def heard(self, message: fleet_pb2.AgentMessage, clock: ClockEstimate) -> None:
        """What an agent says of one of them. What an earlier run has asked for is not ours."""
        match message.WhichOneof("body"):
            case "samples" if observer := self._known(message.samples.observer_id):
                self._take_samples(observer, message.samples, clock)
            case "watch" if observer := self._known(message.watch.observer_id):
                self._take_change(observer, _to_change(message.watch), clock)
            case "observer_error" if observer := self._known(message.observer_error.observer_id):
                self._fail(observer, message.observer_error.message)
            case "observer_ended" if observer := self._known(message.observer_ended.observer_id):
                del self._running[observer.observer_id]
                self._one_ended.set()
                if not self._ending:
                    self._fail(observer, "it ended by itself")

    async def _observe_here(self, observer: PlannedObserver) -> None:
        try:
            if observer.is_watcher:
                watcher: Watcher = build(watcher_kinds(), observer.kind, observer.settings)
                async for change in watcher.changes(observer.every_ms / 1_000):
                    if event := self._collector.change(observer, change, None):
                        self._tell(event)
            else:
                probe: Probe = build(probe_kinds(), observer.kind, observer.settings)

                async def deliver(samples: list[Sample], missed: int) -> None:
                    self._collector.samples(observer.observer_id, samples, missed, None)

                await observe(probe, observer.every_ms, deliver, batch_s=_LOCAL_BATCH_S)
        except (OSError, ValueError) as error:
            self._fail(observer, str(error))
        except Exception as error:
            log.exception("%s %s failed", observer.kind, observer.name)
            self._fail(observer, f"internal error: {type(error).__name__}: {error}")

    def _take_samples(self, observer: PlannedObserver, message: fleet_pb2.ProbeSamples, clock: ClockEstimate) -> None:
        try:
            samples = unpack(message)
        except ValueError as error:
            self._fail(observer, f"samples that cannot be read: {error}")
            return
        if not self._collector.has_room(observer, len(samples)):
            self._fail(observer, "its host tells of more questions than it was to ask; the rest is not taken")
            return
        exchange = clock.best_for(min(sample.sent_ns for sample in samples)) if samples else None
        self._collector.samples(observer.observer_id, samples, message.missed, exchange)

    def _take_change(self, observer: PlannedObserver, change: Change, clock: ClockEstimate) -> None:
        if not self._collector.has_room(observer):
            self._fail(observer, f"more than {CHANGES_MAX} changes were told in this run; the rest is not taken")
        elif event := self._collector.change(observer, change, clock.best_for(change.at_ns)):
            self._tell(event)

    def _fail(self, observer: PlannedObserver, why: str) -> None:
        """Say once that it cannot observe; the first reason tells most."""
        if observer.observer_id not in self._blind:
            self._blind[observer.observer_id] = why
            event = self._collector.event(EventKind.WATCH_FAILED, observer.name, host=observer.vantage, message=why)
            self._tell(event)

    def _wire_id(self, observer: PlannedObserver) -> str:
        """Ids on the wire carry the run's key: an agent may still run what a dead controller asked for."""
        return f"{self._run_key}/{observer.observer_id}"

    def _known(self, wire_id: str) -> PlannedObserver | None:
        key, _, observer_id = wire_id.partition("/")
        return self._running.get(observer_id) if key == self._run_key else None

    def _order(self, observer: PlannedObserver) -> fleet_pb2.ControllerMessage:
        order = fleet_pb2.Observe(
            observer_id=self._wire_id(observer),
            kind=observer.kind,
            parameters={name: to_value(value) for name, value in observer.settings.items()},
            every_ms=int(observer.every_ms),
        )
        return fleet_pb2.ControllerMessage(observe=order)


def _to_change(event: fleet_pb2.WatchEvent) -> Change:
    return Change(
        event.at_boottime_ns, event.not_before_boottime_ns, event.subject, event.before, event.after, event.detail
    )
