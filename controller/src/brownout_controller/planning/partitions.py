"""How a set of hosts falls apart: pure values, from a shape and a seed.

A cut says for each host which others it is parted from. The shapes are those that Jepsen's nemeses have made customary
(`partition-halves`, `partition-random-node`, `bridge`, `majorities-ring`).
"""

import random
from collections.abc import Sequence
from typing import Literal

from brownout_agent.faults.network_partition import Shape

Cut = dict[str, tuple[str, ...]]
Direction = Literal["ingress", "egress", "both"]
FEWEST: dict[Shape, int] = {"halves": 2, "isolate": 2, "majority": 3, "bridge": 3, "ring": 4}
"""Of fewer hosts the shape cannot be made: nobody would be parted, or it would be another shape."""


def cut(shape: Shape, hosts: Sequence[str], seed: str, direction: Direction = "both") -> Cut:
    """Whom each host is parted from; hosts that see everybody are left out. The same seed gives the same cut.

    In one direction only, it is the smaller side that hears nothing (`ingress`) or is not heard (`egress`); the other
    side has no part in it.

    Raises:
        ValueError: fewer hosts than FEWEST says.
    """
    if len(hosts) < FEWEST[shape]:
        raise ValueError(f"a {shape} needs {FEWEST[shape]} hosts; there are {len(hosts)}")
    order = random.Random(seed).sample(sorted(hosts), len(hosts))  # noqa: S311
    if shape == "ring":
        return _ring(order)
    middle = 1 if shape == "bridge" else 0
    others = order[middle:]
    few = {"isolate": 1, "majority": (len(order) - 1) // 2}.get(shape, len(others) // 2)
    return _apart(others[:few], others[few:], direction)


def _apart(few: Sequence[str], many: Sequence[str], direction: Direction) -> Cut:
    parted = {host: tuple(sorted(many)) for host in few}
    return parted if direction != "both" else parted | {host: tuple(sorted(few)) for host in many}


def _ring(order: Sequence[str]) -> Cut:
    """Each sees its nearest neighbours on both sides, as few as make a majority with itself."""
    count = len(order)
    near = -(-(count // 2) // 2)
    return {
        host: tuple(sorted(order[(at + step) % count] for step in range(near + 1, count - near)))
        for at, host in enumerate(order)
    }
