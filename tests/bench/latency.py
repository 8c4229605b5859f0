"""How close network.latency comes to what is asked, what it does to bystanders, what it carries and what it costs.

`python -m tests.bench.latency` takes about a minute, needs root, prints every figure, writes docs/latency.md and ends
with 1 when a median is out of its limit. Two network namespaces joined by a cable; a delay is the time of a UDP round
trip, taken by a client that is none of the product's, less the median without a fault.
"""

import asyncio
import itertools
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from brownout_agent.faults.network_queue import PACKETS_PER_S
from brownout_agent.kernel.processes import read_stat

from tests.host.network_pair import FAR, NEAR, Pair, inside, network_pair
from tests.support.faultbench import Held, held

LATENCIES_MS = (1, 10, 50, 100, 500)
REPEATS = 5
PORT, BYSTANDING_PORT = 7001, 7002
_SECONDS_A_REPEAT = 1.0
_ROUND_TRIPS = (10, 200)
_BULK_PORT, _BULK_S = 9_000, 2.0
_FLOOD_S = 2.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
REPORT = Path(__file__).parents[2] / "docs/latency.md"
_SINK = """
import socket, time
server = socket.create_server(("", {port}))
print("ready", flush=True)
connection, _ = server.accept()
begun_s, count = time.monotonic(), 0
while time.monotonic() < begun_s + {seconds}:
    count += len(connection.recv(1 << 20))
print(count / (time.monotonic() - begun_s), flush=True)
"""
Row = tuple[str, ...]


def round_trips_ms(port: int, times: int) -> list[float]:
    """One after the other."""
    took = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((FAR, port))
        client.settimeout(5)
        for _ in range(times):
            begun_ns = time.monotonic_ns()
            client.send(b"?")
            client.recv(16)
            took.append((time.monotonic_ns() - begun_ns) / 1e6)
    return took


def limit_ms(latency_ms: float) -> float:
    """How far the median may be off."""
    return 0.3 + 0.01 * latency_ms


async def fidelity() -> tuple[list[Row], bool]:
    """Rows of asked and achieved, with bystanders of the same peer; whether all are within their limit."""
    base_ms = statistics.median(round_trips_ms(PORT, 500))
    rows, is_well = [], True
    for latency_ms in LATENCIES_MS:
        times = min(max(int(_SECONDS_A_REPEAT * 1_000 / latency_ms), _ROUND_TRIPS[0]), _ROUND_TRIPS[1])
        delays: list[float] = []
        bystanders: list[float] = []
        for _ in range(REPEATS):
            async with held("network.latency", to=FAR, port=PORT, latency=f"{latency_ms}ms") as it:
                delays += (took - base_ms for took in round_trips_ms(PORT, times))
                bystanders += round_trips_ms(BYSTANDING_PORT, 100)
                own_ms = told(it)
        median_ms = statistics.median(delays)
        is_well &= abs(median_ms - latency_ms) <= limit_ms(latency_ms)
        late_ms = statistics.quantiles(delays, n=100)[98]
        other_ms = statistics.median(bystanders)
        rows.append(
            (f"{latency_ms} ms", f"{median_ms:.2f} ms", f"{limit_ms(latency_ms):.2f} ms", f"{late_ms:.2f} ms",
             f"{own_ms:.2f} ms", f"{other_ms:.3f} ms", f"{len(delays)}")
        )  # fmt: skip
        print(*rows[-1], flush=True)
    return [*rows, ("none", f"{base_ms:.3f} ms round trip", "", "", "", "", "500")], is_well


def told(it: Held) -> float:
    """What the fault itself says that it achieved."""
    it.meter.sample()
    achieved = it.meter.effect().achieved
    assert achieved is not None
    return achieved


