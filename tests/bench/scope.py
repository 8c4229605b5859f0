"""Whether a latency that means one unit leaves everyone else's round trips alone, and meets all of the unit's.

`python -m tests.bench.scope` takes about half a minute, needs root, prints every figure, writes them to docs/scope.md
and ends with 1 when somebody else's 99th percentile moved by more than it may from one run without a fault to the
next. Two network namespaces joined by a cable; a unit's program, one of another unit and one of none talk to one port
of the peer at the same time, over connections that stood before the fault and over new ones.
"""

import asyncio
import platform
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.host.network_pair import FAR, inside, network_pair
from tests.support.faultbench import held
from tests.support.grouped import Talker, talking, unit_group, unit_name

LATENCY_MS = 100
REPEATS = 9
PORT = 7001
REPORT = Path(__file__).parents[2] / "docs/scope.md"
_MARK = "<!-- figures: written by python -m tests.bench.scope -->\n"
_ROUND_TRIPS = {"existing": 2_000, "new": 300}
"""Each new one leaves a local port behind for a minute (TIME_WAIT), of the 28 000 that there are."""
_NOISE = 4
"""In units of the median difference of two runs alike. Nine more such differences have a median beyond it about once in
a thousand times."""
_OF_UNIT = 8
"""Round trips of the unit meanwhile: each is late."""
_UNIT, _BYSTANDERS = "the unit", ("another unit", "no unit")
Times = dict[tuple[str, str], list[float]]
"""By who talks, and over which connections: milliseconds."""


@dataclass
class Runs:
    """The 99th percentile of each run, by who talks and over which connections."""

    first: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    second: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    faulty: dict[tuple[str, str], list[float]] = field(default_factory=dict)


@contextmanager
def talkers() -> Iterator[tuple[str, dict[str, Talker]]]:
    """The unit's name, and who talks, each with a connection that stands."""
    unit = unit_name()
    with ExitStack() as stack:
        groups = {
            _UNIT: stack.enter_context(unit_group(unit)),
            "another unit": stack.enter_context(unit_group(unit_name())),
            "no unit": None,
        }
        found = {who: stack.enter_context(talking(group)) for who, group in groups.items()}
        for talker in found.values():
            talker.took_ms("connect", "old", FAR, PORT)
        yield unit, found


async def round_trips(found: dict[str, Talker]) -> Times:
    """Of all, at the same time."""

    def talk(who: str) -> Times:
        times = {name: _OF_UNIT if who == _UNIT else times for name, times in _ROUND_TRIPS.items()}
        return {
            (who, "existing"): found[who].took_ms("echo", "old", times=times["existing"]),
            (who, "new"): found[who].took_ms("fresh", FAR, PORT, times=times["new"]),
        }

    talked = await asyncio.gather(*(asyncio.to_thread(talk, who) for who in found))
    return {key: took_ms for each in talked for key, took_ms in each.items()}


async def measure() -> tuple[Runs, Times]:
    """All runs, and the unit's own round trips under the fault."""
    runs, of_unit = Runs(), Times()
    with talkers() as (unit, found):
        await round_trips(found)  # caches are warm then
        kinds = [runs.first, runs.second, runs.faulty]
        for repeat in range(REPEATS):
            # In turn, since what comes right after a fault finds a host that has just been busy.
            for kind in (*kinds[repeat % 3 :], *kinds[: repeat % 3]):
                took_ms = await (late_round_trips(unit, found) if kind is runs.faulty else round_trips(found))
                _note(kind, took_ms)
                if kind is runs.faulty:
                    for name in _ROUND_TRIPS:
                        of_unit.setdefault((_UNIT, name), []).extend(took_ms[_UNIT, name])
    return runs, of_unit


async def late_round_trips(unit: str, found: dict[str, Talker]) -> Times:
    """As `round_trips`, under the fault."""
    async with held("network.latency", to=FAR, unit=unit, latency=f"{LATENCY_MS}ms") as it:
        took_ms = await round_trips(found)
        it.meter.sample()
        assert it.meter.effect().proved, it.meter.effect().explanation
    return took_ms


def _note(kept: dict[tuple[str, str], list[float]], took_ms: Times) -> None:
    for key, times in took_ms.items():
        if key[0] != _UNIT:
            kept.setdefault(key, []).append(statistics.quantiles(times, n=100)[98])


def rows(runs: Runs) -> tuple[list[str], bool]:
    """A line for each bystander and kind of connection; whether none of them moved by more than A/A."""
    lines, is_well = [], True
    for (who, name), faulty in sorted(runs.faulty.items()):
        first, second = runs.first[who, name], runs.second[who, name]
        limit_ms = _NOISE * statistics.median(abs(one - other) for one, other in zip(first, second, strict=True))
        moved_ms = statistics.median(one - other for one, other in zip(faulty, first, strict=True))
        is_well &= abs(moved_ms) <= limit_ms
        middle = (statistics.median(times) for times in (first, second, faulty))
        figures = " | ".join(f"{one:.3f}" for one in (*middle, moved_ms, limit_ms))
        lines.append(f"| {who} | {name} | {figures} |")
    return lines, is_well


def section(lines: list[str], of_unit: Times) -> str:
    """What stands behind the mark."""
    own = "\n".join(
        f"| {name} | {min(times):.1f} | {statistics.median(times):.1f} | {max(times):.1f} | {len(times)} |"
        for (_, name), times in sorted(of_unit.items())
    )
    stood, new = _ROUND_TRIPS["existing"], _ROUND_TRIPS["new"]
    return f"""
`network.latency` of {LATENCY_MS} ms with `unit`, on Linux {platform.release()}: the 99th percentile of
{stood} round trips over a connection that stood and of {new} over new ones (connect, question, answer), in ms, median
of {REPEATS} runs each of: without a fault (A), again without (A'), with it (B). *B - A* is the median of the
differences, and its limit {_NOISE} times the median of how much A and A' differed.

| who | connections | A | A' | B | B - A | limit |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}

The unit's own, under the fault, in ms: a new connection is late twice, for its handshake and for its answer.

| connections | least | median | most | round trips |
|---|---|---|---|---|
{own}
"""


def main() -> None:
    """Needs root."""
    with network_pair() as pair, inside(pair.near):
        runs, of_unit = asyncio.run(measure())
    lines, is_well = rows(runs)
    text = section(lines, of_unit)
    print(text)
    before, mark, _ = REPORT.read_text().partition(_MARK)
    REPORT.write_text(before + mark + text)
    if not is_well:
        raise SystemExit("somebody else's 99th percentile moved by more than it does without a fault")


if __name__ == "__main__":
    main()
