"""The live view of a run: every event stays as a line, and on a terminal a few lines below them tell how it stands.

Without a terminal that can move its cursor (a pipe, a file, TERM=dumb) there are the lines alone, and now and then one
that says how the run stands. Trouble in showing never troubles the run.
"""

import asyncio
import contextlib

from rich.console import Console
from rich.live import Live as RichLive
from rich.text import Text

from brownout_controller.analysis.wording import clock
from brownout_controller.planning.plan import Plan
from brownout_controller.record import Event, EventKind
from brownout_controller.reporting.visible import visible
from brownout_controller.running.engine import Engine
from brownout_controller.running.messages import OVER, Instance, Phase, State

LOOK_EVERY_S = 0.25
_LINE_EVERY_S = 10.0
_WORDS = {
    EventKind.STEADY_CONFIRMED: "steady",
    EventKind.FAULT_ORDERED: "ordered",
    EventKind.FAULT_ACTIVE: "ACTIVE",
    EventKind.FAULT_ENDED: "undone",
    EventKind.FAULT_REFUSED: "REFUSED",
    EventKind.FAULT_UNKNOWN: "UNKNOWN",
    EventKind.GUARD_HIT: "GUARD HIT",
    EventKind.HALT_ORDERED: "HALT",
    EventKind.HOST_LOST: "host lost",
    EventKind.HOST_BACK: "host back",
    EventKind.WATCH_FAILED: "cannot observe",
    EventKind.RESIDUE_AUDITED: "residue audit",
}
_PHASES = {
    Phase.STEADYING: ("steady before", "Ctrl-C halts"),
    Phase.INJECTING: ("faults", "Ctrl-C halts and undoes"),
    Phase.SETTLING: ("steady after", "Ctrl-C halts"),
    Phase.UNDOING: ("undoing", "Ctrl-C again leaves that to the hosts"),
    Phase.ENDED: ("last samples", ""),
}


class Live:
    """Shows one run until cancelled."""

    def __init__(self, plan: Plan, target: Console) -> None:
        self._plan = plan
        self._console = target
        # Rich calls a file a terminal when FORCE_COLOR is set: colours may go there, moves of the cursor not.
        self._moves = target.is_terminal and not target.is_dumb_terminal and target.file.isatty()

    def take(self, event: Event) -> None:
        """An event happened."""
        if (line := event_line(event)) is not None:
            self._print(line)

    async def show(self, engine: Engine) -> None:
        """Keep the view fresh until cancelled."""
        if not self._moves:
            while True:
                await asyncio.sleep(_LINE_EVERY_S)
                self._print("; ".join(line.strip() for line in status_lines(self._plan, engine)))
        shown: list[str] = []
        with RichLive(console=self._console, auto_refresh=False, transient=True) as view:
            while True:
                lines = status_lines(self._plan, engine)
                if lines != shown:
                    view.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)
                    shown = lines
                await asyncio.sleep(LOOK_EVERY_S)

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError):  # whoever looked has gone, or the disk under a log is full
            self._console.print(line)


def status_lines(plan: Plan, engine: Engine) -> list[str]:
    """How a run stands now: phase and time, each fault that is open or still to come, each probe's latest answer."""
    machine, now_ns = engine.machine, engine.timeline.now()
    elapsed_s = (now_ns - machine.started_ns) / 1e9
    phase, keys = _PHASES[machine.phase]
    head = f"{_span(elapsed_s)} of about {_span(max(elapsed_s, plan.expected_ms / 1_000))}  {phase}"
    lines = [f"{head}  ({keys})" if keys else head]
    lines += [_fault_line(one, now_ns) for one in machine.instances.values() if one.state not in OVER]
    if machine.phase in {Phase.STEADYING, Phase.INJECTING}:
        later = (fault for fault in plan.faults if fault.name not in machine.begun)
        lines += [f"  {fault.name}: {f'after {fault.after}' if fault.after else 'to come'}" for fault in later]
    return lines + _probe_lines(plan, engine)


def _fault_line(instance: Instance, now_ns: int) -> str:
    line = f"  {instance.fault.name} on {instance.host}: {instance.state}"
    if instance.state is State.ACTIVE and instance.active_ns is not None:
        left_s = instance.fault.for_ms / 1_000 - (now_ns - instance.active_ns) / 1e9
        line += f", {_span(max(0.0, left_s))} left"
    return line


def _probe_lines(plan: Plan, engine: Engine) -> list[str]:
    lines = []
    for observer in plan.observers:
        sample = None if observer.is_watcher else engine.collector.latest(observer.observer_id)
        if sample is not None:
            word = "ok" if sample.ok else "FAILS"
            who = f" by {visible(sample.identity)}" if sample.identity else ""
            answer = f"{word} {sample.outcome} in {sample.took_us / 1_000:.0f} ms{who}"
            lines.append(f"  {observer.name} from {observer.vantage}: {answer}")
    return lines


def event_line(event: Event) -> str | None:
    """One event for people, or None for one that goes without saying."""
    at = clock(event.at_ns)
    if event.kind is EventKind.WATCH_CHANGED:
        if not event.detail["before"]:
            return None
        change = f"{event.detail['before']} -> {event.detail['after']}"
        return f"{at}  {event.detail['watcher']} says {visible(event.detail['subject'])} {visible(change)}"
    word = _WORDS.get(event.kind)
    if word is None:
        return None
    where = f" on {event.host}" if event.host and event.host != event.subject else ""
    subject = "" if event.subject == "run" else f"  {event.subject}{where}"
    return f"{at}  {word}{subject}" + (f"  {visible(event.message)}" if event.message else "")


def _span(seconds: float) -> str:
    """`01:30`, or `26:01:30` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
