"""Builders of run records for tests: a simulated service with known down times, sampled like a probe samples."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from brownout_controller.record import (
    Event,
    EventKind,
    FaultOutcome,
    HostResidue,
    ResidueState,
    RunRecord,
    Series,
    Vantage,
)

START_NS = 1_795_528_900 * 10**9
"""2026-11-24 14:01:40 UTC."""
SOURCE = """version: 1
name: checkout-survives-app-loss
hypothesis: Checkout keeps answering while one of its app servers is gone.
probes:
  checkout: {http: "http://shop.test:8080/healthz", every: 100ms}
faults:
  - inject: network.blackhole
    target: "role=app"
    for: 30s
"""

Stretch = tuple[float, float]


def at(seconds: float) -> int:
    """Nanoseconds on the timeline, `seconds` after the run's start."""
    return START_NS + round(seconds * 1e9)


def series(
    probe: str = "checkout",
    vantage: str = "controller",
    *,
    every_ms: float = 100.0,
    begin_s: float = 0.0,
    end_s: float = 60.0,
    down: Iterable[Stretch] = (),
    silent: Iterable[Stretch] = (),
    who: Callable[[float], str] = lambda _: "",
    took_ms: Callable[[float], float] = lambda _: 4.0,
    outcome: str = "timeout",
    clock_error_ms: float = 0.0,
    missed: int = 0,
) -> Series:
    """What a probe sees that asks every `every_ms` from `begin_s`: requests sent in a `down` stretch [a, b) fail, and
    in a `silent` one none are sent. `who` and `took_ms` are functions of the sending time in seconds.
    """
    down, silent = tuple(down), tuple(silent)
    step_s = every_ms / 1000
    count = round((end_s - begin_s) / step_s)
    times = [begin_s + k * step_s for k in range(count)]
    times = [t for t in times if not any(a <= t < b for a, b in silent)]
    good = [not any(a <= t < b for a, b in down) for t in times]
    return Series(
        probe=probe,
        vantage=Vantage(vantage, round(clock_error_ms * 1e6)),
        every_ns=round(every_ms * 1e6),
        sent_ns=tuple(at(t) for t in times),
        took_ns=tuple(round((took_ms(t) if ok else 50.0) * 1e6) for t, ok in zip(times, good, strict=True)),
        ok=tuple(good),
        outcome=tuple("200" if ok else outcome for ok in good),
        identity=tuple(who(t) if ok else "" for t, ok in zip(times, good, strict=True)),
        missed=missed,
    )


def fault(
    name: str = "lose-app-1", active_s: float | None = 20.0, ended_s: float | None = 50.0, **other: Any
) -> FaultOutcome:
    """A blackhole of app-1 that was proved and undone, unless `other` says otherwise."""
    outcome = FaultOutcome(
        fault_id=f"f-{name}",
        name=name,
        kind="network.blackhole",
        host="app-1",
        parameters={"direction": "both"},
        ordered_ns=at(20.0 if active_s is None else active_s - 0.2),
        active_ns=None if active_s is None else at(active_s),
        ended_ns=None if ended_s is None else at(ended_s),
        clock_error_ns=2_000_000,
        end_cause="time is up",
        undo="clean",
        asked=100.0,
        achieved=100.0,
        unit="%",
        proved=True,
        explanation="1204 packets dropped, by the kernel's own counters",
        undo_begun_ns=None if ended_s is None else at(ended_s - 0.05),
    )
    return replace(outcome, **other)


def change(at_s: float, before: str, after: str, subject: str = "shop/app-1", *, poll_ms: float = 100.0) -> Event:
    """What a watcher named `lb` on `edge` saw; an empty `before` is its first look."""
    return Event(
        at_ns=at(at_s),
        kind=EventKind.WATCH_CHANGED,
        subject=f"lb:{subject}",
        host="edge",
        message=f"{subject} is {after}",
        before_ns=0 if before == "" else round(poll_ms * 1e6),
        error_ns=1_000_000,
        detail={"watcher": "lb", "subject": subject, "before": before, "after": after},
    )


def record(**other: Any) -> RunRecord:
    """A run of one minute on three hosts; by default a quiet one with one proved fault."""
    outcomes = other.get("faults", (fault(),))
    base = RunRecord(
        run_id="42",
        name="checkout-survives-app-loss",
        hypothesis="Checkout keeps answering while one of its app servers is gone.",
        source=SOURCE,
        source_sha256="ab12" * 16,
        plan_digest="9c2f1a",
        seed=20252,
        started_ns=at(0),
        ended_ns=at(60.5),
        operator="ana",
        controller_host="ctl",
        versions={"brownout": "0.1.0", "python": "3.11.2"},
        hosts=tuple(
            {"name": name, "labels": {"role": name[:3]}, "clock_offset_ns": 1200, "clock_error_ns": 2_000_000}
            for name in ("edge", "app-1", "app-2")
        ),
        expectations=(),
        events=_fault_events(outcomes),
        series=(series(),),
        faults=outcomes,
    )
    if "events" in other:
        other["events"] = tuple(sorted((*base.events, *other["events"]), key=lambda event: event.at_ns))
    return replace(base, **other)


def lost_primary() -> RunRecord:
    """The story that reports are about: app-1 is cut off at 20 s, noticed at 21.6 s, its standby serves from 22.4 s,
    the fault is undone at 50 s and app-1 is back at 51.2 s. Two vantages, and a gap without samples at 40-41 s.
    """

    def who(t: float) -> str:
        return "app-2" if 22.4 <= t < 51.2 else "app-1"

    def slow_start(t: float) -> float:
        return 4.0 + 180.0 * max(0.0, 1 - (t - 22.4) / 2) if 22.4 <= t < 24.4 else 4.0 + 3.0 * ((t * 7.3) % 1.0)

    return record(
        expectations=(
            ("checkout", "availability >= 99%"),
            ("checkout", "outage < 5s"),
            ("checkout", "p95 < 300ms"),
            ("lb", "time_to_detect < 3s"),
        ),
        series=(
            series(down=((20.03, 22.4),), silent=((40.0, 41.0),), who=who, took_ms=slow_start, missed=10),
            series(
                vantage="edge", begin_s=0.05, down=((20.03, 22.4),), who=who, took_ms=slow_start, clock_error_ms=1.5
            ),
        ),
        events=(
            change(0.3, "", "UP"),
            change(0.3, "", "UP", "shop/app-2"),
            change(21.6, "UP", "DOWN"),
            change(51.2, "DOWN", "UP"),
        ),
        probe_thresholds={"checkout": 300.0},
        residue=(
            HostResidue("app-1", ResidueState.CLEAN, (), ("+ mounts: /mnt nfs store:/mnt",), ("iptables: no program",)),
        ),
    )


def _fault_events(outcomes: tuple[FaultOutcome, ...]) -> tuple[Event, ...]:
    events = [Event(at(0), EventKind.RUN_STARTED, "42"), Event(at(60.5), EventKind.RUN_ENDED, "42")]
    for one in outcomes:
        for time_ns, kind in ((one.ordered_ns, EventKind.FAULT_ORDERED), (one.active_ns, EventKind.FAULT_ACTIVE)):
            if time_ns is not None:
                events.append(Event(time_ns, kind, one.name, one.host, error_ns=one.clock_error_ns))
        if one.ended_ns is not None:
            kind = EventKind.FAULT_ENDED if one.undo == "clean" else EventKind.FAULT_UNKNOWN
            events.append(Event(one.ended_ns, kind, one.name, one.host, f"undo {one.undo}"))
    return tuple(sorted(events, key=lambda event: event.at_ns))
