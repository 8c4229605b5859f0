"""The run as a pure state machine: events in, instructions out. No clock, no socket, no loop.

    steadying ──Steady──▶ injecting ──every fault is over──▶ settling ──time──▶ ended
        │ Unsteady            │ guard, halt, failure              │
        ▼                     ▼                                   │
      ended                 undoing ◀─────────────────────────────┘ (guard, halt, failure)
    (refused)                 └──every fault is over──▶ ended

A fault *is over* when its host said that it is clean, that residue is left, or that it refused; or when its host was
silent for so long that all its own limits have passed, and then its state is `unknown` and never `clean`. While one is
`unknown` or left residue, no further fault begins.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from brownout_controller.planning.plan import Plan, PlannedFault
from brownout_controller.record import EventKind
from brownout_controller.running.messages import (
    OVER,
    AnswerLost,
    ChooseHosts,
    End,
    Event,
    FaultSaid,
    HostBack,
    HostsChosen,
    HostSilent,
    Inject,
    Instance,
    Instruction,
    JudgeSteady,
    LeaveOut,
    Phase,
    Say,
    State,
    SteadyJudged,
    Stop,
    StopAsked,
    Tick,
)

NS_PER_MS = 1_000_000
NO_HOST = "no host"
"""Where a fault is said to be that found nobody to go to."""
GIVE_UP_AFTER_NS = 45 * 10**9
"""After a fault's time, or the loss of its host: lease (10 s), watchdog (30 s), and a little."""
_FINAL = frozenset({State.CLEAN, State.REFUSED})
_UNCONFIRMED = frozenset({State.RESIDUE, State.UNKNOWN})
_RANK = {State.ORDERED: 0, State.ACTIVE: 1, State.UNDOING: 2} | dict.fromkeys(OVER, 3)
"""Words of a host may come late, and twice: a state never goes back."""


def fault_id(run_key: str, fault: str, host: str) -> str:
    """The id of one fault on one host, unique for ever; whoever knows the run's key can stop it."""
    return str(uuid.uuid5(uuid.UUID(run_key), f"{fault}/{host}"))


