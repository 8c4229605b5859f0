"""The engine: carries out what the run's state machine says, and feeds it what comes back. The rim of a run."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from brownout_agent.agent.observers import unpack
from brownout_agent.frames import to_value
from brownout_agent.observe import Change, Probe, Sample, Watcher, build, probe_kinds, watcher_kinds
from brownout_agent.observing import observe
from brownout_protos.v1 import fault_pb2, fleet_pb2

from brownout_controller.analysis.expectations import judge_expectations
from brownout_controller.fleet.sessions import LEASE_MS, Arrival, Fleet, HostState
from brownout_controller.language.experiment import CONTROLLER
from brownout_controller.planning.plan import Plan, PlannedObserver, choose_hosts
from brownout_controller.record import Event, EventKind, RunRecord, Verdict
from brownout_controller.running import machine
from brownout_controller.running.collector import Collector, RunFacts
from brownout_controller.running.guards import Guards
from brownout_controller.running.hosts import describe, view_of
from brownout_controller.running.machine import OVER, Instance, Phase, RunMachine, State
from brownout_controller.running.timeline import Timeline

log = logging.getLogger(__name__)

TICK_S = 0.05
GUARD_EVERY_NS = 250_000_000
FIRST_WORD_WITHIN_NS = 5 * 10**9
"""After the time before the first fault: samples of a host come in batches, a second and more after they were taken."""
LAST_SAMPLES_TIMEOUT_S = 5.0
_FAILING_NOW = 3
"""So many failures in a row, at the end of the time before the first fault, are no steady state."""

_STATES = {
    fault_pb2.RECORDED: State.ORDERED,
    fault_pb2.ACTIVE: State.ACTIVE,
    fault_pb2.UNDOING: State.UNDOING,
    fault_pb2.CLEAN: State.CLEAN,
    fault_pb2.RESIDUE: State.RESIDUE,
}
_SAID = {
    State.ACTIVE: EventKind.FAULT_ACTIVE,
    State.CLEAN: EventKind.FAULT_ENDED,
    State.RESIDUE: EventKind.FAULT_ENDED,
    State.REFUSED: EventKind.FAULT_REFUSED,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `refused` says why nothing was injected; then there is nothing to judge."""

    record: RunRecord
    refused: tuple[str, ...]


