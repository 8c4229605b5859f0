"""How close network.duplicate, reorder, corrupt and rate come to what is asked, by who gets the packets.

`python -m tests.bench.packets` takes about three minutes, needs root, prints every figure, writes docs/packets.md and
ends with 1 when a figure is out of its limit. Two network namespaces joined by a cable; packets leave the one with the
fault and are counted in the other.
"""

import asyncio
import platform
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from brownout_agent.faults.network_share import wilson_interval

from tests.bench.latency import Row, bulk_bps, table, told
from tests.host.network_pair import FAR, Pair, inside, network_pair, run
from tests.host.numbered_datagrams import listening, sent
from tests.host.test_network_reorder import reordered
from tests.support.faultbench import held

PERCENTS = (1, 5, 20, 50, 90)
RATES_MBIT = (1, 5, 10, 50, 100)
REPEATS = 5
DATAGRAMS = 1_000
_CONFIDENCE = 0.999
_TOLERANCE = 0.03
_PAYLOAD_SHARE = 1_448 / 1_500
"""What a full TCP segment with time stamps carries of its IP packet."""
REPORT = Path(__file__).parents[2] / "docs/packets.md"


def copies(came: list[int]) -> int:
    """Datagrams that came more than once."""
    return sum(count > 1 for count in Counter(came).values())


def missing(came: list[int]) -> int:
    """Datagrams that never came: their checksum was wrong."""
    return DATAGRAMS - len(set(came))


SHARES: dict[str, tuple[Callable[[list[int]], int], dict[str, str]]] = {
    "network.duplicate": (copies, {}),
    "network.reorder": (lambda came: len(reordered(came)), {"delay": "50ms"}),
    "network.corrupt": (missing, {}),
}
"""How a receiver counts those that are hit, and what else is asked."""


async def shares(pair: Pair) -> tuple[list[Row], bool]:
    """Rows of asked and achieved; whether every share that was asked explains what came."""
    rows, is_well = [], True
    for kind, (count, more) in SHARES.items():
        for percent in PERCENTS:
            hits, words = 0, list[float]()
            for _ in range(REPEATS):
                with listening(pair.far, FAR) as to:
                    async with held(kind, to=FAR, percent=percent, direction="egress", **more) as it:
                        hits += count(sent(pair.near, to, DATAGRAMS))
                        words.append(told(it))
            total = REPEATS * DATAGRAMS
            lowest, highest = (100 * bound for bound in wilson_interval(hits, total, _CONFIDENCE))
            is_well &= lowest <= percent <= highest
            own = sum(words) / REPEATS
            rows.append(
                (kind, f"{percent} %", f"{100 * hits / total:.2f} %", f"{lowest:.2f}-{highest:.2f} %", f"{own:.2f} %")
            )
            print(*rows[-1], flush=True)
    return rows, is_well


def carried_mbit(pair: Pair, *, leaves: bool) -> list[float]:
    """What one connection after the other carries. The first, by which TCP learns what the line is, does not count."""
    return [bulk_bps(pair, leaves=leaves) / 1e6 for _ in range(REPEATS + 1)][1:]


async def rates(pair: Pair) -> tuple[list[Row], bool]:
    """Rows of what one TCP connection carries through the fault and through tbf; whether all is within the limit."""
    rows, is_well = [], True
    for rate in RATES_MBIT:
        burst = f"{max(rate * 1_250, 5_000)}"  # what the rate carries in 10 ms
        run(*f"tc qdisc add dev eth0 root tbf rate {rate}mbit burst {burst} latency 200ms".split())
        try:
            by_tbf = carried_mbit(pair, leaves=True)
        finally:
            run("tc", "qdisc", "delete", "dev", "eth0", "root")
        for direction, leaves in (("egress", True), ("ingress", False)):
            async with held("network.rate", to=FAR, rate=f"{rate}mbit", direction=direction) as it:
                ours = carried_mbit(pair, leaves=leaves)
                own = told(it)
            means = [sum(carried) / REPEATS for carried in (ours, by_tbf)]
            most = rate * _PAYLOAD_SHARE
            is_well &= abs(means[0] - most) <= _TOLERANCE * most
            shown = (means[0], min(ours), max(ours), most, means[1], own)
            rows.append((direction, f"{rate}", *(f"{mbit:.4g}" for mbit in shown)))
            print(*rows[-1], flush=True)
    return rows, is_well


def document(by_share: list[Row], by_rate: list[Row]) -> str:
    """The page."""
    share_head = ("fault", "asked", "achieved", "99.9 % interval", "the fault's own word")
    rate_head = ("direction", "asked", "carried", "lowest", "highest", "at most", "through tbf", "the fault's own word")
    return f"""\
# Faults on packets: asked against achieved

Written by `python -m tests.bench.packets` on Linux {platform.release()}; do not edit. Packets between two network
namespaces; {REPEATS} repeats of each. What was achieved is what their receiver counts.

## Shares of packets

{DATAGRAMS} numbered datagrams a repeat: those that came twice, that came behind a later one (RFC 4737), that did not
come since their checksum was wrong. The limit is Wilson's interval of what came.

{table(share_head, by_share)}
## Rates, in Mbit/s

What one TCP connection carries in 2 s, headers not counted, after another one by which TCP has learned the line: a
first one loses some of its time over packets that found the queue full. *At most*: what a line of this rate can, with
full segments; the limit is {100 * _TOLERANCE:g} % of that. tbf, in the way out only, has the same queue (200 ms) and
counts Ethernet's headers as well.

{table(rate_head, by_rate)}"""


async def measure(pair: Pair) -> bool:
    """Everything; whether it is within its limits."""
    by_share, is_explained = await shares(pair)
    by_rate, is_carried = await rates(pair)
    REPORT.write_text(document(by_share, by_rate))
    return is_explained and is_carried


def main() -> None:
    """Needs root."""
    with network_pair() as pair, inside(pair.near):
        if not asyncio.run(measure(pair)):
            raise SystemExit("a figure is out of its limit")


if __name__ == "__main__":
    main()
