"""The engine: carries out what the run's state machine says, and feeds it what comes back. The rim of a run."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from brownout_agent.faults.contract import Host
from brownout_agent.frames import to_value
from brownout_protos.v1 import fault_pb2, fleet_pb2

from brownout_controller.fleet.sessions import LEASE_MS, Arrival, Fleet, HostState
from brownout_controller.planning.fleet_view import HostView
from brownout_controller.planning.partitions import Cut
from brownout_controller.planning.peers import NoPeers, addressed, unaddressed
from brownout_controller.planning.plan import Plan, choose, within
from brownout_controller.record import Event, EventKind, HostResidue, ResidueState, RunRecord
from brownout_controller.running import messages
from brownout_controller.running.collector import Collector, RunFacts
from brownout_controller.running.fingerprints import Fingerprints
from brownout_controller.running.guards import Guards
from brownout_controller.running.hosts import describe, view_of
from brownout_controller.running.machine import RunMachine
from brownout_controller.running.messages import OVER, Instance, Phase, State
from brownout_controller.running.observation import Observation
from brownout_controller.running.steadiness import unsteady
from brownout_controller.running.timeline import Timeline

log = logging.getLogger(__name__)

TICK_S = 0.05
GUARD_EVERY_NS = 250_000_000
FIRST_WORD_WITHIN_NS = 5 * 10**9
"""After the time before the first fault: samples of a host come in batches, a second and more after they were taken."""

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
        run_id: str,
        operator: str,
        tell: Callable[[Event], None] = lambda _: None,
        only_hosts: frozenset[str] | None = None,
        run_key: str = "",
    ) -> None:
        """Take a plan; `only_hosts` are all that a target resolved at injection may mean (None: every host)."""
        self._plan = plan
        self._only_hosts = only_hosts
        self._fleet = fleet
        self._tell = tell
        self.timeline = Timeline.start()
        self.collector = Collector(RunFacts(run_id, operator, plan, self.timeline))
        self.machine = RunMachine(plan, run_key or str(uuid.uuid4()), self.timeline.now())
        self._guards = Guards(plan.experiment.guards, self.timeline.now())
        self._guarded_ns = 0
        self._silent_since_ns: dict[str, int] = {}
        self._without_injector: set[str] = set()
        self._judge_by_ns: int | None = None
        self._peers: dict[str, Cut | None] = {}
        self._fingerprints = Fingerprints(_folders(plan), self._send)
        self._observation = Observation(plan.observers, self.machine.run_key, self.collector, tell, self._send)

    def halt(self, reason: str) -> None:
        """End the run now, by a person's wish."""
        self._say(EventKind.HALT_ORDERED, "run", message=reason)
        self._feed(messages.StopAsked(self.timeline.now(), "person", reason))

    async def run(self) -> Outcome:
        """Carry the run through to its end; whatever goes wrong on the way, faults are stopped before it returns."""
        forget = self._fleet.listen(self._arrived)
        self._say(EventKind.RUN_STARTED, "run", message=self._plan.experiment.hypothesis)
        try:
            self._observation.start()
            while self.machine.phase is not Phase.ENDED:
                await asyncio.sleep(TICK_S)
                self._step()
            await self._find_residue()
            self._say(EventKind.RUN_ENDED, "run")
            await self._observation.end()
        finally:
            for instance in self.machine.instances.values():
                if instance.state not in OVER:
                    self._stop(instance, self.machine.stop_reason or "the controller lets go of the run")
            self._observation.drop()
            forget()
        return self.outcome()

    def outcome(self) -> Outcome:
        """How the run stands now: what is not known to be undone counts as unknown."""
        return Outcome(self._record(self._fingerprints.residue(self._faults_by_host())), self.machine.refused)

    # ---- carrying out --------------------------------------------------------------------------------------------

    def _step(self) -> None:
        try:
            self._check_guards()
            self._feed(messages.Tick(self.timeline.now()))
            self._judge_steady()
        except Exception as error:
            # A run that cannot be guarded or steered must not go on; it is still seen through to its undo.
            log.exception("an error of the controller stops the run")
            reason = f"internal error: {type(error).__name__}: {error}"
            self._feed(messages.StopAsked(self.timeline.now(), "error", reason))

    def _feed(self, event: messages.Event) -> None:
        for instruction in self.machine.handle(event):
            match instruction:
                case messages.JudgeSteady():
                    self._fingerprints.ask(self._hosts_to_look_at())
                    self._judge_by_ns = self.timeline.now() + FIRST_WORD_WITHIN_NS
                case messages.ChooseHosts(fault):
                    self._choose(fault.name)
                case messages.Inject(instance):
                    self._inject(instance)
                case messages.LeaveOut(instance, reason):
                    self.collector.ordered(instance)
                    self._note_refusal(instance, reason)
                case messages.Stop(instance, reason):
                    self._stop(instance, reason)
                case messages.Say(kind, subject, host, message):
                    self._say(kind, subject, host=host, message=message)
                case messages.End():
                    pass

    def _choose(self, name: str) -> None:
        experiment = self._plan.experiment
        spec = next(fault for fault in experiment.faults if fault.name == name)
        views = (view_of(host) for host in self._fleet.connected if self._may_mean(host.name))
        hosts = within(experiment.environment, views)
        why_none = ""
        try:
            chosen, self._peers[name] = choose(experiment, spec, hosts, self._plan.targets, self._plan.seed)
        except NoPeers as error:
            chosen, why_none = (), str(error)
        self._feed(messages.HostsChosen(self.timeline.now(), name, chosen, why_none))

    def _may_mean(self, host: str) -> bool:
        return self._only_hosts is None or host in self._only_hosts

    def _inject(self, instance: Instance) -> None:
        self.collector.ordered(instance)
        if missing := self._fingerprints.missing([instance.host]):
            self._refused(instance.fault_id, f"{missing[0]}; nothing was sent")
            return
        fault = instance.fault
        try:
            parameters = self._parameters(instance)
        except NoPeers as error:
            self._refused(instance.fault_id, f"{error}; nothing was sent")
            return
        order = fault_pb2.Inject(
            fault_id=instance.fault_id,
            environment=self._plan.experiment.environment,
            kind=fault.kind,
            parameters={name: to_value(value) for name, value in parameters.items()},
            duration_ms=int(fault.for_ms),
            lease_ms=LEASE_MS,
            run_id=self._plan.digest[:12],
        )
        if not self._send(instance.host, fleet_pb2.ControllerMessage(inject=order)):
            self._refused(instance.fault_id, f"the agent of {instance.host} is not connected; nothing was sent")

    def _parameters(self, instance: Instance) -> dict[str, Any]:
        """With the addresses that the host's peers have now, or had when it was planned if they are away."""
        fault = instance.fault
        cut = self._peers.get(fault.name, fault.peers)
        if cut is None:
            return fault.parameters
        own = self._view(instance.host)
        peers = [self._view(host) for host in cut[instance.host]]
        if mute := unaddressed(own, peers):
            raise NoPeers(f"{', '.join(host.name for host in mute)} has told no address by which it is reached")
        return addressed(fault.parameters, self._plan.experiment.targets, own, peers)

    def _view(self, host: str) -> HostView:
        state = self._fleet.hosts.get(host)
        return view_of(state) if state is not None else next(one for one in self._plan.hosts if one.name == host)

    def _stop(self, instance: Instance, reason: str) -> None:
        order = fault_pb2.Stop(fault_id=instance.fault_id, reason=reason)
        self._send(instance.host, fleet_pb2.ControllerMessage(stop=order))  # sent again when the host comes back

    def _send(self, host: str, message: fleet_pb2.ControllerMessage) -> bool:
        state = self._fleet.hosts.get(host)
        if state is None or state.session is None:
            return False
        state.session.send(message)
        return True

    def _judge_steady(self) -> None:
        """Judge as soon as every probe, watcher and target has said a first word, or has had its time to."""
        now_ns = self.timeline.now()
        if self._judge_by_ns is None or self.machine.phase is not Phase.STEADYING:
            return
        mute = self._observation.mute | self._fingerprints.waiting
        if not mute or now_ns >= self._judge_by_ns:
            self._judge_by_ns = None
            trouble = (*self._observation.trouble(), *self._fingerprints.missing(self._planned_hosts()))
            self._feed(messages.SteadyJudged(now_ns, unsteady(self._record(), trouble)))

    def _planned_hosts(self) -> set[str]:
        return {host for fault in self._plan.faults for host in fault.hosts}

    def _hosts_to_look_at(self) -> set[str]:
        """Before the first fault: every host that may get one."""
        if any(fault.chosen_at_injection for fault in self._plan.faults):
            return self._planned_hosts() | {host.name for host in self._fleet.connected}
        return self._planned_hosts()

    def _faults_by_host(self) -> dict[str, dict[str, str]]:
        """The faults that each host may have had, kinds by id: all that were ordered and not refused."""
        faults: dict[str, dict[str, str]] = {}
        for instance in self.machine.instances.values():
            if instance.state is not State.REFUSED:
                faults.setdefault(instance.host, {})[instance.fault_id] = instance.fault.kind
        return faults

    async def _find_residue(self) -> None:
        faults = self._faults_by_host()
        await self._fingerprints.find_residue(faults)
        for found in self._fingerprints.residue(faults):
            first = next(iter((*found.left, *found.unread)), "") if found.state is not ResidueState.CLEAN else ""
            self._say(EventKind.RESIDUE_AUDITED, found.state.value, host=found.host, message=first)

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
            self._feed(messages.StopAsked(now_ns, "guard", reason))

    # ---- what hosts say ----------------------------------------------------------------------------------------------

    def _arrived(self, arrival: Arrival) -> None:
        host, now_ns = arrival.host, self.timeline.now()
        if not self._concerns(host.name):
            return
        if arrival.lost:
            self._silent_since_ns.setdefault(host.name, now_ns)
            self._say(EventKind.HOST_LOST, host.name, host=host.name, message="the agent's stream ended")
            self._feed(messages.HostSilent(now_ns, host.name))
        elif arrival.up:
            self._welcome_back(host)
        elif arrival.message is not None:
            self._heard(host, arrival.message)

    def _concerns(self, host: str) -> bool:
        """Where others have runs as well, a host that this run is not about has no place in its record."""
        return self._only_hosts is None or any(known.name == host for known in self._plan.hosts)

    def _welcome_back(self, host: HostState) -> None:
        if self._silent_since_ns.pop(host.name, None) is not None:
            self._say(EventKind.HOST_BACK, host.name, host=host.name)
        self._observation.resume(host.name)
        self._injector_is(host.name, host.hello.injector_attached, host.hello.policy)

    def _injector_is(self, host: str, attached: bool, detail: str) -> None:
        """An injector that is away says nothing of its faults; one that comes back is told every stop again."""
        now_ns = self.timeline.now()
        if attached:
            if host in self._without_injector:
                self._without_injector.remove(host)
                self._say(EventKind.HOST_BACK, host, host=host, message="its injector answers again")
            self._feed(messages.HostBack(now_ns, host))
        elif any(instance.host == host for instance in self.machine.instances.values()):
            if host not in self._without_injector:
                self._without_injector.add(host)
                self._say(EventKind.HOST_LOST, host, host=host, message=f"its injector is away: {detail}")
            self._feed(messages.HostSilent(now_ns, host))

    def _heard(self, host: HostState, message: fleet_pb2.AgentMessage) -> None:
        match message.WhichOneof("body"):
            case "reply":
                self._replied(host, message.reply)
            case "report":
                self._reported(host, message.report)
            case "lease":
                self._injector_is(host.name, message.lease.injector_attached, message.lease.detail)
            case "fingerprint":
                self._fingerprints.heard(host.name, message.fingerprint)
            case "samples" | "watch" | "observer_error" | "observer_ended":
                self._observation.heard(message, host.clock)

    def _replied(self, host: HostState, reply: fault_pb2.OrderReply) -> None:
        instance = self.machine.instances.get(reply.fault_id)
        if instance is None or instance.host != host.name:
            return
        if reply.outcome == fault_pb2.OrderReply.REFUSED:
            next_step = f" ({reply.remedy})" if reply.remedy else ""
            self._refused(reply.fault_id, f"{reply.reason}{next_step}")
        elif reply.outcome == fault_pb2.OrderReply.INDEFINITE:
            self._feed(messages.AnswerLost(self.timeline.now(), reply.fault_id, reply.reason))

    def _refused(self, fault_id: str, reason: str) -> None:
        instance = self.machine.instances[fault_id]
        if instance.state is not State.ORDERED:
            return  # a repeated order may be refused while the first one runs
        self._note_refusal(instance, reason)
        self._feed(messages.FaultSaid(self.timeline.now(), fault_id, State.REFUSED, reason))

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
        self._feed(messages.FaultSaid(self.timeline.now(), report.fault_id, _STATES[report.state], report.message))
        if instance.state is not before and (kind := _SAID.get(instance.state)) is not None:
            message = "; ".join(report.residue) or report.message
            name = instance.fault.name
            self._say(kind, name, at_ns=at_ns, host=host.name, message=message, error_ns=clock.error_ns)

    def _say(self, kind: EventKind, subject: str, **more: Any) -> None:
        self._tell(self.collector.event(kind, subject, **more))

    def _record(self, residue: tuple[HostResidue, ...] = ()) -> RunRecord:
        named = {host.name for host in self._plan.hosts} | {i.host for i in self.machine.instances.values()}
        hosts = tuple(describe(self._fleet.hosts[name]) for name in sorted(named) if name in self._fleet.hosts)
        return self.collector.record(hosts, self.machine.stopped_by, self.machine.stop_reason, residue)


def _folders(plan: Plan) -> set[str]:
    """Where the disk faults of a plan work."""
    paths = [fault.parameters.get("path") for fault in plan.faults if fault.kind.startswith("disk.")]
    return {path if isinstance(path, str) else Host().scratch for path in paths}