class Engine:
    """One run, from plan to record."""

    def __init__(
        self,
        plan: Plan,
        fleet: Fleet,
        epoch: int,
        run_id: str,
        operator: str,
        tell: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._plan = plan
        self._fleet = fleet
        self._epoch = epoch
        self._tell = tell
        self.timeline = Timeline.start()
        self.collector = Collector(RunFacts(run_id, operator, plan, self.timeline))
        self.machine = RunMachine(plan, str(uuid.uuid4()), self.timeline.now())
        self._guards = Guards(plan.experiment.guards, self.timeline.now())
        self._guarded_ns = 0
        self._silent_since_ns: dict[str, int] = {}
        self._without_injector: set[str] = set()
        self._observing: dict[str, PlannedObserver] = {}
        self._blind: dict[str, str] = {}
        """Why a probe or watcher cannot observe, by its id."""
        self._judge_by_ns: int | None = None
        self._ending = False
        self._local: list[asyncio.Task[None]] = []
        self._ended_observers = asyncio.Event()

    def halt(self, reason: str) -> None:
        """End the run now, by a person's wish."""
        self._say(EventKind.HALT_ORDERED, "run", message=reason)
        self._feed(machine.StopAsked(self.timeline.now(), "person", reason))

    async def run(self) -> Outcome:
        """Carry the run through to its end; whatever goes wrong on the way, faults are stopped before it returns."""
        forget = self._fleet.listen(self._arrived)
        self._say(EventKind.RUN_STARTED, "run", message=self._plan.experiment.hypothesis)
        try:
            self._start_observers()
            while self.machine.phase is not Phase.ENDED:
                await asyncio.sleep(TICK_S)
                self._step()
            self._say(EventKind.RUN_ENDED, "run")
            await self._end_observers()
        finally:
            for instance in self.machine.instances.values():
                if instance.state not in OVER:
                    self._stop(instance, self.machine.stop_reason or "the controller lets go of the run")
            for task in self._local:
                task.cancel()
            forget()
        return self.outcome()

    def outcome(self) -> Outcome:
        """How the run stands now: what is not known to be undone counts as unknown."""
        return Outcome(self._record(), self.machine.refused)

    # ---- carrying out --------------------------------------------------------------------------------------------

    def _step(self) -> None:
        try:
            self._check_guards()
            self._feed(machine.Tick(self.timeline.now()))
            self._judge_steady()
        except Exception as error:
            # A run that cannot be guarded or steered must not go on; it is still seen through to its undo.
            log.exception("an error of the controller stops the run")
            reason = f"internal error: {type(error).__name__}: {error}"
            self._feed(machine.StopAsked(self.timeline.now(), "error", reason))

    def _feed(self, event: machine.Event) -> None:
        for instruction in self.machine.handle(event):
            match instruction:
                case machine.JudgeSteady():
                    self._judge_by_ns = self.timeline.now() + FIRST_WORD_WITHIN_NS
                case machine.ChooseHosts(fault):
                    self._choose(fault.name)
                case machine.Inject(instance):
                    self._inject(instance)
                case machine.LeaveOut(instance, reason):
                    self.collector.ordered(instance)
                    self._note_refusal(instance, reason)
                case machine.Stop(instance, reason):
                    self._stop(instance, reason)
                case machine.Say(kind, subject, host, message):
                    self._say(kind, subject, host=host, message=message)
                case machine.End():
                    pass

    def _choose(self, name: str) -> None:
        experiment = self._plan.experiment
        spec = next(fault for fault in experiment.faults if fault.name == name)
        hosts = tuple(view_of(host) for host in self._fleet.connected)
        chosen = choose_hosts(experiment.target_of(spec), name, hosts, self._plan.seed)
        self._feed(machine.HostsChosen(self.timeline.now(), name, chosen))

    def _inject(self, instance: Instance) -> None:
        self.collector.ordered(instance)
        fault = instance.fault
        order = fault_pb2.Inject(
            fault_id=instance.fault_id,
            epoch=self._epoch,
            environment=self._plan.experiment.environment,
            kind=fault.kind,
            parameters={name: to_value(value) for name, value in fault.parameters.items()},
            duration_ms=int(fault.for_ms),
            lease_ms=LEASE_MS,
            run_id=self._plan.digest[:12],
        )
        if not self._send(instance.host, fleet_pb2.ControllerMessage(inject=order)):
            self._refused(instance.fault_id, f"the agent of {instance.host} is not connected; nothing was sent")

    def _stop(self, instance: Instance, reason: str) -> None:
        order = fault_pb2.Stop(fault_id=instance.fault_id, epoch=self._epoch, reason=reason)
        self._send(instance.host, fleet_pb2.ControllerMessage(stop=order))  # sent again when the host comes back

    def _send(self, host: str, message: fleet_pb2.ControllerMessage) -> bool:
        state = self._fleet.hosts.get(host)
        if state is None or state.session is None:
            return False
        state.session.send(message)
        return True

    def _judge_steady(self) -> None:
        """Judge as soon as every probe and watcher has said a first word, or has had its time to."""
        now_ns = self.timeline.now()
        if self._judge_by_ns is None or self.machine.phase is not Phase.STEADYING:
            return
        mute = {one.observer_id for one in self._plan.observers} - self.collector.heard - self._blind.keys()
        if not mute or now_ns >= self._judge_by_ns:
            self._judge_by_ns = None
            self._feed(machine.SteadyJudged(now_ns, self._unsteady(mute)))

    def _unsteady(self, mute: Set[str]) -> tuple[str, ...]:
        """Why the first fault must not start: who cannot observe, what is missed already, or a probe that fails now."""
        record = self._record()
        why = {**self._blind, **dict.fromkeys(mute, "nothing was heard of it")}
        blind = [
            f"{observer.name} from {observer.vantage} cannot observe: {why[observer.observer_id]}"
            for observer in self._plan.observers
            if observer.observer_id in why
        ]
        reasons = [
            f"{result.name}: {result.text}: {result.evidence}"
            for result in judge_expectations(record, ())
            if result.verdict is Verdict.DEVIATED
        ]
        expected = {name for name, _ in record.expectations}
        for series in record.series:
            latest = series.ok[-_FAILING_NOW:]
            if series.probe in expected and latest and not any(latest):
                reasons.append(f"{series.probe} from {series.vantage.name} fails now: {series.outcome[-1]}")
        return tuple(dict.fromkeys(blind + reasons))

    def _check_guards(self) -> None:
        now_ns = self.timeline.now()
        if self.machine.phase not in {Phase.INJECTING, Phase.SETTLING} or now_ns - self._guarded_ns < GUARD_EVERY_NS:
            return
        self._guarded_ns = now_ns
        record = self._record() if self._guards.reads_record else None
        busy = {instance.host for instance in self.machine.instances.values() if instance.state not in OVER}
        silent = {host: since for host, since in self._silent_since_ns.items() if host in busy}
        if reason := self._guards.hit(now_ns, record, silent):
            self._say(EventKind.GUARD_HIT, "run", message=reason)
            self._feed(machine.StopAsked(now_ns, "guard", reason))

    # ---- probes and watchers ---------------------------------------------------------------------------------------

    def _start_observers(self) -> None:
        for observer in self._plan.observers:
            self._observing[observer.observer_id] = observer
            if observer.vantage == CONTROLLER:
                self._local.append(asyncio.create_task(self._observe_here(observer)))
            else:
                self._send(observer.vantage, self._observe_order(observer))

    async def _observe_here(self, observer: PlannedObserver) -> None:
        try:
            if observer.is_watcher:
                watcher: Watcher = build(watcher_kinds(), observer.kind, observer.settings)
                async for change in watcher.changes(observer.every_ms / 1_000):
                    if event := self.collector.change(observer, change, None):
                        self._tell(event)
            else:
                probe: Probe = build(probe_kinds(), observer.kind, observer.settings)

                async def deliver(samples: list[Sample], missed: int) -> None:
                    self.collector.samples(observer.observer_id, samples, missed, None)

                await observe(probe, observer.every_ms, deliver, batch_s=0.25)
        except (OSError, ValueError) as error:
            self._cannot_observe(observer, str(error))
        except Exception as error:
            log.exception("%s %s failed", observer.kind, observer.name)
            self._cannot_observe(observer, f"internal error: {type(error).__name__}: {error}")

    def _cannot_observe(self, observer: PlannedObserver, why: str) -> None:
        if self._blind.setdefault(observer.observer_id, why) == why:
            self._say(EventKind.WATCH_FAILED, observer.name, host=observer.vantage, message=why)

    async def _end_observers(self) -> None:
        """End every probe and wait for its last samples, for a while."""
        self._ending = True
        for observer in list(self._observing.values()):
            end = fleet_pb2.EndObserve(observer_id=self._wire_id(observer))
            if observer.vantage == CONTROLLER:
                del self._observing[observer.observer_id]
            elif not self._send(observer.vantage, fleet_pb2.ControllerMessage(end_observe=end)):
                del self._observing[observer.observer_id]
                self._cannot_observe(observer, "its host was not connected at the end: its last samples are missing")
        for task in self._local:
            task.cancel()
        await asyncio.gather(*self._local, return_exceptions=True)
        try:
            async with asyncio.timeout(LAST_SAMPLES_TIMEOUT_S):
                while self._observing:
                    self._ended_observers.clear()
                    await self._ended_observers.wait()
        except TimeoutError:
            for observer in self._observing.values():
                self._cannot_observe(observer, "its last samples did not arrive in time")

    # ---- what hosts say ----------------------------------------------------------------------------------------------

    def _arrived(self, arrival: Arrival) -> None:
        host, now_ns = arrival.host, self.timeline.now()
        if arrival.lost:
            self._silent_since_ns.setdefault(host.name, now_ns)
            self._say(EventKind.HOST_LOST, host.name, host=host.name, message="the agent's stream ended")
            self._feed(machine.HostSilent(now_ns, host.name))
        elif arrival.up:
            self._welcome_back(host)
        elif arrival.message is not None:
            self._heard(host, arrival.message)

    def _welcome_back(self, host: HostState) -> None:
        if self._silent_since_ns.pop(host.name, None) is not None:
            self._say(EventKind.HOST_BACK, host.name, host=host.name)
        for observer in self._observing.values():
            if observer.vantage == host.name:
                self._send(host.name, self._observe_order(observer))
        self._injector_is(host.name, host.hello.injector_attached, host.hello.policy)

    def _injector_is(self, host: str, attached: bool, detail: str) -> None:
        """An injector that is away says nothing of its faults; one that comes back is told every stop again."""
        now_ns = self.timeline.now()
        if attached:
            if host in self._without_injector:
                self._without_injector.remove(host)
                self._say(EventKind.HOST_BACK, host, host=host, message="its injector answers again")
            self._feed(machine.HostBack(now_ns, host))
        elif any(instance.host == host for instance in self.machine.instances.values()):
            if host not in self._without_injector:
                self._without_injector.add(host)
                self._say(EventKind.HOST_LOST, host, host=host, message=f"its injector is away: {detail}")
            self._feed(machine.HostSilent(now_ns, host))

    def _heard(self, host: HostState, message: fleet_pb2.AgentMessage) -> None:
        match message.WhichOneof("body"):
            case "reply":
                self._replied(message.reply)
            case "report":
                self._reported(host, message.report)
            case "lease":
                self._injector_is(host.name, message.lease.injector_attached, message.lease.detail)
            case "samples" if observer := self._known(message.samples.observer_id):
                self._sampled(observer, message.samples, host)
            case "watch" if observer := self._known(message.watch.observer_id):
                change = _to_change(message.watch)
                if event := self.collector.change(observer, change, host.clock.best_for(change.at_ns)):
                    self._tell(event)
            case "observer_error" if observer := self._known(message.observer_error.observer_id):
                self._cannot_observe(observer, message.observer_error.message)
            case "observer_ended" if observer := self._known(message.observer_ended.observer_id):
                del self._observing[observer.observer_id]
                self._ended_observers.set()
                if not self._ending and observer.observer_id not in self._blind:
                    self._cannot_observe(observer, "it ended by itself")

    def _replied(self, reply: fault_pb2.OrderReply) -> None:
        instance = self.machine.instances.get(reply.fault_id)
        if instance is None:
            return
        if reply.outcome == fault_pb2.OrderReply.REFUSED:
            next_step = f" ({reply.remedy})" if reply.remedy else ""
            self._refused(reply.fault_id, f"{reply.reason}{next_step}")
        elif reply.outcome == fault_pb2.OrderReply.INDEFINITE:
            self._feed(machine.AnswerLost(self.timeline.now(), reply.fault_id, reply.reason))

    def _refused(self, fault_id: str, reason: str) -> None:
        instance = self.machine.instances[fault_id]
        if instance.state is not State.ORDERED:
            return  # a repeated order may be refused while the first one runs
        self._note_refusal(instance, reason)
        self._feed(machine.FaultSaid(self.timeline.now(), fault_id, State.REFUSED, reason))

    def _note_refusal(self, instance: Instance, reason: str) -> None:
        self.collector.refused(instance.fault_id, reason)
        self._say(EventKind.FAULT_REFUSED, instance.fault.name, host=instance.host, message=reason)

    def _reported(self, host: HostState, report: fault_pb2.FaultReport) -> None:
        instance = self.machine.instances.get(report.fault_id)
        if instance is None or instance.host != host.name or report.state not in _STATES:
            return
        clock = host.clock.best_for(report.at_boottime_ns)
        at_ns = self.collector.report(report, clock)
        before = instance.state
        self._feed(machine.FaultSaid(self.timeline.now(), report.fault_id, _STATES[report.state], report.message))
        if instance.state is not before and (kind := _SAID.get(instance.state)) is not None:
            message = "; ".join(report.residue) or report.message
            name = instance.fault.name
            self._say(kind, name, at_ns=at_ns, host=host.name, message=message, error_ns=clock.error_ns)

    def _sampled(self, observer: PlannedObserver, message: fleet_pb2.ProbeSamples, host: HostState) -> None:
        try:
            samples = unpack(message)
        except ValueError as error:
            self._cannot_observe(observer, f"samples that cannot be read: {error}")
            return
        clock = host.clock.best_for(min(sample.sent_ns for sample in samples)) if samples else None
        self.collector.samples(observer.observer_id, samples, message.missed, clock)

    def _wire_id(self, observer: PlannedObserver) -> str:
        """Ids on the wire carry the run's key: an agent may still run what a dead controller asked for."""
        return f"{self.machine.run_key}/{observer.observer_id}"

    def _known(self, wire_id: str) -> PlannedObserver | None:
        key, _, observer_id = wire_id.partition("/")
        return self._observing.get(observer_id) if key == self.machine.run_key else None

    def _observe_order(self, observer: PlannedObserver) -> fleet_pb2.ControllerMessage:
        order = fleet_pb2.Observe(
            observer_id=self._wire_id(observer),
            kind=observer.kind,
            parameters={name: to_value(value) for name, value in observer.settings.items()},
            every_ms=int(observer.every_ms),
        )
        return fleet_pb2.ControllerMessage(observe=order)

    def _say(self, kind: EventKind, subject: str, **more: Any) -> None:
        self._tell(self.collector.event(kind, subject, **more))

    def _record(self) -> RunRecord:
        named = {host.name for host in self._plan.hosts} | {i.host for i in self.machine.instances.values()}
        hosts = tuple(describe(self._fleet.hosts[name]) for name in sorted(named) if name in self._fleet.hosts)
        return self.collector.record(hosts, self.machine.stopped_by, self.machine.stop_reason)


def _to_change(event: fleet_pb2.WatchEvent) -> Change:
    return Change(
        event.at_boottime_ns, event.not_before_boottime_ns, event.subject, event.before, event.after, event.detail
    )