def bulk_bps(pair: Pair, *, leaves: bool) -> float:
    """Bits a second of one TCP connection from this host to the other, or the other way."""
    here, there, address = (pair.near, pair.far, FAR) if leaves else (pair.far, pair.near, NEAR)
    with inside(there):
        sink = subprocess.Popen(
            [sys.executable, "-c", _SINK.format(port=_BULK_PORT, seconds=_BULK_S)], stdout=subprocess.PIPE, text=True
        )
    with sink:
        try:
            assert sink.stdout is not None
            assert sink.stdout.readline() == "ready\n"
            with inside(here), socket.create_connection((address, _BULK_PORT), timeout=20) as connection:
                data = bytes(1 << 17)
                with suppress(ConnectionError):  # the other end has seen enough
                    while True:
                        connection.send(data)
            return 8 * float(sink.stdout.readline())
        finally:
            sink.kill()


async def bulk(pair: Pair) -> list[Row]:
    """Rows of what one connection carries each way."""
    rows = [("none", "", *(f"{bulk_bps(pair, leaves=leaves) / 1e6:.4g}" for leaves in (True, False)))]
    for direction, latency_ms in itertools.product(("ingress", "egress"), (10, 50)):
        async with held("network.latency", port=_BULK_PORT, latency=f"{latency_ms}ms", direction=direction):
            speeds = (f"{bulk_bps(pair, leaves=leaves) / 1e6:.4g}" for leaves in (True, False))
            rows.append((direction, f"{latency_ms} ms", *speeds))
        print(*rows[-1], flush=True)
    return rows


async def cost() -> list[Row]:
    """Rows of the holder's CPU time while datagrams leave at a rate."""
    rows = []
    for rate in (1_000, PACKETS_PER_S, 4 * PACKETS_PER_S):
        async with held("network.latency", to=FAR, port=9, latency="50ms", direction="egress") as it:
            before = read_stat(it.holder.key.pid)
            sent = send_at(rate)
            after = read_stat(it.holder.key.pid)
            assert before is not None
            assert after is not None
            share = (after.cpu_ticks - before.cpu_ticks) / _TICKS_PER_S / _FLOOD_S
            it.meter.sample()
            passed = "passed without being held" in it.meter.effect().explanation
        rows.append((f"{sent / _FLOOD_S:.0f} a second", f"{100 * share:.0f} % of a core", "yes" if passed else "no"))
        print(*rows[-1], flush=True)
    return rows


def send_at(rate: int) -> int:
    """Datagrams to a port where nobody listens for _FLOOD_S; returns how many were sent."""
    sent, begun_s = 0, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**24)
        while (elapsed_s := time.monotonic() - begun_s) < _FLOOD_S:
            while sent < elapsed_s * rate:
                client.sendto(b"x", (FAR, 9))  # not connected, so that it is not told of the refusals
                sent += 1
            time.sleep(0.001)
    return sent


def table(head: Row, rows: list[Row]) -> str:
    """In Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)) + "\n"


def document(exact: list[Row], carried: list[Row], costs: list[Row]) -> str:
    """The page."""
    asked = ("asked", "median", "limit", "99 %", "the fault's own median", "another port of that peer", "round trips")
    return f"""\
# network.latency: asked against achieved

Written by `python -m tests.bench.latency` on Linux {platform.release()}; do not edit. Packets between
two network namespaces, held by NFQUEUE in the default direction; {REPEATS} repeats of each. A delay is the time of a
UDP round trip, by a client of its own, less the median without a fault; its limit is 0.3 ms and 1 %.

{table(asked, exact)}
## What one TCP connection carries, in Mbit/s

Packets that leave through `egress` count against their sender's socket while they are held (TCP small queues).

{table(("direction", "latency", "from this host", "to this host"), carried)}
## What the holder costs

Datagrams of one byte. Beyond {PACKETS_PER_S} a second packets pass at once, and the fault is not called proved.

{table(("packets", "CPU time of the holder", "some passed"), costs)}"""


async def measure(pair: Pair) -> bool:
    """Everything; whether it is within its limits."""
    exact, is_well = await fidelity()
    REPORT.write_text(document(exact, await bulk(pair), await cost()))
    return is_well


def main() -> None:
    """Needs root."""
    with network_pair() as pair, inside(pair.near):
        if not asyncio.run(measure(pair)):
            raise SystemExit("a median is out of its limit")


if __name__ == "__main__":
    main()
