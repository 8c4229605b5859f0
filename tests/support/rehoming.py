"""A controller is killed, or stopped for longer than the lease, while a run is on at three hosts: what came of it."""

import signal
import time
from dataclasses import dataclass, field

from tests.support.cluster import Cluster, held
from tests.support.polling import wait_until

HOSTS = ("app-1", "app-2", "app-3")
LEASE_S = 10.0
ASLEEP_S = LEASE_S + 8.0
"""Long enough that the second fault falls due in it, and that the sleeper is taken for dead."""
FINAL_S = 75.0
EXPERIMENT = """version: 1
name: rehomed
hypothesis: It ends in good order, whoever dies.
steady_state: {before: 500ms, after: 500ms}
targets: {apps: {selector: "role=app", pick: all}}
faults:
  - {name: busy, inject: cpu.load, target: apps, with: {percent: 2, of: own, cores: 0}, for: 90s}
  - {name: late, inject: cpu.load, target: apps, with: {percent: 1, of: own, cores: 0}, for: 30s, at: 14s}
"""


@dataclass
class Rehomed:
    """Seconds from the death, or the sleep, to what is named; and what must not have been."""

    rehomed_s: float = 0.0
    undone_s: float = 0.0
    final_s: float = 0.0
    verdict: str = ""
    exit_code: int = -1
    headline: str = ""
    held_most: int = 0
    """How many processes held one fault at once."""
    begun_after: list[str] = field(default_factory=list)
    """Hosts that carried out what fell due after the death or in the sleep."""


def begin(pair: Cluster, at: str) -> int:
    """A run whose first fault is on everywhere when this returns; its number."""
    with pair.api(at, "operator") as api:
        number = int(api.post("/runs", {"experiment": EXPERIMENT})["run"])
    busy = pair.fault_ids(number, "busy")
    wait_until(lambda: _is_on(busy) or pair.row(number)[1] is not None, "the fault is on", 30)
    assert _is_on(busy), pair.row(number)
    return number


def _is_on(fault_ids: dict[str, str]) -> bool:
    times = held(fault_ids)
    return all(times[host] == 1 for host in HOSTS)


def killed(pair: Cluster, number: int) -> Rehomed:
    """SIGKILL of `a`."""
    found, begun_s = Rehomed(), time.monotonic()
    pair.members["a"].program.signal(signal.SIGKILL)
    _followed(pair, number, begun_s, found, FINAL_S)
    found.begun_after = pair.recorded(number, "late")
    return found


def sleeping(pair: Cluster, number: int) -> Rehomed:
    """SIGSTOP of `a` for longer than the lease, then SIGCONT."""
    found, begun_s = Rehomed(), time.monotonic()
    pair.members["a"].program.signal(signal.SIGSTOP)
    _followed(pair, number, begun_s, found, ASLEEP_S)
    wait_until(lambda: time.monotonic() - begun_s > ASLEEP_S, "the sleep is over", ASLEEP_S)
    pair.members["a"].program.signal(signal.SIGCONT)
    woke = pair.members["a"].program
    wait_until(lambda: f"run {number} is halted" in woke.text(), "it notices that its run is another's", 20)
    there = pair.members["b"].agents
    wait_until(lambda: set(pair.hosts("a").values()) == {there}, "it counts no host as its own", 20)
    _wait_final(pair, number, begun_s, found)
    found.begun_after = pair.recorded(number, "late")
    found.held_most = max(found.held_most, *held(pair.fault_ids(number, "busy")).values())
    return found


def _followed(pair: Cluster, number: int, begun_s: float, found: Rehomed, until_s: float) -> None:
    """Look at kernel and hosts until they are re-homed and undone, or `until_s` have passed."""
    there, busy = pair.members["b"].agents, pair.fault_ids(number, "busy")
    while not (found.rehomed_s and found.undone_s) and time.monotonic() - begun_s < until_s:
        times = held(busy)
        found.held_most = max(found.held_most, *times.values())
        if not found.undone_s and not any(times.values()):
            found.undone_s = time.monotonic() - begun_s
        if not found.rehomed_s and pair.hosts("b") == dict.fromkeys(HOSTS, there):
            found.rehomed_s = time.monotonic() - begun_s
    assert found.rehomed_s, "the hosts are not at b"
    assert found.undone_s, "a fault is still on"
    if until_s == FINAL_S:
        _wait_final(pair, number, begun_s, found)


def _wait_final(pair: Cluster, number: int, begun_s: float, found: Rehomed) -> None:
    wait_until(lambda: pair.row(number)[1] is not None, "the run's end", FINAL_S)
    found.final_s = time.monotonic() - begun_s
    _, found.verdict, found.exit_code, found.headline = pair.row(number)