@dataclass(slots=True)
class RunMachine:
    """The state of one run. `handle` is its only door; its attributes are for reading."""

    plan: Plan
    run_key: str
    """Makes fault ids unique for ever."""
    started_ns: int
    phase: Phase = Phase.STEADYING
    instances: dict[str, Instance] = field(default_factory=dict)
    over_ns: dict[str, int] = field(default_factory=dict)
    """When each planned fault was over on all of its hosts, by its name."""
    begun: set[str] = field(default_factory=set)
    injecting_ns: int = 0
    settling_ns: int = 0
    stopped_by: str = ""
    stop_reason: str = ""
    refused: tuple[str, ...] = ()
    """Why nothing was injected; empty when something was."""
    _judging: bool = False

    def handle(self, event: Event) -> list[Instruction]:
        """Take one event in and say what to do now. After the end only the states of faults still change."""
        if self.phase is Phase.ENDED and not isinstance(event, FaultSaid):
            return []
        match event:
            case SteadyJudged():
                done = self._steady_judged(event)
            case HostsChosen(now_ns, name, hosts, why_none):
                done = self._order(self._fault(name), hosts, now_ns, why_none)
            case FaultSaid():
                done = self._fault_said(event)
            case HostSilent(now_ns, host):
                self._hurry((instance for instance in self._open() if instance.host == host), now_ns)
                done = []
            case HostBack(_, host):
                done = [Stop(one, one.stop_reason) for one in self._open() if one.host == host and one.stop_reason]
            case AnswerLost():
                done = self._answer_lost(event)
            case StopAsked():
                done = self._stop(event)
            case Tick():
                done = []
        return done + self._advance(event.now_ns)

    # ---- what each event does ------------------------------------------------------------------------------------

    def _steady_judged(self, event: SteadyJudged) -> list[Instruction]:
        if event.reasons:
            self.refused = event.reasons
            self.phase = Phase.ENDED
            return [End()]
        self.phase = Phase.INJECTING
        self.injecting_ns = event.now_ns
        return [Say(EventKind.STEADY_CONFIRMED, "run", message="every expectation held before the first fault")]

    def _fault_said(self, event: FaultSaid) -> list[Instruction]:
        instance = self.instances.get(event.fault_id)
        if instance is None or instance.state in _FINAL or _RANK[event.state] < _RANK[instance.state]:
            return []
        instance.state = event.state
        if event.state is State.ACTIVE and instance.active_ns is None:
            instance.active_ns = event.now_ns
        if not instance.stop_reason:
            instance.give_up_ns = instance.latest_ns  # it was heard of: its host is not silent any more
        return []

    def _answer_lost(self, event: AnswerLost) -> list[Instruction]:
        instance = self.instances.get(event.fault_id)
        if instance is None or instance.state in OVER:
            return []
        self._hurry((instance,), event.now_ns)
        if instance.stop_reason:
            return []  # it was the stop's own answer: said again when the host is back, and not before
        instance.stop_reason = f"its order had an indefinite answer: {event.reason}"
        return [Stop(instance, instance.stop_reason)]

    def _stop(self, event: StopAsked) -> list[Instruction]:
        if self.stopped_by:
            return []
        self.stopped_by, self.stop_reason = event.by, event.reason
        self.phase = Phase.UNDOING
        still_open = self._open()
        self._hurry(still_open, event.now_ns)
        for instance in still_open:
            instance.stop_reason = event.reason
        return [Stop(instance, event.reason) for instance in still_open]

    # ---- what time does -----------------------------------------------------------------------------------------

    def _advance(self, now_ns: int) -> list[Instruction]:
        if self.phase is Phase.ENDED:
            return []
        done = self._give_up(now_ns)
        self._note_over(now_ns)
        if self.phase is Phase.INJECTING and (reason := self._why_no_more()):
            done += self._stop(StopAsked(now_ns, "error", reason))
        experiment = self.plan.experiment
        if self.phase is Phase.STEADYING and not self._judging:
            if now_ns - self.started_ns >= experiment.steady_state.before_ms * NS_PER_MS:
                self._judging = True
                done.append(JudgeSteady())
        elif self.phase is Phase.INJECTING:
            done += self._begin_due(now_ns)
            if len(self.over_ns) == len(self.plan.faults):
                self.phase, self.settling_ns = Phase.SETTLING, now_ns
        elif self.phase is Phase.SETTLING:
            if now_ns - self.settling_ns >= experiment.steady_state.after_ms * NS_PER_MS or self._nothing_happened():
                self.phase = Phase.ENDED
                done.append(End())
        elif self.phase is Phase.UNDOING and not self._open():
            self.phase = Phase.ENDED
            done.append(End())
        return done

    def _begin_due(self, now_ns: int) -> list[Instruction]:
        done: list[Instruction] = []
        for fault in self.plan.faults:
            due_ns = self._due_ns(fault)
            if fault.name in self.begun or due_ns is None or now_ns < due_ns:
                continue
            self.begun.add(fault.name)
            if fault.chosen_at_injection:
                done.append(ChooseHosts(fault))
            else:
                done += self._order(fault, fault.hosts, now_ns)
        return done

    def _due_ns(self, fault: PlannedFault) -> int | None:
        if fault.after is None:
            return self.injecting_ns + int(fault.at_ms * NS_PER_MS)
        over_ns = self.over_ns.get(fault.after)
        return None if over_ns is None else over_ns + int(fault.wait_ms * NS_PER_MS)

    def _order(self, fault: PlannedFault, hosts: tuple[str, ...], now_ns: int, why_none: str = "") -> list[Instruction]:
        if not hosts:
            return self._leave_out(fault, now_ns, why_none)
        done: list[Instruction] = []
        for host in hosts:
            latest_ns = now_ns + int(fault.for_ms * NS_PER_MS) + GIVE_UP_AFTER_NS
            instance = Instance(self._id(fault, host), fault, host, State.ORDERED, latest_ns, latest_ns)
            self.instances[instance.fault_id] = instance
            done += [Say(EventKind.FAULT_ORDERED, fault.name, host), Inject(instance)]
        return done

    def _leave_out(self, fault: PlannedFault, now_ns: int, why_none: str) -> list[Instruction]:
        """Nobody matched. With `if_none: skip` that is as it was wished; else it must not look like a pass."""
        self.over_ns[fault.name] = now_ns
        if fault.may_be_skipped and not why_none:
            return [Say(EventKind.FAULT_REFUSED, fault.name, message="left out: no host matched, and if_none is skip")]
        instance = Instance(self._id(fault, ""), fault, NO_HOST, State.REFUSED, now_ns, now_ns)
        self.instances[instance.fault_id] = instance
        return [LeaveOut(instance, why_none or "no host matched when it was due")]

    def _give_up(self, now_ns: int) -> list[Instruction]:
        done: list[Instruction] = []
        for instance in self._open():
            if now_ns >= instance.give_up_ns:
                instance.state = State.UNKNOWN
                message = f"nothing was heard of it for so long that its own limits have passed; ask {instance.host}"
                done.append(Say(EventKind.FAULT_UNKNOWN, instance.fault.name, instance.host, message))
                done.append(Stop(instance, instance.stop_reason or "nothing was heard of it"))
        return done

    @staticmethod
    def _hurry(instances: Iterable[Instance], now_ns: int) -> None:
        """Their own limits are all that is left now, and those have passed soon."""
        for instance in instances:
            instance.give_up_ns = min(instance.give_up_ns, now_ns + GIVE_UP_AFTER_NS)

    def _why_no_more(self) -> str:
        """Why no further fault may begin; empty when none is to come, or all is well."""
        if len(self.begun) == len(self.plan.faults):
            return ""
        for instance in self.instances.values():
            if instance.state in _UNCONFIRMED:
                where = f"{instance.fault.name} on {instance.host}"
                return f"the undo of {where} is not confirmed ({instance.state}), so no further fault is injected"
        return ""

    def _note_over(self, now_ns: int) -> None:
        for name in self.begun - self.over_ns.keys():
            states = [instance.state for instance in self.instances.values() if instance.fault.name == name]
            if states and all(state in OVER for state in states):
                self.over_ns[name] = now_ns

    def _nothing_happened(self) -> bool:
        return all(instance.state is State.REFUSED for instance in self.instances.values())

    def _open(self) -> list[Instance]:
        return [instance for instance in self.instances.values() if instance.state not in OVER]

    def _id(self, fault: PlannedFault, host: str) -> str:
        return fault_id(self.run_key, fault.name, host)

    def _fault(self, name: str) -> PlannedFault:
        return next(fault for fault in self.plan.faults if fault.name == name)
