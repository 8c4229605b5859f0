"""Our processes stopped by SIGSTOP, with every fault on: each ends within its published bound.

Every combination of them, many times over: `python -m tests.bench.lifetimes`.
"""

import asyncio
import os
from pathlib import Path

import pytest

from tests.host.network_pair import inside, network_namespace
from tests.support.frozen import bound_s, freeze_each

pytestmark = [
    pytest.mark.alone,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="stops processes, loads nftables"),
]


TELLING = (("injector",), ("agent", "injector", "holders"), ("agent", "injector", "holders", "watchdog"))
"""Those in which the injector, whose timers come first, has no part."""


@pytest.mark.timeout(420)
def test_whoever_is_stopped_every_fault_ends_within_its_bound(tmp_path: Path) -> None:
    with network_namespace() as namespace, inside(namespace):
        outcomes = asyncio.run(freeze_each(tmp_path, TELLING, at_once=1))
    late = [
        f"{kind} with {'+'.join(frozen)} stopped: {after_s and round(after_s, 2)} s of {bound} s"
        for frozen, seen in outcomes.items()
        for kind, after_s in seen.items()
        if (bound := bound_s(kind, frozen)) is not None and (after_s is None or after_s > bound)
    ]
    assert not late, "\n".join(late)
