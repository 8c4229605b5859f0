"""network.loss in bursts against the kernel: which of thousands of packets were lost, in order, by their sender."""

import asyncio
import itertools
import os
import socket

import pytest

from tests.host.network_pair import FAR, FAR6, count_echoes, inside, network_pair
from tests.support.faultbench import held

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
PACKETS = 20_000


def lost_in_order(address: str) -> list[bool]:
    """Of each packet whether it was lost: a rule in the way out says so to its sender."""
    lost = []
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(PACKETS):
            try:
                client.sendto(b"x", (address, 9999))
                lost.append(False)
            except PermissionError:
                lost.append(True)
    return lost


def test_as_many_are_lost_as_asked_and_as_many_in_a_row() -> None:
    async def scene() -> None:
        parameters = {"to": [FAR, FAR6], "percent": 10, "burst": 5, "direction": "egress", "protocol": "udp"}
        async with held("network.loss", **parameters) as it:
            by_family = [lost_in_order(address) for address in (FAR, FAR6)]
            it.meter.sample()
            effect = it.meter.effect()
            for lost in by_family:
                rows = [len([*row]) for is_lost, row in itertools.groupby(lost) if is_lost]
                assert sum(lost) / PACKETS == pytest.approx(0.1, abs=0.02)
                assert sum(rows) / len(rows) == pytest.approx(5, abs=1.2)
            assert effect.proved, effect
            assert effect.achieved == pytest.approx(100 * sum(map(sum, by_family)) / (2 * PACKETS), abs=0.1)
        assert count_echoes(FAR, 7001, 200) == 200

    with network_pair() as pair, inside(pair.near):
        asyncio.run(scene())
