"""The live view of a run: a few lines that change on a terminal, one line per event where there is none."""

import asyncio
import time
from collections import deque

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.text import Text

from brownout_controller.analysis.wording import clock
from brownout_controller.planning.plan import Plan
from brownout_controller.record import Event, EventKind
from brownout_controller.reporting.visible import visible
from brownout_controller.running.engine import Engine
from brownout_controller.running.machine import OVER, Phase

REFRESH_S = 0.25
_LINE_EVERY_S = 10.0
_LATEST_SHOWN = 5
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
}
_PHASES = {
    Phase.STEADYING: "steady before",
    Phase.INJECTING: "faults",
    Phase.SETTLING: "steady after",
    Phase.UNDOING: "undoing",
    Phase.ENDED: "done",
}


class Live:
    """Shows one run until cancelled."""

    def __init__(self, plan: Plan, target: Console) -> None:
        self._plan = plan
        self._console = target
        self._latest: deque[str] = deque(maxlen=_LATEST_SHOWN)

    def take(self, event: Event) -> None:
        """An event happened."""
        if (line := _line(event)) is None:
            return
        self._latest.append(line)
        if not self._console.is_terminal:
            self._console.print(line)

    async def show(self, engine: Engine) -> None:
        """Keep the view fresh; without a terminal a line now and then says that the run lives."""
        if not self._console.is_terminal:
            while True:
                await asyncio.sleep(_LINE_EVERY_S)
                self._console.print(self._state(engine))
        with RichLive(console=self._console, auto_refresh=False, transient=False) as view:
            while True:
                lines = [Text(self._state(engine), style="bold"), *(Text(line) for line in self._latest)]
                lines += [Text(f"  {line}", style="dim") for line in self._probes(engine)]
                view.update(Group(*lines), refresh=True)
                await asyncio.sleep(REFRESH_S)

    def _state(self, engine: Engine) -> str:
        machine = engine.machine
        elapsed_s = (engine.timeline.now() - machine.started_ns) / 1e9
        faults = [
            f"{instance.fault.name} {instance.state} on {instance.host}"
            for instance in machine.instances.values()
            if instance.state not in OVER
        ]
        return f"{_span(elapsed_s)}  {_PHASES[machine.phase]}  {' · '.join(faults)}".rstrip()

    def _probes(self, engine: Engine) -> list[str]:
        lines = []
        for observer in self._plan.observers:
            if observer.is_watcher:
                continue
            sample = engine.collector.latest(observer.observer_id)
            if sample is not None:
                word = "ok" if sample.ok else "FAILS"
                who = f" by {visible(sample.identity)}" if sample.identity else ""
                took = f"{sample.took_us / 1000:.0f} ms"
                lines.append(f"{observer.name} from {observer.vantage}: {word} {sample.outcome} {took}{who}")
        return lines


def _line(event: Event) -> str | None:
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
    return time.strftime("%M:%S", time.gmtime(seconds))
